"""What callers know of the conversations service, the only holder of the conversation key."""

from typing import Literal

from libs.common.contracts.base import Empty, JobSpec, Message, Queue, TaskSpec
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
    expires_after_seconds: float | None = None


class ConversationId(Message):
    """Names one conversation."""

    conversation_id: str


class ChangeConversation(ConversationId):
    """A change. `if_match` holds the revisions the client takes for the newest one; None: it does not care."""

    if_match: tuple[int, ...] | None = None


class UpdateConversation(ChangeConversation):
    """New metadata, replacing the old unless None; a new retention if `sets_expiry`, where None is the tenant's."""

    metadata: dict[str, str] | None = None
    expires_after_seconds: float | None = None
    sets_expiry: bool = False


class ListConversations(Message):
    """A page of conversations, by time of creation. `after` is the id of the last one the client has seen."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class ForkConversation(ConversationId):
    """A new conversation with the items of another, up to and with `item_id` if given. Metadata None: the same."""

    fork_id: str
    created_at: int
    item_id: str | None = None
    metadata: dict[str, str] | None = None


class CreateItems(ChangeConversation):
    """Items to append, in order, all or none."""

    items: tuple[JsonObject, ...]
    include: tuple[str, ...] = ()


class ItemId(ConversationId):
    """Names one item of a conversation."""

    item_id: str
    include: tuple[str, ...] = ()


class DeleteItem(ChangeConversation):
    """Names one item to be deleted."""

    item_id: str


class ListItems(ConversationId):
    """A page of items. `after` is the id of the last item the client has seen."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    include: tuple[str, ...] = ()


class ResponseId(Message):
    """Names one stored response."""

    response_id: str


class ListInputItems(ResponseId):
    """A page of a stored response's input items."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class Body(Message):
    """A complete OpenAI object or page, ready to be sent. `revision` is that of the conversation it is (part) of."""

    body: JsonObject
    revision: int | None = None


class Unsummarised(ConversationId):
    """The beginning of a conversation to be put in a summary: items at positions in [after, before).

    Attributes:
        model: the model that is to write it.
        items: how many items these are.
        earlier: the summary of what came before position `after`.
        messages: role and text of each message, in order.
    """

    model: str
    after: int
    before: int
    items: int
    earlier: str = ""
    messages: tuple[tuple[str, str], ...]


class Summary(ConversationId):
    """A summary of everything before position `before`, to take the place of the one that reached up to `after`.

    `items` is how many items it adds, which must all be there still.
    """

    after: int
    before: int
    items: int
    text: str


class RewrapKeys(Message):
    """Wrap every data key anew under this key of the keyring."""

    key_id: str


OPEN_TURN = TaskSpec("conversations.open_turn", Queue.CONVERSATIONS, OpenTurn, Answer)
CLOSE_TURN = TaskSpec("conversations.close_turn", Queue.CONVERSATIONS, CloseTurn, Answer)
ABANDON_TURN = TaskSpec("conversations.abandon_turn", Queue.CONVERSATIONS, AbandonTurn, Empty)
CREATE_CONVERSATION = TaskSpec("conversations.create", Queue.CONVERSATIONS, CreateConversation, Body)
RETRIEVE_CONVERSATION = TaskSpec("conversations.retrieve", Queue.CONVERSATIONS, ConversationId, Body)
UPDATE_CONVERSATION = TaskSpec("conversations.update", Queue.CONVERSATIONS, UpdateConversation, Body)
DELETE_CONVERSATION = TaskSpec("conversations.delete", Queue.CONVERSATIONS, ChangeConversation, Empty)
LIST_CONVERSATIONS = TaskSpec("conversations.list", Queue.CONVERSATIONS, ListConversations, Body)
FORK_CONVERSATION = TaskSpec("conversations.fork", Queue.CONVERSATIONS, ForkConversation, Body)
CREATE_ITEMS = TaskSpec("conversations.create_items", Queue.CONVERSATIONS, CreateItems, Body)
RETRIEVE_ITEM = TaskSpec("conversations.retrieve_item", Queue.CONVERSATIONS, ItemId, Body)
DELETE_ITEM = TaskSpec("conversations.delete_item", Queue.CONVERSATIONS, DeleteItem, Body)
LIST_ITEMS = TaskSpec("conversations.list_items", Queue.CONVERSATIONS, ListItems, Body)
RETRIEVE_RESPONSE = TaskSpec("conversations.retrieve_response", Queue.CONVERSATIONS, ResponseId, Body)
DELETE_RESPONSE = TaskSpec("conversations.delete_response", Queue.CONVERSATIONS, ResponseId, Empty)
LIST_INPUT_ITEMS = TaskSpec("conversations.list_input_items", Queue.CONVERSATIONS, ListInputItems, Body)

CLEAN_EXPIRED = JobSpec("conversations.clean_expired", Queue.CONVERSATIONS, Empty)
REWRAP_KEYS = JobSpec("conversations.rewrap_keys", Queue.CONVERSATIONS, RewrapKeys)
SUMMARISE = JobSpec("chat.summarise", Queue.CHAT_JOBS, Unsummarised)
KEEP_SUMMARY = JobSpec("conversations.keep_summary", Queue.CONVERSATIONS, Summary)
