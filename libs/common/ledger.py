"""The job ledger: the record is the truth, the queue is a hint.

Every function moves jobs in the caller's transaction, so accepting work, doing its last step and moving its job are
one commit. `attempt` is the fencing token: it grows with every claim, and a writer that holds an old one is refused.
docs/jobs.md draws the states and who may move a job where.
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Row,
    and_,
    bindparam,
    case,
    func,
    insert,
    select,
    tuple_,
    update,
)

from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError, not_found
from libs.common.records.database import epoch_now
from libs.common.records.tables import jobs

QUEUED: Final = "queued"
RUNNING: Final = "running"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
TERMINAL: Final = frozenset({SUCCEEDED, FAILED, CANCELLED})

_BACKOFF_SECONDS: Final = (1.0, 5.0, 30.0)
# Built once: to build a statement takes several times as long as to run it.
_SUBMIT: Final = insert(jobs).values(
    state=QUEUED,
    attempt=0,
    failures=0,
    suspect=False,
    alone=False,
    due_at=epoch_now() + bindparam("delay_seconds", type_=Float),
    cancel_requested=False,
    progress_done=0,
    progress_total=0,
    created_at=epoch_now(),
)
_TOTAL: Final = func.coalesce(bindparam("total", type_=Integer), jobs.c.progress_total)
_SUCCEED: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.attempt == bindparam("of_attempt"), jobs.c.state == RUNNING)
    .values(
        state=SUCCEEDED,
        suspect=False,
        alone=False,
        progress_done=_TOTAL,
        progress_total=_TOTAL,
        finished_at=epoch_now(),
        lease_expires_at=None,
        worker=None,
        error_code=None,
        error_message=None,
    )
)


class LeaseLostError(Exception):
    """The job was claimed by somebody else or ended meanwhile: whatever this attempt did must not count."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be recorded. `sealed_request` is the request sealed for the queue, bound to the job's id."""

    id: str
    tenant_id: str
    name: str
    queue: str
    resource_id: str
    sealed_request: bytes
    traceparent: str | None = None
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker may work on until its lease ends."""

    id: str
    tenant_id: str
    name: str
    queue: str
    resource_id: str
    attempt: int
    failures: int
    suspect: bool
    sealed_request: bytes
    traceparent: str | None
    queued_seconds: float
    begun_seconds: float = 0.0  # since its first attempt began, or the first one after it was requeued


_COMPUTED: Final[dict[str, ColumnElement[float]]] = {
    "queued_seconds": epoch_now() - jobs.c.due_at,
    "begun_seconds": epoch_now() - jobs.c.started_at,
}
_CLAIM: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.state == QUEUED, jobs.c.due_at <= epoch_now())
    .values(
        state=RUNNING,
        attempt=jobs.c.attempt + 1,
        worker=bindparam("by_worker"),
        lease_expires_at=epoch_now() + bindparam("lease_seconds", type_=Float),
        started_at=func.coalesce(jobs.c.started_at, epoch_now()),
    )
    .returning(
        *(_COMPUTED[name].label(name) if name in _COMPUTED else jobs.c[name] for name in ClaimedJob.__annotations__)
    )
)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What the heartbeat learned of one job: whether the lease still holds and whether a person asked to stop it."""

    job_id: str
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class ChargedJob:
    """A job that ended its worker's process, and whether it is dead for that."""

    id: str
    tenant_id: str
    name: str
    resource_id: str
    error: PlatformError
    dead: bool


def new_job_id() -> str:
    """A fresh job id."""
    return f"job_{uuid.uuid4().hex}"


def submit(connection: Connection, *new_jobs: NewJob) -> None:
    """Record jobs; once committed they will be done, whether or not a broker is up."""
    if new_jobs:
        connection.execute(_SUBMIT, [asdict(job) for job in new_jobs])


