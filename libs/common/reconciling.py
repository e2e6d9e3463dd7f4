"""What keeps the queues in step with the ledger: which messages to push, which were lost, and who looks after it."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from libs.common import ledger
from libs.common.ledger import QUEUED, RUNNING, ChargedJob
from libs.common.records.database import epoch_now
from libs.common.records.dead_jobs import mark_dead
from libs.common.records.tables import jobs, leases

_DUE_SUSPECT: Final = (
    select(jobs.c.id)
    .where(
        jobs.c.queue == bindparam("of_queue"),
        jobs.c.state == QUEUED,
        jobs.c.suspect.is_(True),
        jobs.c.dispatched_at.is_(None),
        jobs.c.due_at <= epoch_now(),
    )
    .limit(1)
)


def take_suspect(connection: Connection, queue: str) -> list[tuple[str, str, str]]:
    """Choose the suspect that has waited longest, unless another one of the queue is under way, and mark it dispatched.

    Returns:
        At most one (job id, tenant id, task name).
    """
    waiting = and_(jobs.c.queue == queue, jobs.c.state == QUEUED, jobs.c.suspect.is_(True))
    due = and_(waiting, jobs.c.dispatched_at.is_(None), jobs.c.due_at <= epoch_now())
    under_way = or_(jobs.c.state == RUNNING, and_(jobs.c.state == QUEUED, jobs.c.dispatched_at.is_not(None)))
    if connection.execute(_DUE_SUSPECT, {"of_queue": queue}).one_or_none() is None:
        return []
    # The lease is nobody's for long: its row makes two dispatchers look one after the other, and so never take two.
    if not take_lease(connection, f"suspects:{queue}", "dispatchers", seconds=0.0):
        return []
    others = select(jobs.c.id).where(jobs.c.queue == queue, jobs.c.suspect.is_(True), under_way).limit(1)
    if connection.execute(others).one_or_none() is not None:
        return []
    first = select(jobs.c.id).where(due).order_by(jobs.c.due_at, jobs.c.id).limit(1).scalar_subquery()
    taken = connection.execute(
        update(jobs)
        .where(jobs.c.id == first, waiting, jobs.c.dispatched_at.is_(None))
        .values(dispatched_at=epoch_now())
        .returning(jobs.c.id, jobs.c.tenant_id, jobs.c.name)
    ).all()
    return [(row.id, row.tenant_id, row.name) for row in taken]


def reap(connection: Connection, queue: str, *, max_attempts: int) -> tuple[list[str], list[ChargedJob]]:
    """Take back the jobs whose leases have expired; the records of those that are dead now show it.

    Returns:
        The ids of the new suspects, and the jobs that failed by ending their workers.
    """
    charged = ledger.charge_deaths(connection, queue, max_attempts=max_attempts)
    for job in charged:
        if job.dead:
            mark_dead(
                connection,
                name=job.name,
                job_id=job.id,
                tenant_id=job.tenant_id,
                resource_id=job.resource_id,
                error=job.error,
            )
    return ledger.reap_expired(connection, queue), charged


def undo_dispatch(connection: Connection, job_ids: Iterable[str]) -> None:
    """Their messages did not reach the broker: let the next round choose them again."""
    connection.execute(
        update(jobs).where(jobs.c.id.in_(list(job_ids)), jobs.c.state == QUEUED).values(dispatched_at=None)
    )


def forget_lost_messages(connection: Connection, queue: str, *, older_than_seconds: float) -> int:
    """Make jobs dispatchable whose messages must be lost: soon when the queue was seen empty, late whatever its depth.

    A message that was not lost after all is harmless: its job can be claimed once.

    Returns:
        How many there were.
    """
    result = connection.execute(
        update(jobs)
        .where(
            jobs.c.queue == queue,
            jobs.c.state == QUEUED,
            jobs.c.dispatched_at < epoch_now() - older_than_seconds,
        )
        .values(dispatched_at=None)
    )
    return result.rowcount


def counts(connection: Connection, queue: str) -> dict[tuple[str, str], int]:
    """How many jobs of a queue there are by (task name, state), terminal states left out."""
    rows = connection.execute(
        select(jobs.c.name, jobs.c.state, func.count())
        .where(jobs.c.queue == queue, jobs.c.state.in_([QUEUED, RUNNING]))
        .group_by(jobs.c.name, jobs.c.state)
    )
    return {(name, state): count for name, state, count in rows}


def take_lease(connection: Connection, name: str, holder: str, *, seconds: float) -> bool:
    """Become, or stay, the one process that does a piece of shared upkeep.

    Returns:
        Whether `holder` has the lease for the next `seconds`.
    """
    now = epoch_now()
    taken = connection.execute(
        update(leases)
        .where(leases.c.name == name, or_(leases.c.holder == holder, leases.c.expires_at < now))
        .values(holder=holder, expires_at=now + seconds)
    )
    if taken.rowcount == 1:
        return True
    if connection.execute(select(leases.c.name).where(leases.c.name == name)).one_or_none() is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(insert(leases).values(name=name, holder=holder, expires_at=now + seconds))
    except IntegrityError:
        return False  # another process was the first
    return True
