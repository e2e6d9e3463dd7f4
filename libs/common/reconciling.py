"""What keeps the queues in step with the ledger: which messages to push, which were lost, and who looks after it."""

from collections.abc import Iterable

from sqlalchemy import Connection, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from libs.common.ledger import QUEUED, RUNNING
from libs.common.records.database import epoch_now
from libs.common.records.tables import jobs, leases


def take_dispatchable(connection: Connection, queue: str, *, window: int, limit: int) -> list[tuple[str, str, str]]:
    """Choose the jobs whose messages go into the queue next, and mark them dispatched.

    Tenants take turns, and none has more than `window` messages waiting, so the backlog waits here and nobody
    starves behind it.

    Returns:
        (job id, tenant id, task name) of each, in the order to push.
    """
    waiting = (
        select(jobs.c.tenant_id, func.count().label("waiting"))
        .where(jobs.c.queue == queue, jobs.c.state == QUEUED, jobs.c.dispatched_at.is_not(None))
        .group_by(jobs.c.tenant_id)
        .subquery()
    )
    turn = func.row_number().over(partition_by=jobs.c.tenant_id, order_by=(jobs.c.due_at, jobs.c.id)).label("turn")
    candidates = (
        select(jobs.c.id, jobs.c.tenant_id, jobs.c.name, turn)
        .where(
            jobs.c.queue == queue,
            jobs.c.state == QUEUED,
            jobs.c.dispatched_at.is_(None),
            jobs.c.due_at <= epoch_now(),
        )
        .subquery()
    )
    chosen = connection.execute(
        select(candidates.c.id, candidates.c.tenant_id, candidates.c.name)
        .join(waiting, waiting.c.tenant_id == candidates.c.tenant_id, isouter=True)
        .where(candidates.c.turn + func.coalesce(waiting.c.waiting, 0) <= window)
        .order_by(candidates.c.turn, candidates.c.tenant_id)
        .limit(limit)
    ).all()
    if not chosen:
        return []
    marked = set(
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_([row.id for row in chosen]), jobs.c.state == QUEUED, jobs.c.dispatched_at.is_(None))
            .values(dispatched_at=epoch_now())
            .returning(jobs.c.id)
        ).scalars()
    )
    return [(row.id, row.tenant_id, row.name) for row in chosen if row.id in marked]


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
