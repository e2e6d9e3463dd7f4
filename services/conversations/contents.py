"""From what clients know to what is stored, and back."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from libs.common.contracts.chat import JsonObject, Shape
from services.conversations import response_store
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.item_store import SealedItem
from services.conversations.response_store import StoredResponse
from services.conversations.store import Conversation

# What is only shown to a client that asks for it: the name it asks by, the type of item and the field.
_ON_REQUEST: Final[Mapping[str, tuple[str, str]]] = {
    "file_search_call.results": ("file_search_call", "results"),
    "reasoning.encrypted_content": ("reasoning", "encrypted_content"),
}


def sealed_metadata(key: DataKey, conversation_id: str, metadata: dict[str, str]) -> bytes:
    """A conversation's metadata as they are stored."""
    return key.seal(metadata, conversation_id, "metadata")


def conversation_body(keys: DataKeys, row: Conversation) -> JsonObject:
    """A conversation as the client knows it.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(row.tenant_id, row.id, row.wrapped_key)
    own_seconds = row.expires_after_seconds
    return {
        "id": row.id,
        "object": "conversation",
        "created_at": int(row.created_at),
        "metadata": key.open(row.sealed_metadata, row.id, "metadata"),
        "last_active_at": int(row.last_active_at),
        "expires_after": None if own_seconds is None else {"anchor": "last_active_at", "seconds": int(own_seconds)},
        "expires_at": None if row.expires_at is None else int(row.expires_at),
    }


def sealed_items(key: DataKey, items: Sequence[JsonObject]) -> list[SealedItem]:
    """Items as they are stored."""
    return [SealedItem(item["id"], key.seal(item, item["id"], "item")) for item in items]


def opened_item(key: DataKey, item: SealedItem) -> JsonObject:
    """An item as the client knows it.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    opened: JsonObject = key.open(item.sealed, item.id, "item")
    return opened


def shown_item(item: JsonObject, include: Collection[str]) -> JsonObject:
    """An item without what its reader did not ask for by `include`."""
    hidden = {field for name, (kind, field) in _ON_REQUEST.items() if item["type"] == kind and name not in include}
    return {field: None if field in hidden else value for field, value in item.items()}


def sealed_summary(key: DataKey, conversation_id: str, summary: str) -> bytes:
    """A conversation's summary as it is stored."""
    return key.seal(summary, conversation_id, "summary")


def opened_summary(key: DataKey, conversation: Conversation) -> str | None:
    """What a conversation was about before its `summary_position`; None if nothing was summarised yet.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    if conversation.sealed_summary is None:
        return None
    summary: str = key.open(conversation.sealed_summary, conversation.id, "summary")
    return summary


def sealed_response(
    keys: DataKeys,
    tenant_id: str,
    body: JsonObject,
    *,
    input_items: Sequence[JsonObject],
    created_at: float,
    conversation_id: str | None = None,
) -> StoredResponse:
    """A response or chat completion as it is stored, with what it was asked, under a key of its own."""
    response_id: str = body["id"]
    wrapped, key = keys.create(tenant_id, response_id)
    return StoredResponse(
        id=response_id,
        shape=Shape(body["object"]),
        conversation_id=conversation_id,
        previous_response_id=body.get("previous_response_id"),
        wrapped_key=wrapped,
        sealed_body=key.seal(body, response_id, "body"),
        sealed_input=key.seal(input_items, response_id, "input"),
        created_at=created_at,
    )


def resealed_body(keys: DataKeys, tenant_id: str, response: StoredResponse, body: JsonObject) -> bytes:
    """Another body of a stored response, under the same key.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    return keys.unwrap(tenant_id, response.id, response.wrapped_key).seal(body, response.id, "body")


def response_body(keys: DataKeys, tenant_id: str, response: StoredResponse) -> JsonObject:
    """A response as the client knows it.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(tenant_id, response.id, response.wrapped_key)
    body: JsonObject = key.open(response.sealed_body, response.id, "body")
    return body


def kept_body(keys: DataKeys, tenant_id: str, response: StoredResponse, *, param: str | None = None) -> JsonObject:
    """A response for who asks for it by its id.

    One that was not to be stored is recorded with its conversation all the same, so that a repeated message finds it.

    Raises:
        PermanentError: NOT_FOUND for such a one, as for a missing one; DECRYPT_FAILED.
    """
    body = response_body(keys, tenant_id, response)
    if body.get("store") is False:
        raise response_store.missing(response.id, param=param)
    return body


def response_input(keys: DataKeys, tenant_id: str, response: StoredResponse) -> list[JsonObject]:
    """The items that a response was asked, or the messages of a chat completion, in order.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(tenant_id, response.id, response.wrapped_key)
    items: list[JsonObject] = key.open(response.sealed_input, response.id, "input")
    return items
