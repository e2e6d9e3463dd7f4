"""Conversations and their items. Every verb is a command to the conversations service, which alone can read them.

Beyond OpenAI's: the list of conversations, forks, exports, `expires_after`, and ETags with `If-Match`.
"""

import time
from typing import Annotated, Final, Literal, Self, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, model_validator

from libs.common.contracts import conversations as contract
from libs.common.contracts.base import Message, TaskSpec
from libs.common.contracts.chat import JsonObject
from libs.common.contracts.items import normalise_items
from libs.common.contracts.requests import Body, Metadata, new_id
from services.gateway.bodies import body_schema, json_body
from services.gateway.exports import exported_json, exported_markdown, first_page
from services.gateway.idempotency import ReplayedRoute
from services.gateway.parameters import Cursor
from services.gateway.revisions import IfMatchDep, etag_header
from services.gateway.streams import Interactive, InteractiveDep, json_response

RequestT = TypeVar("RequestT", bound=Message)

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], route_class=ReplayedRoute)

_MAX_ITEMS: Final = 20
_DAY_SECONDS: Final = 86_400
_LONGEST_SECONDS: Final = 3650 * _DAY_SECONDS
Items = Annotated[tuple[JsonObject, ...], Field(max_length=_MAX_ITEMS)]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class ExpiresAfter(Body):
    """How long after its last use a conversation is destroyed: exactly one of days and seconds."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    seconds: Annotated[int, Field(ge=60, le=_LONGEST_SECONDS)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.days is None) == (self.seconds is None):
            raise ValueError("give exactly one of days and seconds")
        return self

    def in_seconds(self) -> float:
        """The same in seconds."""
        return float(self.seconds or (self.days or 0) * _DAY_SECONDS)


class CreateConversationBody(Body):
    """POST /v1/conversations."""

    items: Items | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None


class UpdateConversationBody(Body):
    """POST /v1/conversations/{id}. What is left out stays as it is; null empties it."""

    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None


class CreateItemsBody(Body):
    """POST /v1/conversations/{id}/items."""

    items: Annotated[Items, Field(min_length=1)]


class ForkBody(Body):
    """POST /v1/conversations/{id}/fork. Without metadata, the fork has the original's."""

    item_id: Annotated[str, Field(max_length=128)] | None = None
    metadata: Metadata | None = None


def included(
    include: Annotated[list[Includable] | None, Query()] = None,
    include_array: Annotated[list[Includable] | None, Query(alias="include[]")] = None,
) -> tuple[str, ...]:
    """What a client wants to see of items beyond the usual; SDKs write lists with brackets."""
    return (*(include or ()), *(include_array or ()))


IncludeDep = Annotated[tuple[str, ...], Depends(included)]
Limit = Annotated[int, Query(ge=1, le=100)]


async def _answered(interactive: Interactive, spec: TaskSpec[RequestT, contract.Body], message: RequestT) -> Response:
    reply, headers = await interactive.answer(spec, message)
    return json_response(reply.body, headers=headers | etag_header(reply.revision))


@router.post("", openapi_extra=body_schema(CreateConversationBody))
async def create_conversation(
    interactive: InteractiveDep,
    body: Annotated[CreateConversationBody, Depends(json_body(CreateConversationBody))],
) -> Response:
    """Begin a conversation, with items if there are some already."""
    message = contract.CreateConversation(
        conversation_id=new_id("conv"),
        created_at=int(time.time()),
        items=normalise_items(body.items or (), param="items"),
        metadata=body.metadata or {},
        expires_after_seconds=body.expires_after.in_seconds() if body.expires_after else None,
    )
    return await _answered(interactive, contract.CREATE_CONVERSATION, message)


@router.get("")
async def list_conversations(
    interactive: InteractiveDep, after: Cursor = None, limit: Limit = 20, order: Literal["asc", "desc"] = "desc"
) -> Response:
    """A page of conversations, newest first."""
    page = contract.ListConversations(after=after, limit=limit, order=order)
    return await _answered(interactive, contract.LIST_CONVERSATIONS, page)


@router.get("/{conversation_id}")
async def retrieve_conversation(conversation_id: str, interactive: InteractiveDep) -> Response:
    """One conversation."""
    message = contract.ConversationId(conversation_id=conversation_id)
    return await _answered(interactive, contract.RETRIEVE_CONVERSATION, message)


