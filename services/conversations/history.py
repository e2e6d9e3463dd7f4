"""Which part of a conversation goes into the prompt of its next turn."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from libs.common.contracts.chat import ChatMessage, JsonObject
from libs.common.contracts.items import messages_of
from libs.common.contracts.token_estimates import CHARACTERS_PER_TOKEN, TOKENS_PER_MESSAGE, estimate_text_tokens

# Less than this of a message tells a model nothing.
_LEAST_CUT_TOKENS: Final = 16

SUMMARY_INTRODUCTION: Final = "[Earlier in this conversation, in short. This is a record, not a request.]\n"


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A user's message with what followed it, or what stands before the first one.

    Args:
        position: where its first item stands in the conversation.
    """

    position: int
    messages: tuple[ChatMessage, ...]

    @property
    def tokens(self) -> int:
        """About how many tokens it takes in a prompt."""
        return sum(map(estimate_tokens, self.messages))


def estimate_tokens(message: ChatMessage) -> int:
    """About how many tokens a message takes in a prompt."""
    content = message.content or ""
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    if message.extra:
        text += orjson.dumps(message.extra).decode()
    return estimate_text_tokens(text) + TOKENS_PER_MESSAGE


def past_turns(items: Iterable[tuple[int, JsonObject]]) -> list[PastTurn]:
    """The turns that items make up, in order.

    Args:
        items: with their positions, oldest first.
    """
    turns: list[tuple[int, list[JsonObject]]] = []
    for position, item in items:
        if not turns or (item["type"] == "message" and item["role"] == "user"):
            turns.append((position, []))
        turns[-1][1].append(item)
    return [PastTurn(position, messages_of(of_turn)) for position, of_turn in turns]


def recent_turns(turns: Sequence[PastTurn], budget_tokens: int) -> list[PastTurn]:
    """The newest whole turns that fit the budget, in order; of a newest one that alone is too large, its end."""
    kept: list[PastTurn] = []
    for turn in reversed(turns):
        if turn.tokens > budget_tokens:
            break
        budget_tokens -= turn.tokens
        kept.insert(0, turn)
    if turns and not kept:
        kept = [PastTurn(turns[-1].position, tuple(_end_of(turns[-1].messages, budget_tokens))[::-1])]
    return [PastTurn(turn.position, _without_orphans(turn.messages)) for turn in kept]


def summary_message(summary: str) -> ChatMessage:
    """A summary as it stands before the turns that are kept; a user's, since instructions have more weight."""
    return ChatMessage(role="user", content=SUMMARY_INTRODUCTION + summary)


def text_of(message: ChatMessage) -> str:
    """A message's text; parts that are no text are left out."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(part["text"] for part in message.content if isinstance(part.get("text"), str))


def cut_to(text: str, tokens: int) -> str:
    """The end of a text, of about so many tokens."""
    characters = max(0, tokens) * CHARACTERS_PER_TOKEN
    return text[max(0, len(text) - characters) :]


def _end_of(messages: Sequence[ChatMessage], budget_tokens: int) -> Iterator[ChatMessage]:
    """The last messages within the budget, the newest first; the text of the first that is too long is cut."""
    for message in reversed(messages):
        cost = estimate_tokens(message)
        if cost <= budget_tokens:
            budget_tokens -= cost
            yield message
            continue
        room = budget_tokens - estimate_tokens(_with_content(message, ""))
        if isinstance(message.content, str) and room >= _LEAST_CUT_TOKENS:
            yield _with_content(message, cut_to(message.content, room))
        return


def _with_content(message: ChatMessage, content: str) -> ChatMessage:
    return message.model_copy(update={"content": content})


def _without_orphans(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Upstreams refuse a tool's output whose call is not in the prompt."""
    first = next((index for index, message in enumerate(messages) if message.role != "tool"), len(messages))
    return tuple(messages[first:])
