"""How long a tenant's conversations and stored answers are kept after their last use, unless they say otherwise.

No conversation can have this address: ids begin with `conv_`.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.requests import Body
from libs.common.records.retention import retention, set_retention
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.idempotency import IdempotentRoute
from services.gateway.routes.conversations import ExpiresAfter
from services.gateway.streams import json_response

router = APIRouter(prefix="/v1/conversations/retention", tags=["conversations"], route_class=IdempotentRoute)


class RetentionBody(Body):
    """POST /v1/conversations/retention. Null keeps everything for ever."""

    expires_after: ExpiresAfter | None


@router.get("")
async def retrieve_retention(gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """The tenant's retention."""
    return _shown(await gateway.database.read(lambda connection: retention(connection, principal.tenant_id)))


@router.post("", openapi_extra=body_schema(RetentionBody))
async def update_retention(
    gateway: GatewayDep, principal: AdmittedDep, body: Annotated[RetentionBody, Depends(json_body(RetentionBody))]
) -> Response:
    """Set it for what there is and for what comes; what has expired by this is destroyed within minutes."""
    seconds = body.expires_after.in_seconds() if body.expires_after else None
    await gateway.database.write(lambda connection: set_retention(connection, principal.tenant_id, seconds))
    return _shown(seconds)


def _shown(seconds: float | None) -> Response:
    expires_after = None if seconds is None else {"anchor": "last_active_at", "seconds": int(seconds)}
    return json_response({"object": "conversation.retention", "expires_after": expires_after})
