"""Which jobs get a place in a worker next: tenants share the places, and whoever has fewest under way comes first.

On a busy machine each job takes the longer the more run beside it. So what is bounded is not only how long a newcomer
waits for a place, but how many jobs of others run at all: those who were there of late share a part of the places, and
a smaller one while some of them have nothing waiting, whose next job is to take hardly longer than on an idle machine.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Any, Final

from sqlalchemy import CompoundSelect, Connection, Integer, Row, Select, and_, bindparam, func, select, update

from libs.common.ledger import QUEUED, RUNNING
from libs.common.records.database import epoch_now
from libs.common.records.tables import jobs

# Without a live worker a few messages wait, so that the first one to come finds work at once.
_FEWEST_PLACES: Final = 4
_RECENT_SECONDS: Final = 10.0
# Of their part, what is left to those with a backlog while there are others without: two jobs of 16 places.
_BESIDE_OTHERS: Final = 0.25
_ROUNDING: Final = 1e-9


class RecentTenants:
    """The tenants that had jobs due or under way in a queue within the last 10 s, as far as one process has seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}

    def joined_by(self, tenants: Iterable[str]) -> Set[str]:
        """Who they are, now that these were seen."""
        now = self._clock()
        self._seen |= dict.fromkeys(tenants, now)
        self._seen = {tenant: at for tenant, at in self._seen.items() if now - at < _RECENT_SECONDS}
        return self._seen.keys()


@dataclass(frozen=True, slots=True)
class Capacity:
    """Who works on the jobs of a queue just now, and for whom.

    Args:
        places: how many jobs each live worker runs at once, by its name.
        tenant_share: the part of all places that recent tenants share; the rest is for who comes new.
    """

    places: Mapping[str, int]
    tenant_share: float
    recent: RecentTenants = field(default_factory=RecentTenants)

    @property
    def total(self) -> int:
        """How many jobs may be dispatched or running at once: then a message hardly waits, and never behind many."""
        return max(_FEWEST_PLACES, sum(self.places.values()))

    def share(self, recent: Set[str], backlogged: Set[str]) -> int:
        """How many of them each of the `backlogged` tenants may have, who are some or all of the `recent` ones.

        At least one.
        """
        places = self.total * self.tenant_share * (1 if backlogged == recent else _BESIDE_OTHERS)
        return max(1, ceil(places / len(backlogged) - _ROUNDING))


def take_dispatchable(connection: Connection, queue: str, capacity: Capacity) -> list[tuple[str, str, str]]:
    """Choose the jobs whose messages go into the queue next, and mark them dispatched.

    As many as there are free places. The tenant with the fewest jobs under way comes first, and none has more than its
    share, so the backlog waits here and nobody behind it.

    Returns:
        (job id, tenant id, task name) of each, in the order to push.
    """
    under_way = _under_way(connection, queue, capacity)
    room = capacity.total - under_way.total()
    waiting_tenants = _waiting_tenants(connection, queue) if room > 0 else []
    backlogged = {row.tenant_id for row in waiting_tenants}
    recent = capacity.recent.joined_by([*under_way, *backlogged])
    turns = [(under_way[row.tenant_id], row.oldest, row.tenant_id) for row in waiting_tenants]
    heapify(turns)
    waiting: dict[str, Iterator[Row[Any]]] = {}
    chosen: list[Row[Any]] = []
    while turns and len(chosen) < room:
        count, oldest, tenant_id = heappop(turns)
        # Anew in every turn: whoever has few jobs came before this one, and may have no more of them.
        share = capacity.share(recent, backlogged)
        if count >= share:
            continue
        if tenant_id not in waiting:
            waiting[tenant_id] = _due_jobs(connection, queue, tenant_id, min(room, share - count))
        job = next(waiting[tenant_id], None)
        if job is None:
            backlogged.discard(tenant_id)
        else:
            chosen.append(job)
            heappush(turns, (count + 1, oldest, tenant_id))
    return _mark(connection, chosen)