def claim(connection: Connection, job_id: str, worker: str, *, lease_seconds: float) -> ClaimedJob | None:
    """Take a queued job: None when somebody else has it, it ended, or it is not due yet."""
    row = connection.execute(
        _CLAIM, {"job_id": job_id, "by_worker": worker, "lease_seconds": lease_seconds}
    ).one_or_none()
    if row is None:
        return None
    return ClaimedJob(*row)


def renew(connection: Connection, held: Sequence[tuple[str, int]], *, lease_seconds: float) -> list[Renewal]:
    """Extend the leases of (job id, attempt) pairs; a pair missing from the result has lost its lease."""
    rows = connection.execute(
        update(jobs)
        .where(tuple_(jobs.c.id, jobs.c.attempt).in_(list(held)), jobs.c.state == RUNNING)
        .values(lease_expires_at=epoch_now() + lease_seconds)
        .returning(jobs.c.id, jobs.c.cancel_requested)
    ).all()
    return [Renewal(row.id, row.cancel_requested) for row in rows]


def check(connection: Connection, job_id: str, attempt: int) -> None:
    """Hold the job's row for this transaction, so that a guarded step and the lease cannot part.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    _move(connection, job_id, attempt, {"attempt": attempt})


def run_alone(connection: Connection, job_id: str, attempt: int) -> None:
    """Note that no other job runs in this worker's process: its death from now on is this job's failure.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    _move(connection, job_id, attempt, {"alone": True})


def report_progress(connection: Connection, job_id: str, attempt: int, *, done: int, total: int) -> None:
    """Let pollers see how far a job is.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    _move(connection, job_id, attempt, {"progress_done": done, "progress_total": total})


def succeed(connection: Connection, job_id: str, attempt: int, *, total: int | None = None) -> None:
    """End a job in the same transaction as its last step.

    Args:
        total: of its progress, unless that was reported last time.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    ended = connection.execute(_SUCCEED, {"job_id": job_id, "of_attempt": attempt, "total": total})
    if ended.rowcount != 1:
        raise LeaseLostError(f"job {job_id}, attempt {attempt}")


def end_cancelled(connection: Connection, job_id: str, attempt: int) -> None:
    """End a running job that a person asked to stop.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    _move(connection, job_id, attempt, {"state": CANCELLED, **_ended(None)})


def fail(
    connection: Connection, job_id: str, attempt: int, error: PlatformError, *, failures: int, max_attempts: int
) -> bool:
    """Record a failed attempt: back to the queue after a pause while tries remain, else dead.

    Args:
        failures: failures before this one, as claimed.

    Returns:
        Whether the job is dead now.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    dead = not error.code.kind.retryable or failures + 1 >= max_attempts
    if dead:
        _move(connection, job_id, attempt, {"state": FAILED, "failures": failures + 1, **_ended(error)})
    else:
        pause = error.retry_after_seconds or _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
        _move(connection, job_id, attempt, {"failures": failures + 1, **_waiting(pause, error)})
    return dead


def release(
    connection: Connection,
    job_id: str,
    attempt: int,
    *,
    pause_seconds: float = 0.0,
    error: PlatformError | None = None,
) -> None:
    """Hand a job back unfinished, as a draining worker does: not its failure, due after the pause.

    Args:
        error: what it waits for to be over, for pollers to see.

    Raises:
        LeaseLostError: this attempt no longer holds the job.
    """
    _move(connection, job_id, attempt, _waiting(pause_seconds, error))


def reap_expired(connection: Connection, queue: str) -> list[str]:
    """Put jobs back whose worker died or hangs while it may have run others: suspects, but charged with nothing.

    Returns:
        The ids of these jobs.
    """
    return list(
        connection.execute(
            update(jobs)
            .where(_expired(queue), jobs.c.alone.is_(False))
            .values(**_waiting(0.0, None), suspect=True)
            .returning(jobs.c.id)
        ).scalars()
    )


