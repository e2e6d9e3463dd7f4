"""Reservations: one run at a time, one seed for as long as the row lives, replies that only their run keeps."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection, func, select, update

from libs.common.contracts.ids import seeded_ids
from libs.common.contracts.requests import new_id
from libs.common.errors import ErrorCode, PlatformError
from libs.common.records import files, idempotency
from libs.common.records.database import Database, epoch_now
from libs.common.records.files import NewFile
from libs.common.records.idempotency import Kept, Run, Wanted
from libs.common.records.tables import files as file_rows
from libs.common.records.tables import idempotency as rows
from libs.common.records.tables import tenants

_WANTED = Wanted("a", "key", "f" * 64, keep_seconds=60.0)


def _reserve(database: Database, wanted: Wanted = _WANTED) -> Run | Kept:
    return database.write_now(lambda connection: idempotency.reserve(connection, wanted))


def _run(database: Database, wanted: Wanted = _WANTED) -> Run:
    run = _reserve(database, wanted)
    assert isinstance(run, Run)
    return run


def _refused(database: Database, wanted: Wanted = _WANTED) -> ErrorCode:
    with pytest.raises(PlatformError) as refused:
        _reserve(database, wanted)
    return refused.value.code


def _set(database: Database, **values: float) -> None:
    database.write_now(lambda connection: connection.execute(update(rows).values(**values)))


def test_of_many_at_once_one_runs(database: Database) -> None:
    def attempt(_number: int) -> Run | Kept | ErrorCode:
        try:
            return _reserve(database)
        except PlatformError as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(24)))
    assert sum(isinstance(outcome, Run) for outcome in outcomes) == 1
    assert outcomes.count(ErrorCode.IDEMPOTENCY_IN_PROGRESS) == 23


def test_another_request_under_the_same_key_is_refused(database: Database) -> None:
    run = _run(database)
    assert _refused(database, replace(_WANTED, fingerprint="0" * 64)) is ErrorCode.IDEMPOTENCY_KEY_REUSED
    assert _run(database, replace(_WANTED, tenant_id="b")).seed != run.seed


def test_a_kept_reply_is_found_until_it_expires(database: Database) -> None:
    run = _run(database)
    database.write_now(lambda connection: idempotency.keep_reply(connection, run, 201, b"sealed"))
    assert _reserve(database) == Kept(201, b"sealed", run.seed, 1)
    _set(database, expires_at=0.0)
    anew = _run(database)
    assert anew.attempt == 1
    assert anew.seed != run.seed


def test_a_dead_run_is_taken_over_with_its_seed_and_cannot_speak_any_more(database: Database) -> None:
    dead = _run(database)
    _set(database, lease_expires_at=0.0)
    heir = _run(database)
    assert (heir.seed, heir.attempt) == (dead.seed, 2)
    database.write_now(lambda connection: idempotency.release(connection, dead))
    database.write_now(lambda connection: idempotency.keep_reply(connection, dead, 200, b"stale"))
    assert _refused(database) is ErrorCode.IDEMPOTENCY_IN_PROGRESS
    database.write_now(lambda connection: idempotency.keep_reply(connection, heir, 200, b"fresh"))
    found = _reserve(database)
    assert isinstance(found, Kept)
    assert found.sealed_reply == b"fresh"


def test_a_lease_is_extended_and_released(database: Database) -> None:
    run = _run(database)
    _set(database, lease_expires_at=0.0)
    database.write_now(lambda connection: idempotency.extend_lease(connection, run))
    assert _refused(database) is ErrorCode.IDEMPOTENCY_IN_PROGRESS
    database.write_now(lambda connection: idempotency.release(connection, run))
    assert _run(database).seed == run.seed


def test_a_request_that_is_no_repeat_begins_anew(database: Database) -> None:
    wanted = replace(_WANTED, lease_seconds=0.0)
    first = database.write_now(lambda connection: idempotency.reserve_anew(connection, wanted))
    second = database.write_now(lambda connection: idempotency.reserve_anew(connection, wanted))
    repeat = _run(database, wanted)
    assert first.seed != second.seed == repeat.seed


def test_what_was_made_before_a_crash_is_found_after_it(database: Database) -> None:
    database.write_now(
        lambda connection: connection.execute(tenants.insert().values(id="a", name="a", created_at=epoch_now()))
    )

    def make(run: Run, blob_id: str) -> files.File:
        with seeded_ids(run.seed, run.attempt):
            new = NewFile(new_id("file"), "a.txt", "assistants", 3, "0" * 64, blob_id)
        return database.write_now(lambda connection: files.insert(connection, "a", new))

    made = make(_run(database), "blob_1")
    _set(database, lease_expires_at=0.0)  # killed after the commit, before the reply
    assert make(_run(database), "blob_2") == made
    assert database.read_now(lambda c: c.execute(select(func.count()).select_from(file_rows)).scalar_one()) == 1


def test_expired_rows_are_cleared_away_some_at_a_time(database: Database) -> None:
    def fill(connection: Connection) -> None:
        for number in range(5):
            idempotency.reserve(connection, replace(_WANTED, key=str(number), keep_seconds=-1.0))
        idempotency.reserve(connection, _WANTED)

    database.write_now(fill)
    cleared = [database.write_now(lambda c: idempotency.clear_expired(c, limit=3)) for _ in range(3)]
    assert cleared == [3, 2, 0]
    assert _refused(database) is ErrorCode.IDEMPOTENCY_IN_PROGRESS
