"""Stored chat completions. Every verb is a command to the conversations service, which alone can read them."""

import re
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from libs.common.contracts import stored_completions as contract
from libs.common.contracts.requests import Body, Metadata
from libs.common.contracts.validation import validated
from services.gateway.bodies import body_schema, json_body
from services.gateway.idempotency import IdempotentRoute
from services.gateway.parameters import Cursor
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1/chat/completions", tags=["stored completions"], route_class=IdempotentRoute)

_METADATA: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)

Limit = Annotated[int, Query(ge=0, le=100)]


class UpdateCompletionBody(Body):
    """POST /v1/chat/completions/{id}. Null empties the metadata."""

    metadata: Metadata | None


class _Filter(BaseModel):
    metadata: Metadata


def metadata_filter(request: Request) -> dict[str, str]:
    """What listed completions must have of metadata, as SDKs write it: `metadata[key]=value`.

    Raises:
        PermanentError: INVALID_VALUE.
    """
    named = {match[1]: value for name, value in request.query_params.items() if (match := _METADATA.fullmatch(name))}
    return validated(_Filter, {"metadata": named}).metadata


@router.get("")
async def list_completions(
    interactive: InteractiveDep,
    metadata: Annotated[dict[str, str], Depends(metadata_filter)],
    after: Cursor = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "asc",
    model: Annotated[str | None, Query(max_length=256)] = None,
) -> Response:
    """A page of stored completions, oldest first."""
    page = contract.ListCompletions(after=after, limit=limit, order=order, model=model, metadata=metadata)
    return await interactive.body(contract.LIST_COMPLETIONS, page)


@router.get("/{completion_id}")
async def retrieve_completion(completion_id: str, interactive: InteractiveDep) -> Response:
    """One stored completion."""
    message = contract.CompletionId(completion_id=completion_id)
    return await interactive.body(contract.RETRIEVE_COMPLETION, message)


@router.post("/{completion_id}", openapi_extra=body_schema(UpdateCompletionBody))
async def update_completion(
    completion_id: str,
    interactive: InteractiveDep,
    body: Annotated[UpdateCompletionBody, Depends(json_body(UpdateCompletionBody))],
) -> Response:
    """Replace a stored completion's metadata."""
    message = contract.UpdateCompletion(completion_id=completion_id, metadata=body.metadata or {})
    return await interactive.body(contract.UPDATE_COMPLETION, message)


@router.delete("/{completion_id}")
async def delete_completion(completion_id: str, interactive: InteractiveDep) -> Response:
    """Forget one stored completion: its key is destroyed."""
    message = contract.CompletionId(completion_id=completion_id)
    _, headers = await interactive.answer(contract.DELETE_COMPLETION, message)
    return json_response({"id": completion_id, "object": "chat.completion.deleted", "deleted": True}, headers=headers)


@router.get("/{completion_id}/messages")
async def list_completion_messages(
    completion_id: str,
    interactive: InteractiveDep,
    after: Cursor = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "asc",
) -> Response:
    """What a stored completion was asked."""
    page = contract.ListCompletionMessages(completion_id=completion_id, after=after, limit=limit, order=order)
    return await interactive.body(contract.LIST_COMPLETION_MESSAGES, page)
