"""What callers know of the conversations service, the only holder of the conversation key."""

from typing import Literal

from libs.common.contracts.base import Empty, Message, Queue, TaskSpec
from libs.common.contracts.chat import Answer, AnswerRequest, JsonObject


class OpenTurn(Message):
    """A question whose history must be added before it goes on to chat.

    `answer.messages` holds instructions and the new input only. Exactly one of the two ids is set.
    """

    answer: AnswerRequest
    conversation_id: str | None = None
    previous_response_id: str | None = None


class CloseTurn(Message):
    """A finished answer to be committed; only then does the client hear of its completion.

    `next_sequence` is the number of the next stream event. `response` is the complete object to store.
    """

    request: AnswerRequest
    response: JsonObject
    next_sequence: int = 0


class AbandonTurn(Message):
    """A turn whose answer failed: the conversation is free again. Nobody waits for the reply."""

    conversation_id: str
    token: int


class CreateConversation(Message):
    """A new conversation with its first items."""

    conversation_id: str
    created_at: int
    items: tuple[JsonObject, ...] = ()
    metadata: dict[str, str] = {}


class ConversationId(Message):
    """Names one conversation."""

    conversation_id: str


class UpdateConversation(ConversationId):
    """New metadata, replacing the old."""

    metadata: dict[str, str]


class CreateItems(ConversationId):
    """Items to append, in order, all or none."""

    items: tuple[JsonObject, ...]


class ItemId(ConversationId):
    """Names one item of a conversation."""

    item_id: str


class ListItems(ConversationId):
    """A page of items. `after` is the id of the last item the client has seen."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class ResponseId(Message):
    """Names one stored response."""

    response_id: str


class ListInputItems(ResponseId):
    """A page of a stored response's input items."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class Body(Message):
    """A complete OpenAI object or page, ready to be sent."""

    body: JsonObject


OPEN_TURN = TaskSpec("conversations.open_turn", Queue.CONVERSATIONS, OpenTurn, Answer)
CLOSE_TURN = TaskSpec("conversations.close_turn", Queue.CONVERSATIONS, CloseTurn, Answer)
ABANDON_TURN = TaskSpec("conversations.abandon_turn", Queue.CONVERSATIONS, AbandonTurn, Empty)
CREATE_CONVERSATION = TaskSpec("conversations.create", Queue.CONVERSATIONS, CreateConversation, Body)
RETRIEVE_CONVERSATION = TaskSpec("conversations.retrieve", Queue.CONVERSATIONS, ConversationId, Body)
UPDATE_CONVERSATION = TaskSpec("conversations.update", Queue.CONVERSATIONS, UpdateConversation, Body)
DELETE_CONVERSATION = TaskSpec("conversations.delete", Queue.CONVERSATIONS, ConversationId, Empty)
CREATE_ITEMS = TaskSpec("conversations.create_items", Queue.CONVERSATIONS, CreateItems, Body)
RETRIEVE_ITEM = TaskSpec("conversations.retrieve_item", Queue.CONVERSATIONS, ItemId, Body)
DELETE_ITEM = TaskSpec("conversations.delete_item", Queue.CONVERSATIONS, ItemId, Body)
LIST_ITEMS = TaskSpec("conversations.list_items", Queue.CONVERSATIONS, ListItems, Body)
RETRIEVE_RESPONSE = TaskSpec("conversations.retrieve_response", Queue.CONVERSATIONS, ResponseId, Body)
DELETE_RESPONSE = TaskSpec("conversations.delete_response", Queue.CONVERSATIONS, ResponseId, Empty)
LIST_INPUT_ITEMS = TaskSpec("conversations.list_input_items", Queue.CONVERSATIONS, ListInputItems, Body)