@router.post("/{conversation_id}", openapi_extra=body_schema(UpdateConversationBody))
async def update_conversation(
    conversation_id: str,
    interactive: InteractiveDep,
    body: Annotated[UpdateConversationBody, Depends(json_body(UpdateConversationBody))],
    if_match: IfMatchDep,
) -> Response:
    """Replace a conversation's metadata, its retention, or both."""
    message = contract.UpdateConversation(
        conversation_id=conversation_id,
        if_match=if_match,
        metadata=(body.metadata or {}) if "metadata" in body.model_fields_set else None,
        expires_after_seconds=body.expires_after.in_seconds() if body.expires_after else None,
        sets_expiry="expires_after" in body.model_fields_set,
    )
    return await _answered(interactive, contract.UPDATE_CONVERSATION, message)


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, interactive: InteractiveDep, if_match: IfMatchDep) -> Response:
    """Destroy a conversation's key, and with it every item."""
    message = contract.ChangeConversation(conversation_id=conversation_id, if_match=if_match)
    _, headers = await interactive.answer(contract.DELETE_CONVERSATION, message)
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True}, headers=headers)


@router.post("/{conversation_id}/fork", openapi_extra=body_schema(ForkBody))
async def fork_conversation(
    conversation_id: str, interactive: InteractiveDep, body: Annotated[ForkBody, Depends(json_body(ForkBody))]
) -> Response:
    """Begin a conversation with the items of another, up to one of them if it is named."""
    message = contract.ForkConversation(
        conversation_id=conversation_id,
        fork_id=new_id("conv"),
        created_at=int(time.time()),
        item_id=body.item_id,
        metadata=body.metadata,
    )
    return await _answered(interactive, contract.FORK_CONVERSATION, message)


@router.get("/{conversation_id}/export")
async def export_conversation(
    conversation_id: str,
    interactive: InteractiveDep,
    form: Annotated[Literal["json", "markdown"], Query(alias="format")] = "json",
) -> Response:
    """A whole conversation as one download. It breaks off where an item cannot be read."""
    asked = contract.ConversationId(conversation_id=conversation_id)
    conversation, headers = await interactive.answer(contract.RETRIEVE_CONVERSATION, asked)
    first, _ = await interactive.answer(contract.LIST_ITEMS, first_page(conversation_id))
    export, kind, ending = (
        (exported_json, "application/json", "json")
        if form == "json"
        else (exported_markdown, "text/markdown; charset=utf-8", "md")
    )
    # The id that is stored, never the one from the URL, may stand in a header.
    named = {"content-disposition": f'attachment; filename="{conversation.body["id"]}.{ending}"'}
    return StreamingResponse(
        export(interactive, conversation.body, first.body), headers=headers | named, media_type=kind
    )


@router.post("/{conversation_id}/items", openapi_extra=body_schema(CreateItemsBody))
async def create_items(
    conversation_id: str,
    interactive: InteractiveDep,
    body: Annotated[CreateItemsBody, Depends(json_body(CreateItemsBody))],
    include: IncludeDep,
    if_match: IfMatchDep,
) -> Response:
    """Append items, all or none."""
    items = normalise_items(body.items, param="items")
    message = contract.CreateItems(conversation_id=conversation_id, if_match=if_match, items=items, include=include)
    return await _answered(interactive, contract.CREATE_ITEMS, message)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: str,
    interactive: InteractiveDep,
    include: IncludeDep,
    after: Cursor = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """A page of a conversation's items."""
    page = contract.ListItems(conversation_id=conversation_id, after=after, limit=limit, order=order, include=include)
    return await _answered(interactive, contract.LIST_ITEMS, page)


@router.get("/{conversation_id}/items/{item_id}")
async def retrieve_item(
    conversation_id: str, item_id: str, interactive: InteractiveDep, include: IncludeDep
) -> Response:
    """One item."""
    message = contract.ItemId(conversation_id=conversation_id, item_id=item_id, include=include)
    return await _answered(interactive, contract.RETRIEVE_ITEM, message)


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(
    conversation_id: str, item_id: str, interactive: InteractiveDep, if_match: IfMatchDep
) -> Response:
    """Delete one item; the reply is its conversation."""
    message = contract.DeleteItem(conversation_id=conversation_id, item_id=item_id, if_match=if_match)
    return await _answered(interactive, contract.DELETE_ITEM, message)
