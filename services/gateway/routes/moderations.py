"""Moderations: texts judged by the categories of the OpenAI API."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.moderation import MODERATE, ModerationBody
from services.gateway.bodies import body_schema, json_body
from services.gateway.idempotency import StatelessRoute
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1/moderations", tags=["moderations"], route_class=StatelessRoute)


@router.post("", openapi_extra=body_schema(ModerationBody))
async def create_moderation(
    interactive: InteractiveDep, body: Annotated[ModerationBody, Depends(json_body(ModerationBody))]
) -> Response:
    """Judge one text or several."""
    reply, headers = await interactive.answer(MODERATE, body.to_moderate())
    results = [verdict.as_result() for verdict in reply.verdicts]
    return json_response({"id": f"modr-{uuid.uuid4().hex}", "model": reply.model, "results": results}, headers=headers)
