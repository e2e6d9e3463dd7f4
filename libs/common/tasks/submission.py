"""Recording a job together with whatever the caller writes: one transaction is the whole promise."""

from typing import TypeVar

from sqlalchemy import Connection

from libs.common import ledger, telemetry
from libs.common.contracts.base import JobSpec, Message
from libs.common.ledger import NewJob
from libs.common.tasks.wire import MessageSealer

RequestT = TypeVar("RequestT", bound=Message)


def submit(
    connection: Connection,
    messages: MessageSealer,
    spec: JobSpec[RequestT],
    request: RequestT,
    *,
    tenant_id: str,
    resource_id: str,
    delay_seconds: float = 0.0,
) -> str:
    """Record a job in the caller's transaction. Nudge the dispatcher after the commit, or wait for its next round.

    Returns:
        The job's id.
    """
    job = new_job(messages, spec, request, tenant_id=tenant_id, resource_id=resource_id, delay_seconds=delay_seconds)
    ledger.submit(connection, job)
    return job.id


def new_job(
    messages: MessageSealer,
    spec: JobSpec[RequestT],
    request: RequestT,
    *,
    tenant_id: str,
    resource_id: str,
    delay_seconds: float = 0.0,
) -> NewJob:
    """A job with an id of its own, for `ledger.submit` to record together with others."""
    job_id = ledger.new_job_id()
    return NewJob(
        id=job_id,
        tenant_id=tenant_id,
        name=spec.name,
        queue=spec.queue,
        resource_id=resource_id,
        sealed_request=messages.seal_job_request(spec.queue, job_id, request.model_dump_json().encode()),
        traceparent=telemetry.current_traceparent(),
        delay_seconds=delay_seconds,
    )