def _under_way(connection: Connection, queue: str, capacity: Capacity) -> Counter[str]:
    """How many jobs of each tenant have a message in the queue, or run in a live worker."""
    of = {"of_queue": queue, "workers": list(capacity.places)}
    return Counter(connection.execute(_UNDER_WAY, of).scalars())


def _waiting_tenants(connection: Connection, queue: str) -> list[Row[Any]]:
    """The tenants that have due jobs, and since when."""
    return list(connection.execute(_WAITING_TENANTS, {"of_queue": queue}))


def _due_jobs(connection: Connection, queue: str, tenant_id: str, limit: int) -> Iterator[Row[Any]]:
    of = {"of_queue": queue, "of_tenant_id": tenant_id, "most": limit}
    return iter(list(connection.execute(_DUE_JOBS, of)))


def _under_way_statement() -> CompoundSelect[str]:
    of_queue = select(jobs.c.tenant_id).where(jobs.c.queue == bindparam("of_queue"))
    # Greater than 0 rather than not NULL, which SQLite does not look up in an index.
    dispatched = of_queue.where(jobs.c.state == QUEUED, jobs.c.dispatched_at > 0)
    # A dead worker's jobs take no place: until their leases end, the living have theirs.
    running = of_queue.where(jobs.c.state == RUNNING, jobs.c.worker.in_(bindparam("workers", expanding=True)))
    return dispatched.union_all(running)


def _waiting_tenants_statement() -> Select[str, float]:
    """Steps from tenant to tenant, however many jobs each has."""
    waiting = and_(jobs.c.queue == bindparam("of_queue"), jobs.c.state == QUEUED, jobs.c.dispatched_at.is_(None))
    found = select(func.min(jobs.c.tenant_id).label("tenant_id")).where(waiting).cte("found", recursive=True)
    following = select(func.min(jobs.c.tenant_id)).where(waiting, jobs.c.tenant_id > found.c.tenant_id)
    found = found.union_all(select(following.scalar_subquery()).where(found.c.tenant_id.is_not(None)))
    oldest = select(func.min(jobs.c.due_at)).where(waiting, jobs.c.tenant_id == found.c.tenant_id).scalar_subquery()
    tenants = select(found.c.tenant_id, oldest.label("oldest")).where(found.c.tenant_id.is_not(None)).subquery()
    return select(tenants.c.tenant_id, tenants.c.oldest).where(tenants.c.oldest <= epoch_now())


def _due_jobs_statement() -> Select[str, str, str]:
    return (
        select(jobs.c.id, jobs.c.tenant_id, jobs.c.name)
        .where(
            jobs.c.queue == bindparam("of_queue"),
            jobs.c.state == QUEUED,
            jobs.c.dispatched_at.is_(None),
            jobs.c.tenant_id == bindparam("of_tenant_id"),
            jobs.c.suspect.is_(False),
            jobs.c.due_at <= epoch_now(),
        )
        .order_by(jobs.c.due_at, jobs.c.id)
        .limit(bindparam("most", type_=Integer))
        # Another dispatcher is just about to mark these.
        .with_for_update(skip_locked=True)
    )


# Built once: to build a statement takes several times as long as to run it, and these run at the end of every job.
_UNDER_WAY: Final = _under_way_statement()
_WAITING_TENANTS: Final = _waiting_tenants_statement()
_DUE_JOBS: Final = _due_jobs_statement()
_MARK: Final = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("job_ids", expanding=True)), jobs.c.state == QUEUED, jobs.c.dispatched_at.is_(None))
    .values(dispatched_at=epoch_now())
    .returning(jobs.c.id)
)


def _mark(connection: Connection, chosen: list[Row[Any]]) -> list[tuple[str, str, str]]:
    if not chosen:
        return []
    marked = set(connection.execute(_MARK, {"job_ids": [row.id for row in chosen]}).scalars())
    return [(row.id, row.tenant_id, row.name) for row in chosen if row.id in marked]
