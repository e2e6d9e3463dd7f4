"""Jobs: every asynchronous piece of work in one place."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection, RowMapping, select

from libs.common import ledger
from libs.common.records.paging import Page, PageQuery, listing, read_page
from libs.common.records.tables import jobs
from services.gateway import attachments
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.idempotency import ReplayedRoute
from services.gateway.parameters import Cursor
from services.gateway.streams import json_response

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ReplayedRoute)

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@router.get("")
async def list_jobs(
    gateway: GatewayDep,
    principal: AdmittedDep,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    state: State | None = None,
    resource_id: Annotated[str | None, Query(max_length=128)] = None,
) -> Response:
    """A page of jobs, newest first, of one state or one file or batch if asked for."""
    filters = [jobs.c.state == state] if state else []
    filters += [jobs.c.resource_id == resource_id] if resource_id else []

    def read(connection: Connection) -> Page[dict[str, Any]]:
        keys = (jobs.c.created_at, jobs.c.id)
        scope = [jobs.c.tenant_id == principal.tenant_id]
        page = read_page(connection, select(jobs), keys, PageQuery(after, limit, order), scope=scope, filters=filters)
        return page.of(_object)

    return json_response(listing(await gateway.database.read(read)))


@router.get("/{job_id}")
async def retrieve_job(job_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """One job."""
    return json_response(
        await gateway.database.read(lambda connection: shown_job(connection, principal.tenant_id, job_id))
    )


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Stop a job: at once while it waits, within seconds while it runs."""

    def cancel(connection: Connection) -> dict[str, Any]:
        attachments.cancel_job(connection, gateway.messages, principal.tenant_id, job_id)
        return shown_job(connection, principal.tenant_id, job_id)

    return json_response(await gateway.database.write(cancel))


@router.post("/{job_id}/requeue")
async def requeue_job(job_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Give a failed job new tries."""

    def requeue(connection: Connection) -> dict[str, Any]:
        attachments.requeue_job(connection, principal.tenant_id, job_id)
        return shown_job(connection, principal.tenant_id, job_id)

    reply = await gateway.database.write(requeue)
    gateway.dispatcher.nudge()
    return json_response(reply)


def shown_job(connection: Connection, tenant_id: str, job_id: str) -> dict[str, Any]:
    """A job as clients see it.

    Raises:
        PermanentError: NOT_FOUND.
    """
    # As a mapping, like the rows of a page.
    return _object(ledger.get(connection, tenant_id, job_id)._mapping)  # noqa: SLF001 - SQLAlchemy's public name


def _object(job: RowMapping) -> dict[str, Any]:
    error = {"code": job["error_code"], "message": job["error_message"]} if job["error_code"] else None
    return {
        "id": job["id"],
        "object": "job",
        "type": job["name"],
        "state": job["state"],
        "resource_id": job["resource_id"],
        "progress": {"done": job["progress_done"], "total": job["progress_total"]},
        "attempts": job["attempt"],
        "failures": job["failures"],
        "cancel_requested": job["cancel_requested"],
        "error": error,
        "created_at": job["created_at"],
        "started_at": job["started_at"],
        "finished_at": job["finished_at"],
    }
