"""Any order of moves: no job leaves its end but by requeue, attempts only grow, and one attempt holds a job at most."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Connection, update

from libs.common import dispatching, ledger
from libs.common.dispatching import Capacity
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.ledger import LeaseLostError, NewJob
from libs.common.records.database import Database, epoch_now
from libs.common.records.migrate import migrate
from libs.common.records.tables import jobs

_JOBS = st.sampled_from(["job_1", "job_2"])
_ATTEMPTS = st.integers(0, 5)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self._directory.name)}/docent.db")
        migrate(self.database.engine)
        for job_id in ("job_1", "job_2"):
            job = NewJob(job_id, "t", "ingest.file", "ingest", "file", b"sealed")
            self.database.write_now(lambda c, job=job: ledger.submit(c, job))  # type: ignore[misc]
        self.last = self._rows()
        self.requeued: set[str] = set()

    def _rows(self) -> dict[str, tuple[str, int]]:
        rows = self.database.read_now(lambda c: c.execute(jobs.select()).all())
        return {row.id: (row.state, row.attempt) for row in rows}

    def _holds(self, job_id: str, attempt: int) -> bool:
        return self._rows()[job_id] == (ledger.RUNNING, attempt)

    @rule(job_id=_JOBS, lease_seconds=st.sampled_from([-1.0, 60.0]))
    def claim(self, job_id: str, lease_seconds: float) -> None:
        self.database.write_now(lambda c: c.execute(update(jobs).values(due_at=epoch_now())))
        queued = self._rows()[job_id][0] == ledger.QUEUED
        claimed = self.database.write_now(lambda c: ledger.claim(c, job_id, "w", lease_seconds=lease_seconds))
        assert (claimed is not None) == queued

    @rule(job_id=_JOBS, attempt=_ATTEMPTS, move=st.sampled_from(["succeed", "release", "end", "retry", "die", "go on"]))
    def move(self, job_id: str, attempt: int, move: str) -> None:
        errors = {
            "retry": RetryableError(ErrorCode.SERVER_ERROR, "Again."),
            "die": PermanentError(ErrorCode.INVALID_FILE, "No."),
        }
        verbs: dict[str, Callable[[Connection, str, int], object]] = {
            "succeed": ledger.succeed,
            "release": ledger.release,
            "end": ledger.end_cancelled,
            "go on": ledger.check,
        }
        held = self._holds(job_id, attempt)
        try:
            if move in errors:
                error = errors[move]
                self.database.write_now(lambda c: ledger.fail(c, job_id, attempt, error, failures=0, max_attempts=2))
            else:
                self.database.write_now(lambda c: verbs[move](c, job_id, attempt))
        except LeaseLostError:
            assert not held
        else:
            assert held

    @rule()
    def reap(self) -> None:
        self.database.write_now(lambda c: ledger.reap_expired(c, "ingest"))

    @rule(places=st.integers(4, 9))
    def dispatch(self, places: int) -> None:
        capacity = Capacity({"w": places}, 1.0)
        self.database.write_now(lambda c: dispatching.take_dispatchable(c, "ingest", capacity))

    @rule(job_id=_JOBS)
    def cancel(self, job_id: str) -> None:
        ended = self._rows()[job_id][0] in ledger.TERMINAL
        try:
            self.database.write_now(lambda c: ledger.cancel(c, "t", job_id))
        except PermanentError:
            assert ended
        else:
            assert not ended

    @rule(job_id=_JOBS)
    def requeue(self, job_id: str) -> None:
        failed = self._rows()[job_id][0] == ledger.FAILED
        try:
            self.database.write_now(lambda c: ledger.requeue(c, "t", job_id))
        except PermanentError:
            assert not failed
        else:
            assert failed
            self.requeued.add(job_id)

    @invariant()
    def ends_are_final_and_attempts_grow(self) -> None:
        rows = self._rows()
        for job_id, (state, attempt) in rows.items():
            before, attempt_before = self.last[job_id]
            assert attempt >= attempt_before
            if before in ledger.TERMINAL and job_id not in self.requeued:
                assert (state, attempt) == (before, attempt_before)
        self.requeued.clear()
        self.last = rows

    @invariant()
    def only_a_running_job_has_a_holder(self) -> None:
        for row in self.database.read_now(lambda c: c.execute(jobs.select()).all()):
            assert (row.worker is not None) == (row.lease_expires_at is not None) == (row.state == ledger.RUNNING)
            assert (row.finished_at is not None) == (row.state in ledger.TERMINAL)

    def teardown(self) -> None:
        self.database.close()
        self._directory.cleanup()


@pytest.mark.timeout(60)
class TestLedgerMachine(LedgerMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
