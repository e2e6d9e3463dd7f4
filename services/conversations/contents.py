"""From what clients know to what is stored, and back."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from libs.common.contracts.chat import JsonObject
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.response_store import StoredResponse
from services.conversations.store import SealedItem


def sealed_metadata(key: DataKey, conversation_id: str, metadata: dict[str, str]) -> bytes:
    """A conversation's metadata as they are stored."""
    return key.seal(metadata, conversation_id, "metadata")


def conversation_body(keys: DataKeys, row: Row[Any]) -> JsonObject:
    """A conversation as the client knows it.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(row.tenant_id, row.id, row.wrapped_key)
    metadata = key.open(row.sealed_metadata, row.id, "metadata")
    return {"id": row.id, "object": "conversation", "created_at": int(row.created_at), "metadata": metadata}


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


def sealed_response(
    keys: DataKeys, tenant_id: str, body: JsonObject, *, input_items: Sequence[JsonObject], conversation_id: str | None
) -> StoredResponse:
    """A response as it is stored, with what it was asked, under a key of its own."""
    response_id: str = body["id"]
    wrapped, key = keys.create(tenant_id, response_id)
    return StoredResponse(
        id=response_id,
        conversation_id=conversation_id,
        previous_response_id=body.get("previous_response_id"),
        wrapped_key=wrapped,
        sealed_body=key.seal(body, response_id, "body"),
        sealed_input=key.seal(input_items, response_id, "input"),
    )


def response_body(keys: DataKeys, tenant_id: str, response: StoredResponse) -> JsonObject:
    """A response as the client knows it.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(tenant_id, response.id, response.wrapped_key)
    body: JsonObject = key.open(response.sealed_body, response.id, "body")
    return body


def response_input(keys: DataKeys, tenant_id: str, response: StoredResponse) -> list[JsonObject]:
    """The items that a response was asked, in order.

    Raises:
        PermanentError: DECRYPT_FAILED.
    """
    key = keys.unwrap(tenant_id, response.id, response.wrapped_key)
    items: list[JsonObject] = key.open(response.sealed_input, response.id, "input")
    return items
