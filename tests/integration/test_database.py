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
from sqlalchemy import Connection, func, insert, select

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
