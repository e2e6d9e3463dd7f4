"""The database handle: all or nothing, many at once, and the platform's errors when the storage fails."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, func, insert, select

from libs.common.errors import ErrorCode, RetryableError
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.local.postgres import postgres_available, running_postgres

_WRITER = """
import sys
from libs.common.records.database import Database
from tests.integration.test_database import insert_tenant
database = Database(sys.argv[1])
for _ in range(60):
    database.write_now(insert_tenant("another process"))
database.close()
"""


def insert_tenant(name: str) -> Callable[[Connection], None]:
    def query(connection: Connection) -> None:
        connection.execute(insert(tenants).values(id=uuid.uuid4().hex, name=name, created_at=epoch_now()))

    return query


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tenants)).scalar_one()


async def test_an_error_undoes_the_whole_write(database: Database) -> None:
    def half(connection: Connection) -> None:
        insert_tenant("half")(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(half)
    assert await database.read(_count) == 0


async def test_coroutines_read_and_write_in_parallel(database: Database) -> None:
    writes = [database.write(insert_tenant(f"{number}")) for number in range(60)]
    reads = [database.read(_count) for _ in range(60)]
    await asyncio.gather(*writes, *reads)
    assert await database.read(_count) == 60


async def test_of_writes_at_the_same_time_an_error_undoes_one(database: Database) -> None:
    def half(connection: Connection) -> None:
        insert_tenant("half")(connection)
        raise LookupError

    writes = [database.write(half if number % 5 == 0 else insert_tenant(f"{number}")) for number in range(50)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:6]] == [LookupError, *[type(None)] * 4, LookupError]
    assert await database.read(_count) == 40


async def test_writes_at_the_same_time_share_commits(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("a server commits for many at once by itself")
    commits: list[Connection] = []
    event.listen(database.engine, "commit", commits.append)
    await asyncio.gather(*(database.write(insert_tenant(f"{number}")) for number in range(200)))
    assert len(commits) < 100
    assert await database.read(_count) == 200


async def test_nobody_hears_of_a_write_whose_commit_failed(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("what is committed together on a server is one query")

    def refuse(_: Connection) -> None:
        raise OSError("no commit")

    await database.write(lambda _: None)  # the writer has begun
    event.listen(database.engine, "commit", refuse)
    outcomes = await asyncio.gather(*(database.write(insert_tenant("x")) for _ in range(20)), return_exceptions=True)
    event.remove(database.engine, "commit", refuse)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 20
    assert await database.read(_count) == 0
    await database.write(insert_tenant("x"))
    assert await database.read(_count) == 1


async def test_a_cancelled_write_harms_no_other(database: Database) -> None:
    writes = [asyncio.create_task(database.write(insert_tenant(f"{number}"))) for number in range(40)]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [outcome for outcome in outcomes[1::2] if outcome is not None] == []
    assert 20 <= await database.read(_count) <= 40


def test_processes_write_side_by_side(database: Database, empty_database_url: str) -> None:
    command = [sys.executable, "-c", _WRITER, empty_database_url]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors.decode()
    assert database.read_now(_count) == 180


async def test_a_full_disk_is_named(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("only SQLite can be told how much room it has")

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for _ in range(200):
            insert_tenant("x" * 4000)(connection)

    with pytest.raises(RetryableError) as refused:
        await database.write(fill)
    assert refused.value.code is ErrorCode.STORAGE_FULL
    assert await database.read(_count) == 0


@pytest.mark.postgres
async def test_a_stopped_server_is_an_error_and_no_hang(tmp_path: Path) -> None:
    if reason := postgres_available():
        pytest.skip(reason)
    with running_postgres(tmp_path) as server:
        database = Database(server.url)
        await database.read(lambda connection: connection.exec_driver_sql("SELECT 1").one())
        os.kill(server.pid, signal.SIGQUIT)
        for _ in range(3):
            with pytest.raises(RetryableError) as refused:
                await asyncio.wait_for(database.read(_count), 15)
            assert refused.value.code is ErrorCode.STORAGE_UNAVAILABLE
        database.close()
