"""Workers killed on purpose, and what the ledger may show for it: only jobs that a victim held may have run again."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, not_, select

from libs.common import ledger
from libs.common.contracts.batch import EXPIRE_BATCH
from libs.common.records.database import epoch_now
from libs.common.records.tables import jobs
from tests.faults.harness import Harness, RowResult

_COMMITTED_SECONDS: Final = 1.0
_JobRow = Row[*tuple[Any, ...]]


class Deaths:
    """Kills workers and notes which jobs they held.

    Attributes:
        kills: workers killed.
        held: by job id, how many of them ran the job when they died.
        alone: the same where it was the only job there, so that the death was charged to it.
    """

    def __init__(self, harness: Harness) -> None:
        self.kills = 0
        self.held: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self._harness = harness

    async def kill(self, name: str) -> None:
        """SIGKILL to a program that is ready."""
        await self._harness.wait_ready(name)
        pid = self._harness.child(name).pid
        await self._harness.kill(name)
        self.kills += 1
        # The dead renew no lease, but nobody takes their jobs before it ends; what they had sent may yet be committed.
        held: dict[str, bool] = {}
        for pause_seconds in (0.0, _COMMITTED_SECONDS):
            await asyncio.sleep(pause_seconds)
            held |= await self._harness.database.read(lambda connection: _held_by(connection, pid))
        self.held.update(held.keys())
        self.alone.update(job_id for job_id, alone in held.items() if alone)

    async def judge(self, result: RowResult) -> None:
        """Every job succeeded, in one attempt and uncharged unless its worker was killed."""
        rows = await self._harness.database.read(_all_jobs)
        unfinished = Counter(f"{row.name} {row.state}" for row in rows if row.state != ledger.SUCCEEDED)
        result.lost += unfinished.total()
        result.expect(not unfinished, f"jobs that did not succeed: {dict(unfinished)}")
        rerun = [row for row in rows if row.attempt > 1 and not self.held[row.id]]
        result.duplicates += len(rerun)
        result.expect(not rerun, f"run again though nobody had killed their worker: {_shown(rerun)}")
        charged = [row for row in rows if row.failures > self.alone[row.id]]
        result.expect(not charged, f"charged though innocent: {_shown(charged)}")

    @property
    def detail(self) -> str:
        return f"{self.kills} kills met {len(self.held)} jobs, {len(+self.alone)} of them alone"


def _held_by(connection: Connection, pid: int | None) -> dict[str, bool]:
    """By job id: whether it ran alone. A worker's name ends with its pid."""
    query = select(jobs.c.id, jobs.c.alone).where(jobs.c.state == ledger.RUNNING, jobs.c.worker.endswith(f".{pid}"))
    return {row.id: row.alone for row in connection.execute(query)}


def _all_jobs(connection: Connection) -> Sequence[_JobRow]:
    """Of every job but those that were put off for long, as upkeep is, and the ends of batches that ended before."""
    columns = (jobs.c.id, jobs.c.name, jobs.c.state, jobs.c.attempt, jobs.c.failures, jobs.c.error_message)
    put_off = and_(jobs.c.state == ledger.QUEUED, jobs.c.due_at > epoch_now() + 60)
    return connection.execute(select(*columns).where(not_(put_off), jobs.c.name != EXPIRE_BATCH.name)).all()


def _shown(rows: Sequence[_JobRow]) -> str:
    first = [
        f"{row.name} {row.id} ({row.attempt} attempts, {row.failures} failures, {row.error_message})"
        for row in rows[:3]
    ]
    return f"{len(rows)} jobs, as {', '.join(first)}"
