"""The ledger on both databases: every move of a job, every refusal, and the races between those who move it."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, update

from libs.common import dispatching, ledger, reconciling
from libs.common.dispatching import Capacity, RecentTenants
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.ledger import ClaimedJob, LeaseLostError, NewJob
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import jobs

T = TypeVar("T")

_RETRYABLE = RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away.")
_PERMANENT = PermanentError(ErrorCode.INVALID_FILE, "The file is broken.")


def _submit(database: Database, job_id: str = "job_1", *, tenant_id: str = "t1", delay_seconds: float = 0.0) -> str:
    job = NewJob(job_id, tenant_id, "ingest.file", "ingest", "file_1", b"sealed", delay_seconds=delay_seconds)
    database.write_now(lambda connection: ledger.submit(connection, job))
    return job_id


def _claim(database: Database, job_id: str = "job_1", worker: str = "w1", lease_seconds: float = 60) -> ClaimedJob:
    claimed = _try_claim(database, job_id, worker, lease_seconds)
    assert claimed is not None
    return claimed


def _try_claim(
    database: Database, job_id: str = "job_1", worker: str = "w1", lease_seconds: float = 60
) -> ClaimedJob | None:
    return database.write_now(lambda c: ledger.claim(c, job_id, worker, lease_seconds=lease_seconds))


def _row(database: Database, job_id: str = "job_1", tenant_id: str = "t1") -> Any:
    return database.read_now(lambda connection: ledger.get(connection, tenant_id, job_id))


def _set(database: Database, **values: object) -> None:
    database.write_now(lambda connection: connection.execute(update(jobs).values(**values)))


def _make_due(database: Database) -> None:
    _set(database, due_at=epoch_now())


def _at_once(workers: int, work: Callable[[int], T]) -> list[T]:
    barrier = threading.Barrier(workers, timeout=10)

    def run(number: int) -> T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(workers)))


def _fail(database: Database, claimed: ClaimedJob, error: PlatformError = _RETRYABLE, *, max_attempts: int = 3) -> bool:
    return database.write_now(
        lambda c: ledger.fail(
            c, claimed.id, claimed.attempt, error, failures=claimed.failures, max_attempts=max_attempts
        )
    )


def _take(database: Database, *, places: int = 64, share: float = 1.0) -> list[tuple[str, str, str]]:
    capacity = Capacity({"w1": places}, share)
    return database.write_now(lambda c: dispatching.take_dispatchable(c, "ingest", capacity))


def test_a_job_is_claimed_with_what_was_submitted(database: Database) -> None:
    _submit(database)
    claimed = _claim(database)
    assert (claimed.tenant_id, claimed.name, claimed.resource_id, claimed.sealed_request) == (
        "t1",
        "ingest.file",
        "file_1",
        b"sealed",
    )
    assert (claimed.attempt, claimed.failures) == (1, 0)
    assert claimed.queued_seconds >= 0
    row = _row(database)
    assert (row.state, row.worker, row.started_at is not None) == (ledger.RUNNING, "w1", True)


def test_of_eight_claims_at_once_one_wins(database: Database) -> None:
    for number in range(5):
        job_id = _submit(database, f"job_{number}")
        claims = _at_once(8, lambda worker, job_id=job_id: _try_claim(database, job_id, f"w{worker}"))  # type: ignore[misc]
        winners = [worker for worker, claimed in enumerate(claims) if claimed is not None]
        assert len(winners) == 1
        assert _row(database, job_id).worker == f"w{winners[0]}"


def test_a_job_is_claimed_only_while_queued_and_due(database: Database) -> None:
    _submit(database, "job_1", delay_seconds=3600)
    assert _try_claim(database) is None
    assert _try_claim(database, "job_unknown") is None
    _make_due(database)
    claimed = _claim(database)
    assert _try_claim(database) is None
    database.write_now(lambda c: ledger.succeed(c, claimed.id, claimed.attempt))
    assert _try_claim(database) is None


_OLD_MOVES: dict[str, Callable[[Connection], object]] = {
    "check": lambda c: ledger.check(c, "job_1", 1),
    "progress": lambda c: ledger.report_progress(c, "job_1", 1, done=1, total=2),
    "succeed": lambda c: ledger.succeed(c, "job_1", 1),
    "end_cancelled": lambda c: ledger.end_cancelled(c, "job_1", 1),
    "fail for now": lambda c: ledger.fail(c, "job_1", 1, _RETRYABLE, failures=0, max_attempts=3),
    "fail for good": lambda c: ledger.fail(c, "job_1", 1, _PERMANENT, failures=0, max_attempts=3),
    "release": lambda c: ledger.release(c, "job_1", 1),
}


def test_an_old_attempt_moves_nothing(database: Database) -> None:
    _submit(database)
    _claim(database, lease_seconds=-1)
    assert database.write_now(lambda c: ledger.reap_expired(c, "ingest")) == ["job_1"]
    _claim(database, worker="w2")
    before = _row(database)
    for move in _OLD_MOVES.values():
        with pytest.raises(LeaseLostError):
            database.write_now(move)
    assert _row(database) == before
    assert database.write_now(lambda c: ledger.renew(c, [("job_1", 1)], lease_seconds=60)) == []


def test_a_waiting_job_is_moved_by_no_attempt(database: Database) -> None:
    _submit(database)
    _claim(database)
    database.write_now(lambda c: ledger.release(c, "job_1", 1))
    before = _row(database)
    for move in _OLD_MOVES.values():
        with pytest.raises(LeaseLostError):
            database.write_now(move)
    assert _row(database) == before


def test_a_refused_step_leaves_nothing_behind(database: Database) -> None:
    _submit(database)
    _submit(database, "job_2")
    claimed = _claim(database)

    def step(connection: Connection) -> None:
        ledger.succeed(connection, claimed.id, claimed.attempt)
        ledger.succeed(connection, "job_2", 1)

    with pytest.raises(LeaseLostError):
        database.write_now(step)
    assert _row(database).state == ledger.RUNNING


def test_leases_are_renewed_together(database: Database) -> None:
    held = []
    for number in range(3):
        _submit(database, f"job_{number}")
        held.append((f"job_{number}", _claim(database, f"job_{number}", lease_seconds=1).attempt))
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    renewals = database.write_now(
        lambda c: ledger.renew(c, [*held, ("job_0", 7), ("job_unknown", 1)], lease_seconds=3600)
    )
    assert {renewal.job_id: renewal.cancel_requested for renewal in renewals} == {
        "job_0": False,
        "job_1": True,
        "job_2": False,
    }
    assert database.write_now(lambda c: ledger.renew(c, [], lease_seconds=60)) == []
    lease = database.read_now(
        lambda c: ledger.get(c, "t1", "job_2").lease_expires_at - ledger.get(c, "t1", "job_2").created_at
    )
    assert lease > 1800


def test_only_expired_leases_are_reaped(database: Database) -> None:
    _submit(database, "job_1")
    _submit(database, "job_2")
    _claim(database, "job_1", lease_seconds=-1)
    _claim(database, "job_2", lease_seconds=60)
    assert database.write_now(lambda c: ledger.reap_expired(c, "chat_jobs")) == []
    assert database.write_now(lambda c: ledger.reap_expired(c, "ingest")) == ["job_1"]
    row = _row(database)
    assert (row.state, row.dispatched_at, row.worker, row.lease_expires_at) == (ledger.QUEUED, None, None, None)
    assert _claim(database, worker="w2").attempt == 2


def test_retryable_failures_back_off_and_then_end_it(database: Database) -> None:
    _submit(database)
    pauses = []
    for failures in range(3):
        claimed = _claim(database)
        assert claimed.failures == failures
        dead = _fail(database, claimed)
        row = database.read_now(
            lambda c: c.execute(jobs.select().add_columns((jobs.c.due_at - epoch_now()).label("pause"))).one()
        )
        assert (row.failures, row.error_code, row.error_message) == (
            failures + 1,
            "llm_unavailable",
            "The model is away.",
        )
        if dead:
            break
        pauses.append(round(row.pause))
        assert _try_claim(database) is None, "not before its pause is over"
        _make_due(database)
    assert pauses == [1, 5]
    assert (row.state, row.finished_at is not None, row.worker) == (ledger.FAILED, True, None)


def test_the_pause_is_what_the_error_asks_for(database: Database) -> None:
    _submit(database)
    error = RetryableError(ErrorCode.RATE_LIMIT_EXCEEDED, "Wait.", retry_after_seconds=600)
    assert not _fail(database, _claim(database), error)
    assert (
        590
        < database.read_now(
            lambda c: c.execute(jobs.select().with_only_columns(jobs.c.due_at - epoch_now())).scalar_one()
        )
        <= 600
    )


def test_a_permanent_failure_ends_it_at_once(database: Database) -> None:
    _submit(database)
    assert _fail(database, _claim(database), _PERMANENT)
    row = _row(database)
    assert (row.state, row.failures, row.error_code) == (ledger.FAILED, 1, "invalid_file")


def test_a_released_job_is_due_at_once_and_nobody_s_failure(database: Database) -> None:
    _submit(database)
    claimed = _claim(database)
    database.write_now(lambda c: ledger.release(c, "job_1", claimed.attempt))
    again = _claim(database, worker="w2")
    assert (again.attempt, again.failures) == (2, 0)


def test_success_clears_an_earlier_error_and_completes_progress(database: Database) -> None:
    _submit(database)
    _fail(database, _claim(database))
    _make_due(database)
    claimed = _claim(database)
    database.write_now(lambda c: ledger.report_progress(c, "job_1", claimed.attempt, done=3, total=7))
    assert (_row(database).progress_done, _row(database).progress_total) == (3, 7)
    database.write_now(lambda c: ledger.succeed(c, "job_1", claimed.attempt))
    row = _row(database)
    assert (row.state, row.progress_done, row.error_code, row.error_message) == (ledger.SUCCEEDED, 7, None, None)


def test_a_waiting_job_is_cancelled_at_once(database: Database) -> None:
    _submit(database)
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    row = _row(database)
    assert (row.state, row.finished_at is not None) == (ledger.CANCELLED, True)
    assert _try_claim(database) is None
    with pytest.raises(PermanentError) as refused:
        database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    assert refused.value.code is ErrorCode.JOB_NOT_CANCELLABLE


def test_a_running_job_is_asked_to_stop(database: Database) -> None:
    _submit(database)
    claimed = _claim(database)
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    assert (_row(database).state, _row(database).cancel_requested) == (ledger.RUNNING, True)
    database.write_now(lambda c: ledger.end_cancelled(c, "job_1", claimed.attempt))
    assert _row(database).state == ledger.CANCELLED


@pytest.mark.parametrize("how", ["release", "reap", "fail"])
def test_a_job_asked_to_stop_never_runs_again(database: Database, how: str) -> None:
    _submit(database)
    claimed = _claim(database, lease_seconds=-1)
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    if how == "release":
        database.write_now(lambda c: ledger.release(c, "job_1", claimed.attempt))
    elif how == "reap":
        database.write_now(lambda c: ledger.reap_expired(c, "ingest"))
    else:
        assert not _fail(database, claimed)
    row = _row(database)
    assert (row.state, row.finished_at is not None) == (ledger.CANCELLED, True)
    assert _try_claim(database) is None


def test_another_tenant_s_job_is_missing(database: Database) -> None:
    _submit(database)
    foreign: tuple[Callable[[Connection], object], ...] = (
        lambda c: ledger.get(c, "t2", "job_1"),
        lambda c: ledger.cancel(c, "t2", "job_1"),
        lambda c: ledger.requeue(c, "t2", "job_1"),
    )
    for verb in foreign:
        with pytest.raises(PermanentError) as refused:
            database.write_now(verb)
        assert refused.value.code is ErrorCode.NOT_FOUND
    assert _row(database).state == ledger.QUEUED


def test_a_dead_job_gets_a_fresh_set_of_tries(database: Database) -> None:
    _submit(database)
    claimed = _claim(database)
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))  # asked to stop, but failed first
    _fail(database, claimed, _PERMANENT)
    database.write_now(lambda c: ledger.requeue(c, "t1", "job_1"))
    row = _row(database)
    assert (row.state, row.failures, row.finished_at, row.error_code, row.cancel_requested) == (
        ledger.QUEUED,
        0,
        None,
        None,
        False,
    )
    assert _claim(database).attempt == 2


@pytest.mark.parametrize("state", [ledger.QUEUED, ledger.RUNNING, ledger.SUCCEEDED, ledger.CANCELLED])
def test_only_a_dead_job_is_requeued(database: Database, state: str) -> None:
    _submit(database)
    _set(database, state=state)
    with pytest.raises(PermanentError) as refused:
        database.write_now(lambda c: ledger.requeue(c, "t1", "job_1"))
    assert refused.value.code is ErrorCode.JOB_NOT_REQUEUEABLE
    assert _row(database).state == state


def test_tenants_take_turns_within_their_shares(database: Database) -> None:
    for number in range(6):
        _submit(database, f"job_a{number}", tenant_id="a")
    for number in range(2):
        _submit(database, f"job_b{number}", tenant_id="b")
    # Two of them share half of 12 places.
    assert [tenant for _, tenant, _ in _take(database, places=12, share=0.5)] == ["a", "b", "a", "b", "a"]
    assert _take(database, places=12, share=0.5) == []
    claimed = [_claim(database, job_id) for job_id in ("job_a0", "job_a1")]
    assert _take(database, places=12, share=0.5) == [], "a running job keeps its place"
    for job in claimed:
        database.write_now(lambda c, done=job: ledger.succeed(c, done.id, done.attempt))  # type: ignore[misc]
    # The other has nothing waiting any more: a quarter of the half.
    assert [job_id for job_id, _, _ in _take(database, places=12, share=0.5)] == ["job_a3"]


def test_whoever_has_fewest_jobs_under_way_comes_first(database: Database) -> None:
    for number in range(9):
        _submit(database, f"job_a{number}", tenant_id="a")
    assert len(_take(database, places=6)) == 6
    _submit(database, "job_b", tenant_id="b")
    assert _take(database, places=6) == [], "there is no place"
    database.write_now(lambda c: ledger.cancel(c, "a", "job_a0"))
    assert [job_id for job_id, _, _ in _take(database, places=6)] == ["job_b"]


def test_a_newcomer_finds_a_place_beside_a_flood(database: Database) -> None:
    for number in range(50):
        _submit(database, f"job_a{number}", tenant_id="a")
    assert len(_take(database, places=8, share=0.5)) == 4
    _submit(database, "job_b", tenant_id="b")
    assert [job_id for job_id, _, _ in _take(database, places=8, share=0.5)] == ["job_b"]


def test_who_was_there_of_late_is_left_room(database: Database) -> None:
    now = 100.0
    capacity = Capacity({"w1": 8}, 0.5, RecentTenants(lambda: now))

    def take_and_do() -> Counter[str]:
        chosen = database.write_now(lambda c: dispatching.take_dispatchable(c, "ingest", capacity))
        for job_id, _, _ in chosen:
            claimed = _claim(database, job_id)
            database.write_now(lambda c, done=claimed: ledger.succeed(c, done.id, done.attempt))  # type: ignore[misc]
        return Counter(tenant for _, tenant, _ in chosen)

    for number in range(50):
        _submit(database, f"job_a{number}", tenant_id="a")
    assert take_and_do() == {"a": 4}
    _submit(database, "job_b", tenant_id="b")
    assert take_and_do() == {"a": 2, "b": 1}
    now += 9.0
    assert take_and_do() == {"a": 1}, "the other was there 9 s ago"
    now += 2.0
    assert take_and_do() == {"a": 4}
    for number in range(50):
        _submit(database, f"job_c{number}", tenant_id="c")
    assert take_and_do() == {"a": 2, "c": 2}, "nobody is there without a backlog"


def test_jobs_of_a_dead_worker_take_no_place(database: Database) -> None:
    for number in range(8):
        _submit(database, f"job_{number}")
    assert len(_take(database, places=4)) == 4
    for number in range(4):
        _claim(database, f"job_{number}", worker="dead")
    assert len(_take(database, places=4)) == 4


def test_without_a_worker_a_few_messages_wait_for_one(database: Database) -> None:
    for number in range(8):
        _submit(database, f"job_{number}")
    taken = database.write_now(lambda c: dispatching.take_dispatchable(c, "ingest", Capacity({}, 1.0)))
    assert 0 < len(taken) < 8


def test_a_round_takes_no_more_than_there_are_places_and_nothing_not_due(database: Database) -> None:
    for number in range(5):
        _submit(database, f"job_{number}")
    _submit(database, "job_later", delay_seconds=3600)
    _submit(database, "job_other", tenant_id="t2", delay_seconds=3600)
    assert [len(_take(database, places=places)) for places in (4, 4, 6, 6)] == [4, 0, 1, 0]


def test_concurrent_dispatchers_take_no_job_twice(database: Database) -> None:
    for number in range(60):
        _submit(database, f"job_{number:02}", tenant_id=f"t{number % 3}")

    def dispatch(_number: int) -> list[str]:
        return [job_id for places in range(10, 70, 10) for job_id, _, _ in _take(database, places=places)]

    taken = Counter(job_id for round_ in _at_once(6, dispatch) for job_id in round_)
    # So many that even one with a backlog beside others may have all of its jobs under way.
    taken.update(job_id for job_id, _, _ in _take(database, places=256))
    assert len(taken) == 60
    assert set(taken.values()) == {1}


def test_an_undone_dispatch_is_chosen_again(database: Database) -> None:
    _submit(database, "job_1")
    _submit(database, "job_2")
    assert len(_take(database)) == 2
    _claim(database, "job_2")
    database.write_now(lambda c: reconciling.undo_dispatch(c, ["job_1", "job_2"]))
    assert [job_id for job_id, _, _ in _take(database)] == ["job_1"]


def test_only_old_messages_are_forgotten(database: Database) -> None:
    for job_id in ("job_old", "job_new", "job_waiting", "job_running"):
        _submit(database, job_id)
    assert len(_take(database)) == 4
    database.write_now(lambda c: reconciling.undo_dispatch(c, ["job_waiting"]))
    _claim(database, "job_running")

    def age(connection: Connection) -> None:
        old = jobs.c.id.in_(["job_old", "job_running"])
        connection.execute(update(jobs).where(old).values(dispatched_at=epoch_now() - 60))

    database.write_now(age)
    forgotten = database.write_now(lambda c: reconciling.forget_lost_messages(c, "ingest", older_than_seconds=3))
    assert forgotten == 1
    assert {job_id for job_id, _, _ in _take(database)} == {"job_old", "job_waiting"}


def test_counts_leave_ended_jobs_out(database: Database) -> None:
    for number in range(3):
        _submit(database, f"job_{number}")
    _claim(database, "job_0")
    database.write_now(lambda c: ledger.cancel(c, "t1", "job_1"))
    assert database.read_now(lambda c: reconciling.counts(c, "ingest")) == {
        ("ingest.file", ledger.RUNNING): 1,
        ("ingest.file", ledger.QUEUED): 1,
    }


def _lease(database: Database, holder: str, seconds: float = 60, name: str = "upkeep") -> bool:
    return database.write_now(lambda c: reconciling.take_lease(c, name, holder, seconds=seconds))


def test_a_lease_has_one_holder_until_it_ends(database: Database) -> None:
    assert _lease(database, "a")
    assert not _lease(database, "b")
    assert _lease(database, "a", seconds=-1)
    assert _lease(database, "b")
    assert not _lease(database, "a")


def test_of_several_first_holders_one_wins(database: Database) -> None:
    for number in range(10):
        won = _at_once(8, lambda holder, number=number: _lease(database, f"h{holder}", name=f"upkeep_{number}"))  # type: ignore[misc]
        assert sum(won) == 1


def test_a_cancel_that_meets_a_release_is_not_lost(database: Database) -> None:
    """Whatever the order, a job that a person stopped ends; it never goes back into the queue for good."""
    for number in range(15):
        job_id = _submit(database, f"job_{number}")
        claimed = _claim(database, job_id)
        moves: tuple[Callable[[Connection], object], ...] = (
            lambda c, job_id=job_id: ledger.cancel(c, "t1", job_id),  # type: ignore[misc]
            lambda c, claimed=claimed: ledger.release(c, claimed.id, claimed.attempt),  # type: ignore[misc]
        )
        _at_once(2, lambda which, moves=moves: database.write_now(moves[which]))  # type: ignore[misc]
        assert _row(database, job_id).state == ledger.CANCELLED
