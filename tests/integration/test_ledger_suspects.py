"""Suspects in the ledger, on both databases: who becomes one, who is charged, and that they come one at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import update

from libs.common import dispatching, ledger, reconciling
from libs.common.dispatching import Capacity
from libs.common.errors import ErrorCode, RetryableError
from libs.common.ledger import ChargedJob, ClaimedJob, NewJob
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import jobs


def _submit(database: Database, *job_ids: str) -> None:
    for job_id in job_ids:
        job = NewJob(job_id, "t1", "ingest.file", "ingest", "file_1", b"sealed")
        database.write_now(lambda c, job=job: ledger.submit(c, job))  # type: ignore[misc]


def _claim(database: Database, job_id: str = "job_1") -> ClaimedJob:
    """Claim it for a worker that never renews."""
    database.write_now(lambda c: c.execute(update(jobs).values(due_at=epoch_now())))
    claimed = database.write_now(lambda c: ledger.claim(c, job_id, "w1", lease_seconds=-1))
    assert claimed is not None
    return claimed


def _reap(database: Database) -> tuple[list[str], list[ChargedJob]]:
    return database.write_now(lambda c: reconciling.reap(c, "ingest", max_attempts=3))


def _die_alone(database: Database) -> list[ChargedJob]:
    claimed = _claim(database)
    assert claimed.suspect
    database.write_now(lambda c: ledger.run_alone(c, claimed.id, claimed.attempt))
    suspects, charged = _reap(database)
    assert suspects == []
    return charged


def _row(database: Database, job_id: str = "job_1") -> Any:
    return database.read_now(lambda c: ledger.get(c, "t1", job_id))


def _take(database: Database) -> list[str]:
    return [job[0] for job in database.write_now(lambda c: reconciling.take_suspect(c, "ingest"))]


def _suspects(database: Database, *job_ids: str) -> None:
    _submit(database, *job_ids)
    database.write_now(lambda c: c.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(suspect=True)))


def test_a_death_among_others_charges_nobody(database: Database) -> None:
    _submit(database, "job_1", "job_2")
    for _ in range(5):
        _claim(database, "job_1")
        _claim(database, "job_2")
        suspects, charged = _reap(database)
        assert (sorted(suspects), charged) == (["job_1", "job_2"], [])
    assert [(_row(database, each).suspect, _row(database, each).failures) for each in ("job_1", "job_2")] == [
        (True, 0),
        (True, 0),
    ]


def test_a_death_while_waiting_to_be_alone_charges_nobody(database: Database) -> None:
    _suspects(database, "job_1")
    assert _claim(database).suspect
    assert _reap(database) == (["job_1"], [])
    assert _row(database).failures == 0


def test_three_deaths_alone_are_the_end_and_requeue_a_new_beginning(database: Database) -> None:
    _suspects(database, "job_1")
    assert [job.dead for _ in range(3) for job in _die_alone(database)] == [False, False, True]
    row = _row(database)
    assert (row.state, row.failures, row.error_code, row.alone) == (ledger.FAILED, 3, "server_error", False)
    assert row.error_message == "The job ended its worker process while running alone (failure 3 of 3)."

    database.write_now(lambda c: ledger.requeue(c, "t1", "job_1"))
    row = _row(database)
    assert (row.state, row.failures, row.suspect) == (ledger.QUEUED, 0, False)


def test_a_job_charged_once_stays_a_suspect_and_pauses(database: Database) -> None:
    _suspects(database, "job_1")
    [charged] = _die_alone(database)
    row = _row(database)
    assert (row.state, row.failures, row.suspect, charged.dead) == (ledger.QUEUED, 1, True, False)
    assert _take(database) == []  # not due yet


def test_a_suspect_that_ends_well_is_none_any_more(database: Database) -> None:
    _suspects(database, "job_1")
    claimed = _claim(database)
    database.write_now(lambda c: ledger.run_alone(c, claimed.id, claimed.attempt))
    database.write_now(lambda c: ledger.succeed(c, claimed.id, claimed.attempt))
    row = _row(database)
    assert (row.state, row.suspect, row.alone, row.failures) == (ledger.SUCCEEDED, False, False, 0)


def test_a_drained_or_failed_attempt_alone_is_not_a_death(database: Database) -> None:
    _suspects(database, "job_1")
    for failures in (0, 1):
        claimed = _claim(database)
        database.write_now(lambda c, held=claimed: ledger.run_alone(c, held.id, held.attempt))  # type: ignore[misc]
        if failures == 0:
            database.write_now(lambda c, held=claimed: ledger.release(c, held.id, held.attempt))  # type: ignore[misc]
        else:
            error = RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away.")
            database.write_now(
                lambda c, held=claimed, error=error: ledger.fail(  # type: ignore[misc]
                    c, held.id, held.attempt, error, failures=0, max_attempts=3
                )
            )
        row = _row(database)
        assert (row.state, row.alone, row.suspect, row.failures) == (ledger.QUEUED, False, True, failures)
        assert _reap(database) == ([], [])


def test_a_cancelled_suspect_is_not_tried_again(database: Database) -> None:
    _suspects(database, "job_1")
    claimed = _claim(database)
    database.write_now(lambda c: ledger.run_alone(c, claimed.id, claimed.attempt))
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    [charged] = _reap(database)[1]
    assert (_row(database).state, charged.dead) == (ledger.CANCELLED, False)


def test_suspects_come_one_at_a_time_and_hold_up_no_others(database: Database) -> None:
    _suspects(database, "job_1", "job_2")
    _submit(database, "job_3", "job_4")
    assert _take(database) == ["job_1"]
    assert _take(database) == []
    chosen = database.write_now(lambda c: dispatching.take_dispatchable(c, "ingest", Capacity({"w1": 9}, 1.0)))
    assert sorted(job[0] for job in chosen) == ["job_3", "job_4"]

    claimed = database.write_now(lambda c: ledger.claim(c, "job_1", "w1", lease_seconds=60))
    assert claimed is not None
    assert _take(database) == []
    database.write_now(lambda c: ledger.succeed(c, "job_1", claimed.attempt))
    assert _take(database) == ["job_2"]


def test_concurrent_dispatchers_take_one_suspect(database: Database) -> None:
    _suspects(database, *(f"job_{number}" for number in range(8)))
    for expected in range(1, 4):
        barrier = threading.Barrier(6, timeout=10)

        def take(_number: int, barrier: threading.Barrier = barrier) -> list[str]:
            barrier.wait()
            return _take(database)

        with ThreadPoolExecutor(6) as pool:
            taken = [job_id for each in pool.map(take, range(6)) for job_id in each]
        assert len(taken) == 1, expected
        claimed = database.write_now(lambda c, job_id=taken[0]: ledger.claim(c, job_id, "w", lease_seconds=60))  # type: ignore[misc]
        assert claimed is not None
        database.write_now(lambda c, held=claimed: ledger.succeed(c, held.id, held.attempt))  # type: ignore[misc]
