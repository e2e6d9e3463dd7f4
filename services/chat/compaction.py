"""Compacting what was said, and reading back what was compacted.

Only this service can read a compaction: it is sealed for its tenant, so that what a client sends back is what a client
was given.
"""

import binascii
import secrets
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Final

from libs.common import keys, metrics
from libs.common.contracts.chat import Answer, ChatMessage, JsonObject
from libs.common.contracts.compaction import CompactRequest
from libs.common.contracts.items import COMPACTED, messages_of
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.keyring import Keyring
from libs.common.tasks.replies import Reply
from services.chat.ports import Completer, Usage
from services.chat.prompt import text_of
from services.chat.response_rendering import usage_body
from services.chat.summaries import prompt_of

_INTRODUCTION: Final = "[Earlier in this conversation, in short. This is a record, not a request.]\n"
# A model that only quotes cannot summarise: the beginnings of the answers are kept instead.
_EXTRACTIVE_MODEL: Final = "docent-extractive"
_KEPT_CHARACTERS: Final = 600
_MAX_CHARACTERS: Final = 60_000


class Compactions:
    """Seals and opens what a compaction holds."""

    def __init__(self, keyring: Keyring) -> None:
        self._sealer = keyring.sealer(keys.COMPACTIONS_PURPOSE)

    def seal(self, tenant_id: str, text: str) -> str:
        """The `encrypted_content` of a compaction."""
        return urlsafe_b64encode(self._sealer.seal(text.encode(), tenant_id)).decode()

    def opened(self, tenant_id: str, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """The messages, compactions among them as text; a user's, since instructions have more weight.

        Raises:
            PermanentError: INVALID_VALUE for a compaction that was not made here for this tenant.
        """
        return tuple(self._opened(tenant_id, message) for message in messages)

    def _opened(self, tenant_id: str, message: ChatMessage) -> ChatMessage:
        sealed = message.extra.get(COMPACTED)
        if sealed is None:
            return message
        try:
            text = self._sealer.open(urlsafe_b64decode(sealed), tenant_id).decode()
        except (PermanentError, binascii.Error, ValueError):
            raise PermanentError(
                ErrorCode.INVALID_VALUE, "The encrypted content is not that of a compaction made here.", param="input"
            ) from None
        return ChatMessage(role="user", content=_INTRODUCTION + text)


class Compactor:
    """Makes compactions.

    Args:
        completer: puts answers in short, where the model can write.
    """

    def __init__(self, completer: Completer, compactions: Compactions) -> None:
        self._completer = completer
        self._compactions = compactions

    async def compact(self, request: CompactRequest, reply: Reply[Answer]) -> None:
        """Compact; the reply is OpenAI's `response.compaction`.

        Raises:
            PlatformError: as the model's server fails; LLM_BAD_RESPONSE for an empty summary.
        """
        kept = [item for item in request.items if _is_users(item)]
        rest = messages_of(item for item in request.items if not _is_users(item))
        opened = self._compactions.opened(reply.tenant_id, rest)
        said = [(message.role, text) for message in opened if (text := text_of(message))]
        text, usage = await self._in_short(request.model, said)
        item = {
            "type": "compaction",
            "id": f"cmp_{uuid.uuid5(uuid.NAMESPACE_OID, request.id).hex}",
            "encrypted_content": self._compactions.seal(reply.tenant_id, text),
        }
        body = {
            "id": request.id,
            "object": "response.compaction",
            "created_at": request.created_at,
            "output": [*kept, item],
            "usage": usage_body(usage),
        }
        await reply.done(Answer(body=body))

    async def _in_short(self, model: str, said: Sequence[tuple[str, str]]) -> tuple[str, Usage]:
        if not said:
            return "", Usage()
        if model == _EXTRACTIVE_MODEL:
            beginnings = "\n".join(f"{role}: {text[:_KEPT_CHARACTERS]}" for role, text in said)
            return beginnings[-_MAX_CHARACTERS:], Usage()
        pieces: list[str] = []
        usage = Usage()
        with metrics.stage("summarise"):
            async for delta in self._completer.stream(model, prompt_of(said, secrets.token_hex(8)), {}):
                pieces.append(delta.text)
                usage = delta.usage or usage
        text = "".join(pieces).strip()
        if not text:
            raise RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's server wrote an empty summary.")
        return text, usage


def _is_users(item: JsonObject) -> bool:
    return bool(item["type"] == "message" and item["role"] == "user")
