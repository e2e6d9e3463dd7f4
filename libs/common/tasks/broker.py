"""Connections to the broker Redis for asyncio processes: one pipelined for commands, one per subscription.

redis-py's client takes a pool connection and a round trip per command; under load most of a gateway's CPU would go
there. Here all commands of one turn of the event loop share one write and one read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from libs.common.errors import ErrorCode, RetryableError
from libs.common.logs import get_logger

Argument = str | bytes | int | float

_log = get_logger(__name__)
_SYNCHRONISE_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 0.25
_RECONNECT_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


def _unavailable() -> RetryableError:
    return RetryableError(
        ErrorCode.QUEUE_UNAVAILABLE, "The server's queue cannot be reached. Try again.", retry_after_seconds=2
    )


def _refusal(error: ResponseError) -> Exception:
    """What Redis refuses because of its own state is a platform error; anything else is a mistake of ours."""
    if isinstance(error, OutOfMemoryError):
        return RetryableError(
            ErrorCode.QUEUE_FULL, "The server has more work waiting than it takes on. Try again.", retry_after_seconds=2
        )
    if str(error).startswith("MISCONF"):  # it cannot write to its disk
        return RetryableError(ErrorCode.STORAGE_FULL, "The server's storage is full. Try again later.")
    return error


def _connection(url: str, connect_timeout_seconds: float) -> AbstractConnection:
    # No socket timeout: replies may be a long time coming, and `BrokerConnection` bounds each wait itself.
    pool = ConnectionPool.from_url(
        url, protocol=2, socket_timeout=None, socket_connect_timeout=connect_timeout_seconds, retry=None
    )
    return cast("AbstractConnection", pool.make_connection())  # type: ignore[no-untyped-call]  # redis-py


class BrokerConnection:
    """Commands to Redis, pipelined by turns of the event loop. Must be used within one loop.

    Args:
        url: `redis://…`.
        timeout_seconds: longest wait for one reply, connecting included.
        name: of the server, in logs.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 2.0, name: str = "broker") -> None:
        self._url = url
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._outbox: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._awaiting: deque[asyncio.Future[Any]] = deque()
        self._connection: AbstractConnection | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    async def execute(self, *command: Argument) -> Any:  # noqa: ANN401 - Redis replies have no common type
        """The reply to one command.

        Raises:
            RetryableError: QUEUE_UNAVAILABLE when Redis is away or silent for `timeout_seconds`, and at once while it
                has not spoken since; QUEUE_FULL when its memory is, STORAGE_FULL when its disk is.
            redis.exceptions.ResponseError: Redis refused the command.
        """
        if self._probing is not None and not self._probing.done():
            raise _unavailable()
        future = self.send(*command)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await future
        except TimeoutError:
            self._drop(_unavailable())
            self._probing = asyncio.create_task(self._probe(), name=f"{self._name} probe")
            raise _unavailable() from None

    async def _probe(self) -> None:
        """Find out when a silent server speaks again, so that only one caller had to wait for it in vain."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await self.send("PING")
                return
            except (TimeoutError, RetryableError, RedisError):
                self._drop(_unavailable())

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Put a command into this turn's pipeline; the future gives its reply or error."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._outbox.append((command, future))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return future

    async def _flush(self) -> None:
        while self._outbox:
            batch, self._outbox = self._outbox, []
            try:
                # Bounded as a whole: a silent server accepts connections and fills its socket without an error.
                async with asyncio.timeout(self._timeout_seconds):
                    await self._write(batch)
            except (RedisError, OSError, TimeoutError, UnicodeError) as error:
                _log.warning(f"{self._name} write failed", error=type(error).__name__)
                self._drop(_unavailable())
                for _, future in batch:
                    _fail(future, _unavailable())

    async def _write(self, batch: list[tuple[tuple[Argument, ...], "asyncio.Future[Any]"]]) -> None:
        connection = await self._connected()
        # Whoever gave up while we connected was told that the command did not run: it must not.
        wanted = [(command, future) for command, future in batch if not future.done()]
        packed = connection.pack_commands([command for command, _ in wanted])
        self._awaiting.extend(future for _, future in wanted)
        await connection.send_packed_command(packed, check_health=False)

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            connection = _connection(self._url, self._timeout_seconds)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py
            except BaseException:
                _abandon(connection)
                raise
            self._connection = connection
            self._writer = connection._writer  # noqa: SLF001 - redis-py has no public way to its transport
            self._reading = asyncio.create_task(self._read(connection))
        return self._connection

    async def _read(self, connection: AbstractConnection) -> None:
        try:
            while True:
                try:
                    reply = await connection.read_response(disconnect_on_error=False)
                except ResponseError as error:
                    _fail(self._awaiting.popleft(), _refusal(error))
                    continue
                future = self._awaiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (RedisError, OSError, IndexError) as error:
            _log.warning(f"{self._name} connection lost", error=type(error).__name__)
            if self._connection is connection:
                self._drop(_unavailable())

    def _drop(self, error: RetryableError) -> None:
        connection, self._connection = self._connection, None
        reading, self._reading = self._reading, None
        awaiting, self._awaiting = self._awaiting, deque()
        for future in awaiting:
            _fail(future, error)
        if reading is not None and reading is not asyncio.current_task():
            reading.cancel()
        writer, self._writer = self._writer, None
        if writer is not None:
            # What is buffered must not be sent later: its senders are told that it did not run.
            writer.transport.abort()
        if connection is not None:
            _abandon(connection)

    async def close(self) -> None:
        """Send what is waiting, then close."""
        if self._flushing is not None and not self._flushing.done():
            await asyncio.wait([self._flushing], timeout=self._timeout_seconds)
        if self._awaiting:
            await asyncio.wait(list(self._awaiting), timeout=self._timeout_seconds)
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        reading = self._reading
        self._drop(_unavailable())
        if reading is not None:
            await asyncio.wait([reading])


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it retrieved: a `send` whose reply nobody awaits must not warn


def _abandon(connection: AbstractConnection) -> None:
    # `disconnect` wants to be awaited and may wait for a silent peer; closing the transport is at once.
    closing = asyncio.ensure_future(connection.disconnect(nowait=True))
    closing.add_done_callback(lambda done: done.cancelled() or done.exception())


class Subscription:
    """Listens to one channel for ever, reconnecting as needed.

    Args:
        on_message: called with each message's bytes, on the event loop.
        on_lost: called when the connection broke, since messages may have been missed.
    """

    def __init__(
        self, url: str, channel: str, on_message: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._url = url
        self._channel = channel
        self._on_message = on_message
        self._on_lost = on_lost
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def start(self) -> None:
        """Begin to listen; `connected` is set while the subscription stands."""
        self._task = asyncio.create_task(self._run(), name=f"subscription {self._channel}")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = _connection(self._url, 2.0)
            try:
                async with asyncio.timeout(2.0):
                    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py
                    await connection.send_command("SUBSCRIBE", self._channel, check_health=False)
                    await connection.read_response()
                failures = 0
                self.connected.set()
                await self._listen(connection)
            except (RedisError, OSError, TimeoutError) as error:
                _log.warning("subscription lost", channel=self._channel.partition(":")[0], error=type(error).__name__)
            finally:
                self.connected.clear()
                _abandon(connection)
            self._on_lost()
            await asyncio.sleep(_RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)])
            failures += 1

    async def _listen(self, connection: AbstractConnection) -> None:
        while True:
            _, _, message = await connection.read_response(disconnect_on_error=False)
            self._on_message(message)


class BrokerClock:
    """The broker's clock: deadlines of all processes are judged by it, whatever their own clocks say."""

    def __init__(self, broker: BrokerConnection) -> None:
        self._broker = broker
        self._offset_seconds = 0.0
        self._task: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Unix seconds on the broker's clock, as of the last `synchronise`."""
        return time.time() + self._offset_seconds

    def start(self) -> None:
        """Begin to measure the offset now and every few seconds."""
        self._task = asyncio.create_task(self._run(), name="broker clock")

    async def stop(self) -> None:
        """Stop measuring."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self.synchronise()
            except RetryableError:
                _log.warning("the broker's clock could not be read")
            await asyncio.sleep(_SYNCHRONISE_SECONDS)

    async def synchronise(self) -> float:
        """Measure the offset anew.

        Returns:
            Seconds by which the broker's clock is ahead of this process's.
        """
        before = time.time()
        seconds, microseconds = await self._broker.execute("TIME")
        self._offset_seconds = int(seconds) + int(microseconds) / 1e6 - (before + time.time()) / 2
        return self._offset_seconds
