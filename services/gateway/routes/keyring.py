"""The keyring, for administrators: its key ids, and having everything wrapped under the active key."""

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from libs.common.contracts.conversations import REWRAP_KEYS, RewrapKeys
from libs.common.errors import ErrorCode, PermanentError
from libs.common.tasks.submission import submit
from services.gateway.auth import Principal
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.idempotency import ReplayedRoute
from services.gateway.routes.jobs import shown_job
from services.gateway.streams import json_response

router = APIRouter(prefix="/v1/admin/keyring", tags=["admin"], route_class=ReplayedRoute)


def require_admin(principal: Principal) -> None:
    """Refuse whoever may not run the platform.

    Raises:
        PermanentError: INSUFFICIENT_SCOPE.
    """
    if not principal.scopes & {"*", "admin"}:
        raise PermanentError(ErrorCode.INSUFFICIENT_SCOPE, "This needs an API key with the scope 'admin'.")


@router.get("")
async def retrieve_keyring(gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """The ids of the keys that this gateway has: all of them open, the active one seals."""
    require_admin(principal)
    keyring = gateway.keyring
    return json_response({"object": "keyring", "active": keyring.active, "keys": list(keyring.key_ids)})


@router.post("/rotate")
async def rotate_keyring(gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Have the keys of all conversations and stored responses wrapped under the active key; the reply is the job."""
    require_admin(principal)
    request = RewrapKeys(key_id=gateway.keyring.active)

    def record(connection: Connection) -> str:
        tenant_id = principal.tenant_id
        return submit(connection, gateway.messages, REWRAP_KEYS, request, tenant_id=tenant_id, resource_id="keyring")

    job_id = await gateway.database.write(record)
    gateway.dispatcher.nudge()
    job = await gateway.database.read(lambda connection: shown_job(connection, principal.tenant_id, job_id))
    return json_response(job, status=202, headers={"location": f"/v1/jobs/{job_id}"})