def charge_deaths(connection: Connection, queue: str, *, max_attempts: int) -> list[ChargedJob]:
    """Count a failure of each job whose worker died or hangs while it ran alone.

    Returns:
        These jobs, dead or waiting for their next try alone.
    """
    rows = connection.execute(
        select(jobs).where(_expired(queue), jobs.c.alone.is_(True)).with_for_update()  # a late renewal must not part us
    ).all()
    charged = []
    for row in rows:
        count = f"failure {row.failures + 1} of {max_attempts}"
        error = RetryableError(
            ErrorCode.SERVER_ERROR, f"The job ended its worker process while running alone ({count})."
        )
        dead = fail(connection, row.id, row.attempt, error, failures=row.failures, max_attempts=max_attempts)
        charged.append(ChargedJob(row.id, row.tenant_id, row.name, row.resource_id, error, dead))
    return charged


def cancel(connection: Connection, tenant_id: str, job_id: str) -> None:
    """Stop a job: at once while it waits, at its next step while it runs.

    Raises:
        PermanentError: NOT_FOUND, or JOB_NOT_CANCELLABLE when it has ended already.
    """
    # Locked: between two statements the job could go from running to queued, and neither update would meet it.
    row = connection.execute(
        select(jobs.c.state).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise not_found("job", job_id)
    if row.state in TERMINAL:
        raise PermanentError(ErrorCode.JOB_NOT_CANCELLABLE, f"Job '{job_id}' has ended already: it is {row.state}.")
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id, jobs.c.state == QUEUED)
        .values(state=CANCELLED, **_ended(None))
    )
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id, jobs.c.state == RUNNING)
        .values(cancel_requested=True)
    )


def requeue(connection: Connection, tenant_id: str, job_id: str) -> None:
    """Give a dead job a fresh set of tries.

    Raises:
        PermanentError: NOT_FOUND, or JOB_NOT_REQUEUEABLE unless it is dead.
    """
    get(connection, tenant_id, job_id)
    revived = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id, jobs.c.state == FAILED)
        .values(
            {
                **_waiting(0.0, None),
                "state": QUEUED,
                "failures": 0,
                "suspect": False,
                "started_at": None,
                "finished_at": None,
                "cancel_requested": False,
            }
        )
    )
    if revived.rowcount == 0:
        raise PermanentError(ErrorCode.JOB_NOT_REQUEUEABLE, f"Job '{job_id}' has not failed: only failed jobs can be.")


def get(connection: Connection, tenant_id: str, job_id: str) -> Row[Any]:
    """One job's row.

    Raises:
        PermanentError: NOT_FOUND, for a missing job and a foreign one alike.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job_id, jobs.c.tenant_id == tenant_id)).one_or_none()
    if row is None:
        raise not_found("job", job_id)
    return row


def _move(connection: Connection, job_id: str, attempt: int, values: dict[str, Any]) -> None:
    moved = connection.execute(update(jobs).where(_held(job_id, attempt)).values(**values))
    if moved.rowcount != 1:
        raise LeaseLostError(f"job {job_id}, attempt {attempt}")


def _held(job_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == RUNNING)


def _expired(queue: str) -> ColumnElement[bool]:
    return and_(jobs.c.queue == queue, jobs.c.state == RUNNING, jobs.c.lease_expires_at < epoch_now())


def _ended(error: PlatformError | None) -> dict[str, Any]:
    return {
        "finished_at": epoch_now(),
        "alone": False,
        "lease_expires_at": None,
        "worker": None,
        "error_code": error.code.value if error else None,
        "error_message": error.message if error else None,
    }


def _waiting(pause_seconds: float, error: PlatformError | None) -> dict[str, Any]:
    # A job that a person asked to stop does not wait for another try: leaving its worker's hands is its end.
    return {
        "state": case((jobs.c.cancel_requested, CANCELLED), else_=QUEUED),
        "finished_at": case((jobs.c.cancel_requested, epoch_now())),
        "dispatched_at": None,
        "alone": False,
        "due_at": epoch_now() + pause_seconds,
        "lease_expires_at": None,
        "worker": None,
        "error_code": error.code.value if error else None,
        "error_message": error.message if error else None,
    }
