"""From ledger to queue: messages for the places that are free, and a reconciler that mends what was lost.

Runs in every process that submits or works on jobs. Dispatching is safe anywhere at any time, because a row is marked
before its message is pushed; the repairs are done by one process at a time, the holder of a lease row per queue.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from redis.exceptions import RedisError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from libs.common import dispatching, metrics, reconciling
from libs.common.contracts.base import Queue
from libs.common.dispatching import Capacity
from libs.common.errors import PlatformError
from libs.common.logs import get_logger
from libs.common.records.database import Database
from libs.common.settings import CommonSettings
from libs.common.tasks.broker import BrokerClock
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.wire import Envelope, MessageSealer

_log = get_logger(__name__)
# A message may have been popped and its claim still be on its way to the database.
_LOST_AFTER_SECONDS = 3.0
# In a queue that never empties, a message popped by a worker that died is noticed by its age alone.
_SURELY_LOST_AFTER_SECONDS = 120.0
# Between two rounds.
_PAUSE_SECONDS = 0.01


class Dispatcher:
    """Keeps the queues filled from the ledger.

    Args:
        queues: the job queues whose keys this process holds.
        holder: a name for this process in the lease rows.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        consumers: Consumers,
        messages: MessageSealer,
        clock: BrokerClock,
        settings: CommonSettings,
        *,
        queues: Sequence[Queue],
        holder: str,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._consumers = consumers
        self._messages = messages
        self._clock = clock
        self._settings = settings
        self._queues = tuple(queues)
        self._holder = holder
        self._capacities = {queue: Capacity({}, settings.tenant_share) for queue in self._queues}
        self._nudged = asyncio.Event()
        self._reap_from = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to dispatch and reconcile."""
        self._task = asyncio.create_task(self._run(), name="dispatcher")

    async def stop(self) -> None:
        """Stop; what was not dispatched waits in the ledger."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def nudge(self) -> None:
        """A job was committed, or the place of one became free."""
        self._nudged.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_repair = loop.time()
        while True:
            self._nudged.clear()
            repair = loop.time() >= next_repair
            if repair:
                next_repair = loop.time() + self._settings.reconcile_interval_seconds
            for queue in self._queues:
                await self._guarded(queue, repair=repair)
            # Places become free one by one: a round for each of them would cost more than they wait.
            await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_repair):
                    await self._nudged.wait()

    async def _guarded(self, queue: Queue, *, repair: bool) -> None:
        try:
            if repair:
                await self._repair(queue)
                places = await self._consumers.places(queue)
                self._capacities[queue] = replace(self._capacities[queue], places=places)
            await self._dispatch(queue)
        except (PlatformError, SQLAlchemyError, RedisError) as error:
            if not isinstance(error, RedisError):
                # Nobody could renew a lease meanwhile: an expired one proves no death until the living had their turn.
                self._reap_from = asyncio.get_running_loop().time() + self._settings.lease_seconds
            # Nothing is lost: the rows stay as they are and the next round tries again.
            _log.warning("dispatch round failed", queue=queue, error=type(error).__name__)

    async def _dispatch(self, queue: Queue) -> None:
        def take(connection: Connection) -> list[tuple[str, str, str]]:
            suspects = reconciling.take_suspect(connection, queue)
            return suspects + dispatching.take_dispatchable(connection, queue, self._capacities[queue])

        jobs = await self._database.write(take)
        if not jobs:
            return
        messages = [self._message(queue, *job) for job in jobs]
        pushes = [self._publisher.push(queue, message) for message in messages]
        outcomes = await asyncio.gather(*pushes, return_exceptions=True)
        unsent = [job[0] for job, outcome in zip(jobs, outcomes, strict=True) if isinstance(outcome, BaseException)]
        if unsent:
            await self._database.write(lambda connection: reconciling.undo_dispatch(connection, unsent))
            _log.warning("messages could not be pushed", queue=queue, count=len(unsent))

    def _message(self, queue: Queue, job_id: str, tenant_id: str, task: str) -> bytes:
        envelope = Envelope(id=job_id, task=task, tenant_id=tenant_id, issued_at=self._clock.now())
        return self._messages.seal(queue, envelope, b"{}")

    async def _repair(self, queue: Queue) -> None:
        seconds = max(5.0, 3 * self._settings.reconcile_interval_seconds)
        leads = await self._database.write(
            lambda connection: reconciling.take_lease(connection, f"reconcile:{queue}", self._holder, seconds=seconds)
        )
        if not leads:
            return
        if asyncio.get_running_loop().time() >= self._reap_from:
            await self._reap(queue)
        empty = await self._publisher.depth(queue) == 0
        older_than_seconds = _LOST_AFTER_SECONDS if empty else _SURELY_LOST_AFTER_SECONDS
        lost = await self._database.write(
            lambda connection: reconciling.forget_lost_messages(
                connection, queue, older_than_seconds=older_than_seconds
            )
        )
        if lost:
            _log.warning("messages were lost on the way", queue=queue, count=lost)
        await self._measure(queue)

    async def _reap(self, queue: Queue) -> None:
        suspects, charged = await self._database.write(
            lambda connection: reconciling.reap(connection, queue, max_attempts=self._settings.max_attempts)
        )
        if suspects:
            _log.warning("leases expired", queue=queue, jobs=suspects[:20], count=len(suspects))
        for job in charged:
            _log.warning("a job ended its worker", queue=queue, job_id=job.id, dead=job.dead)
            if job.dead:
                metrics.DEAD_LETTERS.labels(kind=job.name).inc()

    async def _measure(self, queue: Queue) -> None:
        counts = await self._database.read(lambda connection: reconciling.counts(connection, queue))
        for (kind, state), count in counts.items():
            metrics.JOBS.labels(kind=kind, state=state).set(count)
        metrics.QUEUE_DEPTH.labels(queue=queue).set(await self._publisher.depth(queue))
