"""Responses: answers that may be stored, continue a conversation, and be read again."""

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Response

from libs.common.contracts.base import Message, TaskSpec
from libs.common.contracts.chat import ANSWER, Answer, AnswerRequest
from libs.common.contracts.conversations import (
    DELETE_RESPONSE,
    LIST_INPUT_ITEMS,
    OPEN_TURN,
    RETRIEVE_RESPONSE,
    ListInputItems,
    OpenTurn,
    ResponseId,
)
from libs.common.contracts.response_requests import ResponseBody
from libs.common.errors import ErrorCode, PermanentError
from services.gateway import answer_cache, background
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import Gateway, GatewayDep
from services.gateway.idempotency import ReplayedRoute
from services.gateway.parameters import Cursor
from services.gateway.routes.models import chat_model
from services.gateway.streams import Interactive, InteractiveDep, event_stream, json_response

RequestT = TypeVar("RequestT", bound=Message)

router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=ReplayedRoute)


@router.post("", openapi_extra=body_schema(ResponseBody))
async def create_response(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[ResponseBody, Depends(json_body(ResponseBody))],
) -> Response:
    """Answer, by `file_search` where that tool is given, and store the answer unless `store` is false."""
    _check(body)
    question = body.to_answer(chat_model(gateway, body.model))
    if body.background:
        return await _started(gateway, interactive.principal.tenant_id, body, question)
    if body.conversation_id is None and body.previous_response_id is None:
        if question.turn is None:
            return await answer_cache.answered(interactive, question)
        return await _answered(interactive, ANSWER, question, question, stored=body.is_stored)
    opening = OpenTurn(
        answer=question, conversation_id=body.conversation_id, previous_response_id=body.previous_response_id
    )
    return await _answered(interactive, OPEN_TURN, opening, question, stored=body.is_stored)


async def _answered(
    interactive: Interactive,
    spec: TaskSpec[RequestT, Answer],
    message: RequestT,
    question: AnswerRequest,
    *,
    stored: bool,
) -> Response:
    if question.stream:
        return await interactive.stream(spec, message, call_id=question.id, keep_events=stored)
    return await interactive.body(spec, message, call_id=question.id)


async def _started(gateway: Gateway, tenant_id: str, body: ResponseBody, question: AnswerRequest) -> Response:
    opening = OpenTurn(
        answer=question, conversation_id=body.conversation_id, previous_response_id=body.previous_response_id
    )
    response = await background.start(gateway, tenant_id, opening)
    if question.stream:
        return event_stream(background.events(gateway, tenant_id, question.id, after=-1))
    return json_response(response)


def _check(body: ResponseBody) -> None:
    if body.background:
        background.check_background(stored=body.is_stored)
    if body.conversation_id and body.previous_response_id:
        raise PermanentError(
            ErrorCode.INVALID_VALUE,
            "Give either 'conversation' or 'previous_response_id', not both.",
            param="previous_response_id",
        )


@router.get("/{response_id}")
async def retrieve_response(
    response_id: str,
    gateway: GatewayDep,
    interactive: InteractiveDep,
    *,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """One stored response, or its stream again from the event after `starting_after`."""
    tenant_id = interactive.principal.tenant_id
    response = await background.unfinished(gateway, tenant_id, response_id)
    if stream:
        return await _resumed(gateway, tenant_id, response_id, starting_after, known=response is not None)
    if response is not None:
        return json_response(response)
    return await interactive.body(RETRIEVE_RESPONSE, ResponseId(response_id=response_id))


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, gateway: GatewayDep, interactive: InteractiveDep) -> Response:
    """Stop a background response; one that is finished already is returned as it is."""
    response = await background.cancel(gateway, interactive.principal.tenant_id, response_id)
    if response is not None:
        return json_response(response)
    return await interactive.body(RETRIEVE_RESPONSE, ResponseId(response_id=response_id))


async def _resumed(
    gateway: Gateway, tenant_id: str, response_id: str, starting_after: int | None, *, known: bool
) -> Response:
    if not known and not await gateway.events.exists(tenant_id, response_id):
        raise PermanentError(
            ErrorCode.NOT_FOUND,
            "No stream is kept for this response. Streams can be resumed for some minutes after their end.",
        )
    after = -1 if starting_after is None else starting_after
    return event_stream(background.events(gateway, tenant_id, response_id, after=after))


@router.delete("/{response_id}")
async def delete_response(response_id: str, interactive: InteractiveDep) -> Response:
    """Forget one stored response: its key is destroyed."""
    _, headers = await interactive.answer(DELETE_RESPONSE, ResponseId(response_id=response_id))
    return json_response({"id": response_id, "object": "response", "deleted": True}, headers=headers)


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    interactive: InteractiveDep,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """What a stored response was asked."""
    page = ListInputItems(response_id=response_id, after=after, limit=limit, order=order)
    return await interactive.body(LIST_INPUT_ITEMS, page)
