"""Conversations and their items. Every verb is a command to the conversations service, which alone can read them."""

import time
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from libs.common.contracts.chat import JsonObject
from libs.common.contracts.conversations import (
    CREATE_CONVERSATION,
    CREATE_ITEMS,
    DELETE_CONVERSATION,
    DELETE_ITEM,
    LIST_ITEMS,
    RETRIEVE_CONVERSATION,
    RETRIEVE_ITEM,
    UPDATE_CONVERSATION,
    ConversationId,
    CreateConversation,
    CreateItems,
    ItemId,
    ListItems,
    UpdateConversation,
)
from libs.common.contracts.items import normalise_items
from libs.common.contracts.requests import Body, Metadata, new_id
from services.gateway.bodies import body_schema, json_body
from services.gateway.idempotency import ReplayedRoute
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], route_class=ReplayedRoute)

_MAX_ITEMS: Final = 20
Items = Annotated[tuple[JsonObject, ...], Field(max_length=_MAX_ITEMS)]


class CreateConversationBody(Body):
    """POST /v1/conversations."""

    items: Items | None = None
    metadata: Metadata | None = None


class UpdateConversationBody(Body):
    """POST /v1/conversations/{id}."""

    metadata: Metadata | None = None


class CreateItemsBody(Body):
    """POST /v1/conversations/{id}/items."""

    items: Annotated[Items, Field(min_length=1)]


@router.post("", openapi_extra=body_schema(CreateConversationBody))
async def create_conversation(
    interactive: InteractiveDep,
    body: Annotated[CreateConversationBody, Depends(json_body(CreateConversationBody))],
) -> Response:
    """Begin a conversation, with items if there are some already."""
    message = CreateConversation(
        conversation_id=new_id("conv"),
        created_at=int(time.time()),
        items=normalise_items(body.items or ()),
        metadata=body.metadata or {},
    )
    return await interactive.body(CREATE_CONVERSATION, message)


@router.get("/{conversation_id}")
async def retrieve_conversation(conversation_id: str, interactive: InteractiveDep) -> Response:
    """One conversation."""
    return await interactive.body(RETRIEVE_CONVERSATION, ConversationId(conversation_id=conversation_id))


@router.post("/{conversation_id}", openapi_extra=body_schema(UpdateConversationBody))
async def update_conversation(
    conversation_id: str,
    interactive: InteractiveDep,
    body: Annotated[UpdateConversationBody, Depends(json_body(UpdateConversationBody))],
) -> Response:
    """Replace a conversation's metadata."""
    message = UpdateConversation(conversation_id=conversation_id, metadata=body.metadata or {})
    return await interactive.body(UPDATE_CONVERSATION, message)


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, interactive: InteractiveDep) -> Response:
    """Destroy a conversation's key, and with it every item."""
    _, headers = await interactive.answer(DELETE_CONVERSATION, ConversationId(conversation_id=conversation_id))
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True}, headers=headers)


@router.post("/{conversation_id}/items", openapi_extra=body_schema(CreateItemsBody))
async def create_items(
    conversation_id: str,
    interactive: InteractiveDep,
    body: Annotated[CreateItemsBody, Depends(json_body(CreateItemsBody))],
) -> Response:
    """Append items, all or none."""
    message = CreateItems(conversation_id=conversation_id, items=normalise_items(body.items))
    return await interactive.body(CREATE_ITEMS, message)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: str,
    interactive: InteractiveDep,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """A page of a conversation's items."""
    page = ListItems(conversation_id=conversation_id, after=after, limit=limit, order=order)
    return await interactive.body(LIST_ITEMS, page)


@router.get("/{conversation_id}/items/{item_id}")
async def retrieve_item(conversation_id: str, item_id: str, interactive: InteractiveDep) -> Response:
    """One item."""
    message = ItemId(conversation_id=conversation_id, item_id=item_id)
    return await interactive.body(RETRIEVE_ITEM, message)


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, interactive: InteractiveDep) -> Response:
    """Delete one item; the reply is its conversation."""
    message = ItemId(conversation_id=conversation_id, item_id=item_id)
    return await interactive.body(DELETE_ITEM, message)
