"""Legacy completions: texts continued by a chat model."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.completions import COMPLETE, CompletionBody
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import GatewayDep
from services.gateway.idempotency import StatelessRoute
from services.gateway.routes.models import require_chat_model
from services.gateway.streams import InteractiveDep

router = APIRouter(prefix="/v1/completions", tags=["completions"], route_class=StatelessRoute)


@router.post("", openapi_extra=body_schema(CompletionBody))
async def create_completion(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[CompletionBody, Depends(json_body(CompletionBody))],
) -> Response:
    """Continue one text or several."""
    require_chat_model(gateway, body.model)
    question = body.to_completion()
    if question.stream:
        return await interactive.stream(COMPLETE, question, call_id=question.id)
    return await interactive.body(COMPLETE, question, call_id=question.id)
