"""The heartbeat: renews the leases of a process's jobs, and tells them when they must stop."""

import asyncio
import os
import threading
from typing import Final, Literal

from sqlalchemy.exc import SQLAlchemyError

from libs.common import ledger
from libs.common.errors import PlatformError
from libs.common.logs import get_logger
from libs.common.records.database import Database
from libs.common.settings import CommonSettings

_log = get_logger(__name__)

Reason = Literal["lost", "cancelled", "overdue", "draining"]
_EXIT_BLOCKED: Final = 70  # EX_SOFTWARE of sysexits.h


class HeldJob:
    """What the heartbeat must know of one running job."""

    def __init__(self, task: "asyncio.Task[None]", attempt: int, overdue_at: float) -> None:
        self.task = task
        self.attempt = attempt
        self.overdue_at = overdue_at
        self.reason: Reason | None = None

    def stop(self, reason: Reason) -> None:
        if self.reason is None:
            self.reason = reason
            self.task.cancel()


class Heartbeat:
    """Renews the leases of this process's jobs from a thread of its own, so that a busy event loop loses none."""

    def __init__(self, database: Database, settings: CommonSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._settings = settings
        self._loop = loop
        self._held: dict[str, HeldJob] = {}
        self._unanswered = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def hold(self, job_id: str, held: HeldJob) -> None:
        """Renew this job's lease from now on."""
        with self._lock:
            self._held[job_id] = held

    def next_step(self, job_id: str) -> None:
        """The job got on: its time for one step begins anew."""
        with self._lock:
            if (held := self._held.get(job_id)) is not None:
                held.overdue_at = self._loop.time() + self._settings.job_step_seconds

    def let_go(self, job_id: str) -> None:
        """Renew it no longer."""
        with self._lock:
            self._held.pop(job_id, None)

    def held(self) -> list[HeldJob]:
        """Every job held now."""
        with self._lock:
            return list(self._held.values())

    def held_ids(self) -> list[str]:
        """The ids of these jobs."""
        with self._lock:
            return list(self._held)

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.heartbeat_seconds):
            self._watch_loop()
            with self._lock:
                held = dict(self._held)
            if held:
                self._beat(held)

    def _watch_loop(self) -> None:
        # Beats are counted, not seconds: a process that was frozen as a whole is not blocked when it goes on.
        if self._unanswered * self._settings.heartbeat_seconds >= self._settings.loop_blocked_seconds:
            with self._lock:
                _log.error("event loop blocked", jobs=list(self._held)[:20])
            # A handler that never yields cannot be cancelled; its leases expire, and a fresh process starts.
            os._exit(_EXIT_BLOCKED)
        self._unanswered += 1
        self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._unanswered = 0

    def _beat(self, held: dict[str, HeldJob]) -> None:
        now = self._loop.time()
        in_time = [(job_id, job.attempt) for job_id, job in held.items() if now < job.overdue_at]
        try:
            renewals = self._database.write_now(
                lambda connection: ledger.renew(connection, in_time, lease_seconds=self._settings.lease_seconds)
            )
        except (PlatformError, SQLAlchemyError) as error:
            _log.warning("leases could not be renewed", error=type(error).__name__, count=len(in_time))
            return
        cancel_requested = {renewal.job_id: renewal.cancel_requested for renewal in renewals}
        for job_id, job in held.items():
            if now >= job.overdue_at:
                self._loop.call_soon_threadsafe(job.stop, "overdue")
            elif job_id not in cancel_requested:
                self._loop.call_soon_threadsafe(job.stop, "lost")
            elif cancel_requested[job_id]:
                self._loop.call_soon_threadsafe(job.stop, "cancelled")
