"""What a response would be asked: counted, or made shorter. Nothing is answered and nothing is stored."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.compaction import COMPACT, OPEN_COMPACTION, CompactBody, OpenCompaction
from libs.common.contracts.input_tokens import COUNT_TOKENS, InputTokensBody
from libs.common.errors import ErrorCode, PermanentError
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import GatewayDep
from services.gateway.idempotency import StatelessRoute
from services.gateway.routes.models import require_chat_model
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=StatelessRoute)


@router.post("/input_tokens", openapi_extra=body_schema(InputTokensBody))
async def count_input_tokens(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[InputTokensBody, Depends(json_body(InputTokensBody))],
) -> Response:
    """Estimate the input tokens of a response, history included."""
    if body.model is not None:
        require_chat_model(gateway, body.model)
    question = body.to_count()
    if question.conversation_id and question.previous_response_id:
        raise PermanentError(
            ErrorCode.INVALID_VALUE,
            "Give either 'conversation' or 'previous_response_id', not both.",
            param="previous_response_id",
        )
    count, headers = await interactive.answer(COUNT_TOKENS, question)
    return json_response({"object": "response.input_tokens", "input_tokens": count.tokens}, headers=headers)


@router.post("/compact", openapi_extra=body_schema(CompactBody))
async def compact_response(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[CompactBody, Depends(json_body(CompactBody))],
) -> Response:
    """Put what was said in short: users' messages, and one sealed item for all else."""
    require_chat_model(gateway, body.model)
    compaction = body.to_compact()
    if body.previous_response_id is None:
        return await interactive.body(COMPACT, compaction, call_id=compaction.id)
    opening = OpenCompaction(compaction=compaction, previous_response_id=body.previous_response_id)
    return await interactive.body(OPEN_COMPACTION, opening, call_id=compaction.id)
