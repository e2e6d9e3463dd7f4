"""Chat completions that are stored: what may be asked of them, and what they were asked, as it is kept."""

from collections.abc import Iterable
from typing import Final, Literal

from libs.common.contracts.base import Empty, Message, Queue, TaskSpec
from libs.common.contracts.chat import ChatMessage, JsonObject
from libs.common.contracts.conversations import Body


class CompletionId(Message):
    """Names one stored completion."""

    completion_id: str


class UpdateCompletion(CompletionId):
    """New metadata, replacing the old."""

    metadata: dict[str, str]


class ListCompletions(Message):
    """A page of those by `model`, if it is named, that have all of `metadata`."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "asc"
    model: str | None = None
    metadata: dict[str, str] = {}


class ListCompletionMessages(CompletionId):
    """A page of the messages that a stored completion was asked."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "asc"


def stored_messages(completion_id: str, messages: Iterable[ChatMessage]) -> list[JsonObject]:
    """Messages as they are kept and listed: content in parts is shown as `content_parts`, and what it says as text."""
    return [_stored(f"{completion_id}-{index}", message) for index, message in enumerate(messages)]


def _stored(message_id: str, message: ChatMessage) -> JsonObject:
    parts = None if message.content is None or isinstance(message.content, str) else list(message.content)
    return {
        "id": message_id,
        "role": message.role,
        "content": message.content if parts is None else _text(parts),
        "content_parts": parts,
        **message.extra,
    }


def _text(parts: list[JsonObject]) -> str | None:
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str)) or None


RETRIEVE_COMPLETION: Final = TaskSpec("conversations.retrieve_completion", Queue.CONVERSATIONS, CompletionId, Body)
UPDATE_COMPLETION: Final = TaskSpec("conversations.update_completion", Queue.CONVERSATIONS, UpdateCompletion, Body)
DELETE_COMPLETION: Final = TaskSpec("conversations.delete_completion", Queue.CONVERSATIONS, CompletionId, Empty)
LIST_COMPLETIONS: Final = TaskSpec("conversations.list_completions", Queue.CONVERSATIONS, ListCompletions, Body)
LIST_COMPLETION_MESSAGES: Final = TaskSpec(
    "conversations.list_completion_messages", Queue.CONVERSATIONS, ListCompletionMessages, Body
)
