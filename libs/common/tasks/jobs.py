"""The worker's side of the job lane: claim, heartbeat, handler, end.

A handler gets a `JobRun`. Its steps must be idempotent, because a job whose worker dies is run again; its last step is
committed together with the job's end by `JobRun.finish`, under the fencing token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from libs.common import ledger, logs, metrics, reconciling
from libs.common.contracts.base import JobSpec
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.ledger import ClaimedJob, LeaseLostError
from libs.common.records.database import Database
from libs.common.records.dead_jobs import mark_dead
from libs.common.settings import WorkerSettings
from libs.common.tasks import outages
from libs.common.tasks.alone import JobGate
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.heartbeat import Heartbeat, HeldJob, Reason
from libs.common.tasks.observed import handling_job
from libs.common.tasks.wire import Envelope, MessageSealer

_log = logs.get_logger(__name__)
# Shorter than the time after which the reconciler takes a message for lost, so that there is never a second one.
_HELD_BACK_SECONDS: Final = 2.0
# Between two reports of a job's progress: most jobs have ended before the first.
_REPORT_SECONDS: Final = 0.5


class JobRun:
    """One attempt at a job, as its handler sees it.

    Attributes:
        is_last_error: whether an error, if it ended this attempt, would be the job's end.
        suspect: whether a worker died that ran this job before; it runs alone for that.
    """

    def __init__(
        self,
        claimed: ClaimedJob,
        database: Database,
        dispatcher: Dispatcher,
        *,
        is_last_error: Callable[[PlatformError], bool],
        next_step: Callable[[], None],
    ) -> None:
        self.is_last_error = is_last_error
        self.suspect = claimed.suspect
        self._claimed = claimed
        self._database = database
        self._dispatcher = dispatcher
        self._next_step = next_step
        self._total: int | None = None
        self._next_report = time.monotonic() + _REPORT_SECONDS
        self.finished = False

    @property
    def id(self) -> str:
        return self._claimed.id

    @property
    def tenant_id(self) -> str:
        return self._claimed.tenant_id

    @property
    def attempt(self) -> int:
        return self._claimed.attempt

    async def progress(self, done: int, total: int) -> None:
        """Let pollers see how far the job is, at most twice a second; its time for one step begins anew.

        Raises:
            LeaseLostError: this attempt no longer holds the job.
        """
        self._total = total
        self._next_step()
        now = time.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + _REPORT_SECONDS
        await self._database.write(
            lambda connection: ledger.report_progress(
                connection, self._claimed.id, self._claimed.attempt, done=done, total=total
            )
        )

    async def write(self, step: Callable[[Connection], None]) -> None:
        """Commit a step, if this attempt still holds the job; the time for the next one begins.

        Raises:
            LeaseLostError: it does not; nothing was written.
        """

        def guarded(connection: Connection) -> None:
            ledger.check(connection, self._claimed.id, self._claimed.attempt)
            step(connection)

        await self._database.write(guarded)
        self._next_step()

    async def finish(self, last_step: Callable[[Connection], object] | None = None) -> None:
        """Commit the last step and the job's success together.

        Raises:
            LeaseLostError: this attempt no longer holds the job; nothing was written.
        """

        def guarded(connection: Connection) -> None:
            ledger.succeed(connection, self._claimed.id, self._claimed.attempt, total=self._total)
            if last_step is not None:
                last_step(connection)

        await self._database.write(guarded)
        self.finished = True

    def nudge(self) -> None:
        """The job submitted further jobs: have them dispatched at once."""
        self._dispatcher.nudge()


# Handlers are generic in their own request; the registry holds them all.
JobHandler = Callable[[Any, JobRun], Awaitable[None]]


class JobLane:
    """Runs jobs on the worker's event loop."""

    def __init__(
        self, worker: str, database: Database, messages: MessageSealer, dispatcher: Dispatcher, settings: WorkerSettings
    ) -> None:
        self._worker = worker
        self._database = database
        self._messages = messages
        self._dispatcher = dispatcher
        self._settings = settings
        self._heartbeat = Heartbeat(database, settings, asyncio.get_running_loop())
        self._gate = JobGate(settings.job_concurrency)
        self._runs: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to renew leases."""
        self._heartbeat.start()

    def held_ids(self) -> list[str]:
        """The ids of the jobs under way here."""
        return self._heartbeat.held_ids()

    async def stop(self, grace_seconds: float) -> None:
        """Let what runs finish for a while, then hand the rest back to the ledger."""
        self._gate.shut()
        # Whole runs, not only handlers: a claim may be under way, and handing back takes a commit.
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace_seconds)
        for held in self._heartbeat.held():
            held.stop("draining")
        if self._runs:
            await asyncio.wait(self._runs, timeout=5.0)
        await asyncio.to_thread(self._heartbeat.stop)

    async def run(self, spec: JobSpec[Any], handler: JobHandler, envelope: Envelope) -> None:
        """Run one message: claim its job, and see it to an end or back into the ledger."""
        run = asyncio.create_task(self._enter(spec, handler, envelope))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        await run

    async def _enter(self, spec: JobSpec[Any], handler: JobHandler, envelope: Envelope) -> None:
        if not await self._gate.enter(_HELD_BACK_SECONDS):
            # A suspect runs alone here, or we drain: the next round of dispatching may find another process.
            await self._database.write(lambda connection: reconciling.undo_dispatch(connection, [envelope.id]))
            return
        try:
            await self._run(spec, handler, envelope)
        finally:
            self._gate.leave()

    async def _run(self, spec: JobSpec[Any], handler: JobHandler, envelope: Envelope) -> None:
        claimed = await self._database.write(
            lambda connection: ledger.claim(
                connection, envelope.id, self._worker, lease_seconds=self._settings.lease_seconds
            )
        )
        if claimed is None:
            # A copy of a message whose job runs or has ended: harmless, and expected after repairs.
            metrics.REFUSED_MESSAGES.labels(reason="not_claimable").inc()
            return
        task = asyncio.create_task(self._work(spec, handler, claimed))
        held = HeldJob(task, claimed.attempt, asyncio.get_running_loop().time() + self._settings.job_step_seconds)
        self._heartbeat.hold(claimed.id, held)
        try:
            await asyncio.wait([task])
            if task.cancelled():
                await self._end_stopped(claimed, held.reason)
        finally:
            self._heartbeat.let_go(claimed.id)
            self._dispatcher.nudge()

    async def _work(self, spec: JobSpec[Any], handler: JobHandler, claimed: ClaimedJob) -> None:
        with handling_job(claimed):
            try:
                if claimed.suspect:
                    await self._attempt_alone(spec, handler, claimed)
                else:
                    await self._attempt(spec, handler, claimed)
            except LeaseLostError:
                _log.warning("another worker has this job now", attempt=claimed.attempt)
            except PlatformError as error:
                await self._fail(claimed, error)
            except Exception as error:  # noqa: BLE001 - the process boundary: log, fail the job, live on
                _log.error("job handler failed", task=spec.name, exc_info=error)
                await self._fail(claimed, RetryableError(ErrorCode.SERVER_ERROR, "The server failed on this job."))

    async def _attempt(self, spec: JobSpec[Any], handler: JobHandler, claimed: ClaimedJob) -> None:
        job = JobRun(
            claimed,
            self._database,
            self._dispatcher,
            is_last_error=partial(self._is_last_error, claimed),
            next_step=partial(self._heartbeat.next_step, claimed.id),
        )
        body = self._messages.open_job_request(claimed.queue, claimed.id, claimed.sealed_request)
        await handler(spec.request.model_validate_json(body), job)
        if not job.finished:
            await job.finish()

    async def _attempt_alone(self, spec: JobSpec[Any], handler: JobHandler, claimed: ClaimedJob) -> None:
        # Longer with every attempt, or a process with long jobs would never be quiet; within the time for one step.
        wait_seconds = min(self._settings.alone_wait_seconds * claimed.attempt, self._settings.job_step_seconds / 2)
        async with self._gate.alone(wait_seconds) as alone:
            if alone:
                await self._database.write(lambda connection: ledger.run_alone(connection, claimed.id, claimed.attempt))
                self._heartbeat.next_step(claimed.id)
                await self._attempt(spec, handler, claimed)
                return
        await self._database.write(
            lambda connection: ledger.release(connection, claimed.id, claimed.attempt, pause_seconds=wait_seconds)
        )

    def _is_charged(self, claimed: ClaimedJob, error: PlatformError) -> bool:
        return outages.is_charged(error, claimed, patience_seconds=self._settings.outage_patience_seconds)

    def _is_last_error(self, claimed: ClaimedJob, error: PlatformError) -> bool:
        is_last_try = claimed.failures + 1 >= self._settings.max_attempts
        return not error.code.kind.retryable or (is_last_try and self._is_charged(claimed, error))

    async def _fail(self, claimed: ClaimedJob, error: PlatformError) -> None:
        charged = self._is_charged(claimed, error)
        _log.info("job attempt failed", code=error.code.value, failures=claimed.failures + charged, charged=charged)

        def record(connection: Connection) -> bool:
            if not charged:
                pause_seconds = outages.wait_seconds(error, claimed)
                ledger.release(connection, claimed.id, claimed.attempt, pause_seconds=pause_seconds, error=error)
                return False
            dead = ledger.fail(
                connection,
                claimed.id,
                claimed.attempt,
                error,
                failures=claimed.failures,
                max_attempts=self._settings.max_attempts,
            )
            if dead:
                mark_dead(
                    connection,
                    name=claimed.name,
                    job_id=claimed.id,
                    tenant_id=claimed.tenant_id,
                    resource_id=claimed.resource_id,
                    error=error,
                )
            return dead

        try:
            if await self._database.write(record):
                metrics.DEAD_LETTERS.labels(kind=claimed.name).inc()
        except LeaseLostError:
            _log.warning("another worker has this job now", attempt=claimed.attempt)

    async def _end_stopped(self, claimed: ClaimedJob, reason: Reason | None) -> None:
        if reason == "overdue":
            await self._fail(claimed, RetryableError(ErrorCode.DEADLINE_EXCEEDED, "The job took longer than allowed."))
            return
        end = ledger.end_cancelled if reason == "cancelled" else ledger.release
        try:
            if reason != "lost":
                await self._database.write(lambda connection: end(connection, claimed.id, claimed.attempt))
        except LeaseLostError:
            _log.warning("another worker has this job now", attempt=claimed.attempt)
