"""Jobs whose dependencies are away, over the real ledger on both databases: they wait, and are not charged."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, update

from libs.common import ledger
from libs.common.contracts.base import JobSpec, Message, Queue
from libs.common.errors import ErrorCode, RetryableError
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import jobs
from libs.common.settings import WorkerSettings
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.jobs import JobLane, JobRun
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import Envelope, MessageSealer


class Work(Message):
    """Nothing in particular."""


_SPEC = JobSpec("probe.job", Queue.INGEST, Work)
_OUTAGES = [code for code in ErrorCode if code.kind.outage]


class Jobs:
    """One job, run by hand as often as a test wants, and the error its handler raises."""

    def __init__(self, database: Database, keyring: Keyring, **settings: Any) -> None:
        self.error: RetryableError | None = None
        self.last_errors: list[bool] = []
        self._database = database
        messages = MessageSealer(keyring)
        broker = BrokerConnection("redis://127.0.0.1:1/0")  # never used: no message is pushed here
        clock = BrokerClock(broker)
        chosen = WorkerSettings(**settings)
        dispatcher = Dispatcher(
            database, Publisher(broker), Consumers(broker, clock), messages, clock, chosen, queues=[], holder="test"
        )
        self._lane = JobLane("test", database, messages, dispatcher, chosen)
        self.id = database.write_now(lambda c: submit(c, messages, _SPEC, Work(), tenant_id="t1", resource_id="file_1"))

    async def run(self) -> Any:
        """One attempt, due or not; the job's row after it."""
        self.write(lambda c: c.execute(update(jobs).values(due_at=epoch_now() - 1)))
        await self._lane.run(_SPEC, self._handle, Envelope(id=self.id, task=_SPEC.name, tenant_id="t1", issued_at=0.0))
        return self._database.read_now(lambda c: ledger.get(c, "t1", self.id))

    async def _handle(self, _work: Work, run: JobRun) -> None:
        if self.error is not None:
            self.last_errors.append(run.is_last_error(self.error))
            raise self.error

    def write(self, step: Callable[[Connection], object]) -> None:
        self._database.write_now(step)

    def pause_seconds(self) -> float:
        due = self._database.read_now(lambda c: c.execute(jobs.select().add_columns(jobs.c.due_at - epoch_now())).one())
        pause: float = due[-1]
        return pause


@pytest.mark.parametrize("code", _OUTAGES)
async def test_an_outage_is_waited_for_and_said_to_whoever_polls(
    database: Database, keyring: Keyring, code: ErrorCode
) -> None:
    waiting = Jobs(database, keyring)
    waiting.error = RetryableError(code, "It is away.")
    pauses = []
    for _ in range(12):
        row = await waiting.run()
        pauses.append(waiting.pause_seconds())
    assert (row.state, row.attempt, row.failures) == (ledger.QUEUED, 12, 0)
    assert (row.error_code, row.error_message, row.worker) == (code.value, "It is away.", None)
    assert pauses[0] < 1.6
    assert 10 < pauses[-1] <= 30
    waiting.error = None
    row = await waiting.run()
    assert (row.state, row.failures, row.error_code) == (ledger.SUCCEEDED, 0, None)
    assert waiting.last_errors == [False] * 12


async def test_a_failure_of_the_jobs_own_still_counts(database: Database, keyring: Keyring) -> None:
    failing = Jobs(database, keyring)
    failing.error = RetryableError(ErrorCode.LLM_BAD_RESPONSE, "It cannot be read.")
    rows = [await failing.run() for _ in range(3)]
    assert [(row.state, row.failures) for row in rows] == [
        (ledger.QUEUED, 1),
        (ledger.QUEUED, 2),
        (ledger.FAILED, 3),
    ]
    assert failing.last_errors == [False, False, True]


async def test_a_job_that_alone_fails_is_given_up_while_others_are_served(database: Database, keyring: Keyring) -> None:
    poisoned = Jobs(database, keyring)
    poisoned.error = RetryableError(ErrorCode.LLM_TIMEOUT, "It did not answer in time.")
    poisoned.error.answered_seconds_ago = 0.1
    rows = [await poisoned.run() for _ in range(8)]
    assert [row.failures for row in rows] == [0] * 5 + [1, 2, 3]
    assert (rows[-1].state, rows[-1].error_code) == (ledger.FAILED, "llm_timeout")


async def test_patience_ends_and_begins_anew_with_a_requeue(database: Database, keyring: Keyring) -> None:
    waiting = Jobs(database, keyring, outage_patience_seconds=3600)
    waiting.error = RetryableError(ErrorCode.RETRIEVAL_UNAVAILABLE, "It is away.")
    assert (await waiting.run()).failures == 0
    waiting.write(lambda c: c.execute(update(jobs).values(started_at=epoch_now() - 3600)))
    rows = [await waiting.run() for _ in range(3)]
    assert [(row.state, row.failures) for row in rows][-1] == (ledger.FAILED, 3)
    waiting.write(lambda c: ledger.requeue(c, "t1", waiting.id))
    row = await waiting.run()
    assert (row.state, row.failures) == (ledger.QUEUED, 0)


async def test_a_waiting_job_can_be_cancelled(database: Database, keyring: Keyring) -> None:
    waiting = Jobs(database, keyring)
    waiting.error = RetryableError(ErrorCode.STORAGE_FULL, "There is no room.")
    await waiting.run()
    waiting.write(lambda c: ledger.cancel(c, "t1", waiting.id))
    assert (await waiting.run()).state == ledger.CANCELLED
