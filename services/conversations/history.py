"""Which part of a conversation goes into the prompt of its next turn."""

from collections.abc import Iterator, Sequence
from typing import Final

import orjson

from libs.common.contracts.chat import ChatMessage

_CHARACTERS_PER_TOKEN: Final = 4  # a common estimate for Latin text; the upstream counts exactly
_TOKENS_PER_MESSAGE: Final = 4  # role and separators


def estimate_tokens(message: ChatMessage) -> int:
    """About how many tokens a message takes in a prompt."""
    content = message.content or ""
    characters = len(content if isinstance(content, str) else orjson.dumps(content))
    if message.extra:
        characters += len(orjson.dumps(message.extra))
    return -(-characters // _CHARACTERS_PER_TOKEN) + _TOKENS_PER_MESSAGE


def recent_turns(messages: Sequence[ChatMessage], budget_tokens: int) -> tuple[ChatMessage, ...]:
    """The newest whole turns that fit the budget, oldest first; none if not even the newest does.

    A turn begins with a user's message; what stands before the first one counts as a turn.
    """
    kept: list[ChatMessage] = []
    for turn in _turns_from_newest(messages):
        cost = sum(map(estimate_tokens, turn))
        if cost > budget_tokens:
            break
        budget_tokens -= cost
        kept = [*turn, *kept]
    return _without_orphans(kept)


def _turns_from_newest(messages: Sequence[ChatMessage]) -> Iterator[Sequence[ChatMessage]]:
    end = len(messages)
    for start in range(len(messages) - 1, -1, -1):
        if messages[start].role == "user" or start == 0:
            yield messages[start:end]
            end = start


def _without_orphans(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Upstreams refuse a tool's output whose call is not in the prompt."""
    first = next((index for index, message in enumerate(messages) if message.role != "tool"), len(messages))
    return tuple(messages[first:])
