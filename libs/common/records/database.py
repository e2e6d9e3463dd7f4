"""The database handle: one code path for SQLite and PostgreSQL, usable from coroutines.

Queries are plain functions of a `Connection`, so that several compose into one transaction:

    await database.write(lambda connection: files.insert(connection, tenant_id, row))
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine, Float, create_engine, event, select
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from libs.common.errors import ErrorCode, RetryableError
from libs.common.records.group_commit import GroupCommit, run_plain

T = TypeVar("T")

_WRITE_OPTION: Final = "docent_write"
_THREADS: Final = 8


class epoch_now(GenericFunction[float]):  # noqa: N801 - named like the SQL function it stands for
    """The database's own clock as Unix seconds: leases of all machines are judged by one clock."""

    type = Float()
    inherit_cache = True
    name = "epoch_now"


@compiles(epoch_now, "sqlite")
def _epoch_now_sqlite(_element: epoch_now, _compiler: SQLCompiler, **_kw: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _epoch_now_postgresql(_element: epoch_now, _compiler: SQLCompiler, **_kw: object) -> str:
    return "extract(epoch from clock_timestamp())"


_CLOCK: Final = select(epoch_now())


def read_clock(connection: Connection) -> float:
    """The time by the database's own clock, for statements that are cheaper without a function in them."""
    return float(connection.execute(_CLOCK).scalar_one())


def create_database_engine(url: str) -> Engine:
    """An engine with the settings this code relies on. SQLite runs in WAL with explicit transactions."""
    if not url.startswith("sqlite"):
        # A server that froze must not hold our few threads: every wait for it is bounded.
        bounds = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "options": "-c statement_timeout=30000"}
        return create_engine(
            url, pool_size=_THREADS, max_overflow=0, pool_pre_ping=True, pool_timeout=10, connect_args=bounds
        )
    engine = create_engine(url, pool_size=_THREADS + 1, max_overflow=0, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below opens transactions, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=15000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A write that starts as a read and upgrades later fails at once when another writer is in: take the lock first.
    write = connection.get_execution_options().get(_WRITE_OPTION, False)
    run_plain(connection, "BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    """Runs query functions in transactions, on a few threads, so that no event loop waits for a disk.

    Args:
        url: SQLAlchemy URL; `sqlite:///path` or `postgresql+psycopg://…`.

    Raises (from every call): RetryableError(STORAGE_FULL) when the disk is full, RetryableError(STORAGE_UNAVAILABLE)
    when the database cannot be reached or stays locked.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_database_engine(url)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="sql")
        # SQLite has one writer at a time: waiting here is cheaper than polling for the file's lock.
        self._group = GroupCommit(self._transaction, _storage_errors) if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @property
    def engine(self) -> Engine:
        """For migrations and tests; services use `read` and `write`."""
        return self._engine

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a read transaction on another thread."""
        return await self._in_thread(self.read_now, query)

    async def write(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a write transaction on another thread; committed when this returns."""
        if self._group is not None:
            result: T = await self._group.write(query)
            return result
        return await self._in_thread(self.write_now, query)

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """As `read`, on this thread."""
        with _storage_errors(), self._engine.connect() as connection, connection.begin():
            return query(connection)

    def write_now(self, query: Callable[[Connection], T]) -> T:
        """As `write`, while this thread waits."""
        if self._group is not None:
            result: T = self._group.write_now(query)
            return result
        with _storage_errors(), self._transaction() as connection:
            return query(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.connect() as plain:
            connection = plain.execution_options(**{_WRITE_OPTION: True})
            with connection.begin():
                yield connection

    async def _in_thread(self, run: Callable[[Callable[[Connection], T]], T], query: Callable[[Connection], T]) -> T:
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, run, query)

    def close(self) -> None:
        """Finish what runs and close every connection."""
        if self._group is not None:
            self._group.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise _unreachable() from error
    except OperationalError as error:
        raise _translated(error.orig) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise _translated(error.orig) from error
    except sqlite3.OperationalError as error:  # of what runs without SQLAlchemy
        raise _translated(error) from error


def _translated(original: object) -> RetryableError:
    full = "full" in str(original).lower() or getattr(original, "sqlstate", None) == "53100"
    if full:
        return RetryableError(ErrorCode.STORAGE_FULL, "The server's storage is full. Try again later.")
    return _unreachable()


def _unreachable() -> RetryableError:
    return RetryableError(
        ErrorCode.STORAGE_UNAVAILABLE, "The server's records cannot be reached. Try again.", retry_after_seconds=2
    )
