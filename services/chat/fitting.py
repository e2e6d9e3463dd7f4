"""Which messages a model with so much room can be shown."""

from collections.abc import Sequence
from typing import Final

import orjson

from libs.common.contracts.chat import ChatMessage
from libs.common.contracts.token_estimates import TOKENS_PER_MESSAGE, estimate_text_tokens
from libs.common.errors import ErrorCode, PermanentError
from services.chat.prompt import text_of

_TOKENS_PER_ATTACHMENT: Final = 1000  # about a large picture, or a page or two of a file


def fitted(messages: Sequence[ChatMessage], context_tokens: int, *, may_drop: bool) -> tuple[ChatMessage, ...]:
    """The messages, without the oldest turns if they are too many.

    Args:
        context_tokens: by estimate; 0 is no limit.
        may_drop: whether turns may be left out; never leading instructions nor the newest turn.

    Raises:
        PermanentError: CONTEXT_LENGTH_EXCEEDED.
    """
    too_many_tokens = sum(map(_tokens, messages)) - context_tokens
    if context_tokens == 0 or too_many_tokens <= 0:
        return tuple(messages)
    leading = next((i for i, message in enumerate(messages) if message.role not in ("system", "developer")), 0)
    users = [i for i, message in enumerate(messages) if message.role == "user" and i > leading]
    for end in users if may_drop else ():
        if sum(map(_tokens, messages[leading:end])) >= too_many_tokens:
            return (*messages[:leading], *messages[end:])
    raise PermanentError(
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        f"The messages have about {too_many_tokens + context_tokens} tokens, and the limit is {context_tokens}.",
    )


def _tokens(message: ChatMessage) -> int:
    parts = message.content if isinstance(message.content, tuple) else ()
    attachments = sum(1 for part in parts if not isinstance(part.get("text"), str))
    said = text_of(message) + (orjson.dumps(message.extra).decode() if message.extra else "")
    return estimate_text_tokens(said) + TOKENS_PER_MESSAGE + attachments * _TOKENS_PER_ATTACHMENT
