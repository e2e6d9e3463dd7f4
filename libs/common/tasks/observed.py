"""How handling a message is traced, measured and logged: one place for both lanes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from libs.common import logs, metrics, telemetry
from libs.common.ledger import ClaimedJob
from libs.common.tasks.wire import Envelope


@contextmanager
def handling_request(envelope: Envelope, queue: str, wait_seconds: float) -> Iterator[None]:
    """Around an interactive handler: its wait and its work continue the caller's trace."""
    metrics.QUEUE_WAIT_SECONDS.labels(queue=queue).observe(wait_seconds)
    now_ns = time.time_ns()
    telemetry.record_span(
        "queue wait",
        now_ns - int(wait_seconds * 1e9),
        now_ns,
        traceparent=envelope.traceparent,
        attributes={telemetry.MESSAGING_DESTINATION_NAME: queue},
    )
    attributes: dict[str, AttributeValue] = {telemetry.REQUEST_ID: envelope.id, telemetry.ATTEMPT: envelope.attempt}
    with (
        logs.log_context(request_id=envelope.id, tenant_id=envelope.tenant_id),
        telemetry.span_from(envelope.traceparent, envelope.task, kind=SpanKind.CONSUMER, attributes=attributes),
        _timed(envelope.task),
    ):
        yield


@contextmanager
def handling_job(job: ClaimedJob) -> Iterator[None]:
    """Around a job's handler: a trace of its own, linked to the one that submitted it."""
    metrics.QUEUE_WAIT_SECONDS.labels(queue=job.queue).observe(max(0.0, job.queued_seconds))
    metrics.JOB_ATTEMPTS.labels(kind=job.name).inc()
    attributes: dict[str, AttributeValue] = {telemetry.JOB_ID: job.id, telemetry.ATTEMPT: job.attempt}
    with (
        logs.log_context(job_id=job.id, tenant_id=job.tenant_id),
        telemetry.linked_span(job.traceparent, job.name, attributes=attributes),
        _timed(job.name),
    ):
        yield


@contextmanager
def _timed(task: str) -> Iterator[None]:
    started = time.perf_counter()
    outcome = "error"
    try:
        yield
        outcome = "ok"
    finally:
        metrics.HANDLER_SECONDS.labels(task=task, outcome=outcome).observe(time.perf_counter() - started)
