"""Batches: many requests in one file, answered within a day."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field
from sqlalchemy import Connection, Row, select

from libs.common import batch_jobs
from libs.common.contracts.requests import Body, Metadata, new_id
from libs.common.errors import ErrorCode, PermanentError, not_found
from libs.common.records import batches
from libs.common.records.tables import files
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.idempotency import IdempotentRoute
from services.gateway.parameters import Cursor
from services.gateway.streams import json_response

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=IdempotentRoute)

_WINDOW_SECONDS: Final = {"24h": 86_400.0}
_TIMES: Final = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
    "expires_at",
)  # fmt: skip


class ExpiresAfter(Body):
    """When the files of a batch's results are deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateBatch(Body):
    """POST /v1/batches."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=128)]
    endpoint: Literal["/v1/chat/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("", openapi_extra=body_schema(CreateBatch))
async def create_batch(
    gateway: GatewayDep, principal: AdmittedDep, body: Annotated[CreateBatch, Depends(json_body(CreateBatch))]
) -> Response:
    """Accept a batch; its file is checked before any of it is answered."""
    batch = batches.NewBatch(
        id=new_id("batch"),
        tenant_id=principal.tenant_id,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after=body.output_expires_after.model_dump() if body.output_expires_after else None,
    )

    def accept(connection: Connection) -> dict[str, Any]:
        _require_input(connection, principal.tenant_id, body.input_file_id)
        window_seconds = _WINDOW_SECONDS[body.completion_window]
        batch_jobs.open_batch(connection, gateway.messages, batch, window_seconds=window_seconds)
        return _shown(connection, principal.tenant_id, batch.id)

    reply = await gateway.database.write(accept)
    gateway.dispatcher.nudge()
    return json_response(reply)


@router.get("")
async def list_batches(
    gateway: GatewayDep,
    principal: AdmittedDep,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
) -> Response:
    """Batches, newest first."""

    def read(connection: Connection) -> list[dict[str, Any]]:
        rows = batches.page(connection, principal.tenant_id, after=after, limit=limit + 1)
        found = batches.counts(connection, principal.tenant_id, [row.id for row in rows])
        return [_object(row, found.get(row.id, batches.Counts())) for row in rows]

    rows = await gateway.database.read(read)
    data = rows[:limit]
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }
    )


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """One batch."""
    return json_response(
        await gateway.database.read(lambda connection: _shown(connection, principal.tenant_id, batch_id))
    )


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Answer no more of a batch; what was answered goes into its files."""

    def cancel(connection: Connection) -> dict[str, Any]:
        cancelled = batch_jobs.end_early(connection, gateway.messages, principal.tenant_id, batch_id, "cancelled")
        reply = _shown(connection, principal.tenant_id, batch_id)
        # A repeated request finds it being cancelled: no error.
        if not cancelled and reply["status"] != "cancelling":
            message = f"The batch cannot be cancelled any more: it is {reply['status']}."
            raise PermanentError(ErrorCode.BATCH_NOT_CANCELLABLE, message)
        return reply

    reply = await gateway.database.write(cancel)
    gateway.dispatcher.nudge()
    return json_response(reply)


def _require_input(connection: Connection, tenant_id: str, file_id: str) -> None:
    purpose = connection.execute(
        select(files.c.purpose).where(files.c.id == file_id, files.c.tenant_id == tenant_id)
    ).scalar_one_or_none()
    if purpose is None:
        raise not_found("file", file_id)
    if purpose != "batch":
        message = "The input file must have been uploaded with the purpose 'batch'."
        raise PermanentError(ErrorCode.INVALID_VALUE, message, param="input_file_id")


def _shown(connection: Connection, tenant_id: str, batch_id: str) -> dict[str, Any]:
    row = batches.get(connection, tenant_id, batch_id)
    found = batches.counts(connection, tenant_id, [batch_id])
    return _object(row, found.get(batch_id, batches.Counts()))


def _object(row: Row[Any], counts: batches.Counts) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": {"object": "list", "data": row.errors} if row.errors else None,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": int(row.created_at),
        **{name: _seconds(getattr(row, name)) for name in _TIMES},
        "request_counts": {"total": counts.total, "completed": counts.completed, "failed": counts.failed},
        "metadata": row.metadata,
    }


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
