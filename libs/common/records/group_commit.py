"""SQLite's one writer: what several callers write at the same time is committed together.

A transaction of its own costs a small write more than the write itself, and every commit is a turn at the lock that all
processes share. Each query runs under a savepoint, so an error undoes that query alone; callers hear of their results
only after the commit.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlalchemy import Connection

# Whoever came first waits for those who join, and other processes for all of them.
_JOIN_SECONDS: Final = 0.01

Query = Callable[[Connection], Any]


class _Write:
    """A query and what came of it, which nobody hears of before the commit.

    Args:
        outcome: the caller's, on a thread that waits or on an event loop.
    """

    def __init__(self, query: Query, outcome: "Future[Any] | asyncio.Future[Any]") -> None:
        self.outcome = outcome
        self.error: BaseException | None = None
        self._query = query
        self._context: Context = copy_context()
        self._result: Any = None

    def run(self, connection: Connection) -> None:
        self._result = self._context.run(self._query, connection)

    def tell(self) -> None:
        if self.outcome.cancelled():
            return
        if self.error is None:
            self.outcome.set_result(self._result)
        else:
            self.outcome.set_exception(self.error)


class GroupCommit:
    """Runs queries one after the other on a thread of its own.

    Args:
        transaction: opens one; leaving it without an error commits.
        errors: turns the storage's errors into the platform's.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._transaction = transaction
        self._errors = errors
        self._waiting: SimpleQueue[_Write | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    async def write(self, query: Query) -> Any:  # noqa: ANN401 - the query's own type
        """Run `query` when its turn comes; committed when this returns. Cancelled before that, it may not be run."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._submit(_Write(query, outcome))
        return await outcome

    def write_now(self, query: Query) -> Any:  # noqa: ANN401 - the query's own type
        """As `write`, while this thread waits."""
        outcome: Future[Any] = Future()
        self._submit(_Write(query, outcome))
        return outcome.result()

    def close(self) -> None:
        """Finish what was submitted."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _submit(self, write: _Write) -> None:
        self._waiting.put(write)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="sql writer", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while (write := self._waiting.get()) is not None:
            if not write.outcome.cancelled():
                _tell_all(self._commit(write))

    def _commit(self, first: _Write) -> list[_Write]:
        """One transaction with `first` and whatever comes while it lasts."""
        writes = [first]
        try:
            with self._errors(), self._transaction() as connection:
                until = time.monotonic() + _JOIN_SECONDS
                self._try(connection, first)
                while time.monotonic() < until and (write := self._next()) is not None:
                    writes.append(write)
                    self._try(connection, write)
        except BaseException as error:  # noqa: BLE001 - theirs, whatever it is: this thread must live on
            for write in writes:
                write.error = write.error or error
        return writes

    def _try(self, connection: Connection, write: _Write) -> None:
        run_plain(connection, "SAVEPOINT one")
        try:
            with self._errors():
                write.run(connection)
        except BaseException as error:  # noqa: BLE001 - goes to whoever asked
            write.error = error
            # Where this fails, the whole transaction is gone: a full disk ends it.
            run_plain(connection, "ROLLBACK TO one")
        run_plain(connection, "RELEASE one")

    def _next(self) -> _Write | None:
        """Another write that waits already."""
        with suppress(Empty):
            while (write := self._waiting.get_nowait()) is not None:
                if not write.outcome.cancelled():
                    return write
            self._waiting.put(None)  # the end comes after this transaction
        return None


def _tell_all(writes: Sequence[_Write]) -> None:
    """An event loop is woken once for all of its callers: to wake it costs as much as a small write."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in writes:
        if isinstance(write.outcome, asyncio.Future):
            by_loop.setdefault(write.outcome.get_loop(), []).append(write)
        else:
            write.tell()
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, and its callers with it
            loop.call_soon_threadsafe(_tell_here, theirs)


def _tell_here(writes: Sequence[_Write]) -> None:
    for write in writes:
        write.tell()


def run_plain(connection: Connection, statement: str) -> None:
    """Run a statement of SQLite without parameters or result past SQLAlchemy, which would take ten times as long."""
    driver: Any = connection.connection.driver_connection
    driver.execute(statement)
