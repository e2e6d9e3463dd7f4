"""Replies as workers write them: sealed frames over one channel per gateway process, events kept for whoever resumes.

A worker writes through `Reply`; a gateway process reads through `reply_hub.ReplyHub`. Events are finished blocks of
server-sent events, so a gateway passes bytes on, and a resumed stream is the same byte for byte. One `Outbox` per
worker process coalesces the events of a few milliseconds, so that load costs batching, not messages.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, Generic, Literal, TypeVar

import orjson

from libs.common import keys, telemetry
from libs.common.contracts.base import Message, TaskSpec
from libs.common.errors import PlatformError
from libs.common.logs import get_logger
from libs.common.sealing import Sealer
from libs.common.tasks.broker import BrokerConnection
from libs.common.tasks.wire import Envelope, MessageSealer, error_body

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)
OtherT = TypeVar("OtherT", bound=Message)

Kind = Literal["started", "events", "passed", "done", "error"]

_log = get_logger(__name__)
# The event that ends the stream of a completion.
DONE_BLOCK: Final = b"data: [DONE]\n\n"
_TICK_SECONDS: Final = 0.01
_KEEP_EVENTS_SECONDS: Final = 300
_KEEP_UNFINISHED_SECONDS: Final = 3600


class Frame(Message):
    """One message of a reply. `sequence` is the number of its first event, `count` how many it holds.

    `from_cache` says that the answer was made for an earlier question; `model` names who answers, if that is known, and
    `degraded` that no model does.
    """

    kind: Kind
    attempt: int = 0
    worker: str = ""
    sequence: int = 0
    count: int = 0
    from_cache: bool = False
    model: str = ""
    degraded: bool = False


class Outbox:
    """Coalesces what one process publishes: at once after a pause, else every tick."""

    def __init__(self, broker: BrokerConnection) -> None:
        self._broker = broker
        self._pending: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last_flush = 0.0

    def wake(self, flush: Callable[[], None], *, at_once: bool = False) -> None:
        """A reply has something to send; `flush` will be called at the next tick.

        Args:
            at_once: whether not to wait for one, as with the first token, for which a person waits.
        """
        self._pending.append(flush)
        loop = asyncio.get_running_loop()
        if at_once:
            loop.call_soon(self.flush)
        elif self._timer is None:
            self._timer = loop.call_at(max(loop.time(), self._last_flush + _TICK_SECONDS), self.flush)

    def flush(self) -> None:
        """Send everything now; commands of one flush share one write."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        for flush in pending:
            flush()
        self._last_flush = asyncio.get_running_loop().time()

    def publish(self, channel: str, frame: bytes) -> "asyncio.Future[int]":
        """Publish now."""
        return self._broker.send("PUBLISH", channel, frame)

    async def push(self, queue: str, message: bytes) -> None:
        """Put a message into a queue; returns when the broker has it."""
        await self._broker.execute("LPUSH", queue, message)

    def keep(self, key: str, sequence: int, count: int, sealed: bytes, *, ended: bool) -> None:
        """Append events to the resumable stream; Redis refuses a sequence number it has."""
        self._broker.send("XADD", key, f"{sequence + 1}-0", "n", count, "e", int(ended), "d", sealed)
        self._broker.send("EXPIRE", key, _KEEP_EVENTS_SECONDS if ended else _KEEP_UNFINISHED_SECONDS)


class Reply(Generic[ReplyT]):
    """Where a handler puts its answer. Ends by exactly one of `done`, `fail` and `pass_on`."""

    def __init__(
        self, envelope: Envelope, worker: str, outbox: Outbox, sealer: Sealer, messages: MessageSealer
    ) -> None:
        self._envelope = envelope
        self._worker = worker
        self._outbox = outbox
        self._sealer = sealer
        self._messages = messages
        self._blocks: list[bytes] = []
        self._first = 0
        self.ended = False
        self.from_cache = False
        self.model = ""
        self.degraded = False

    @property
    def request_id(self) -> str:
        return self._envelope.id

    @property
    def tenant_id(self) -> str:
        return self._envelope.tenant_id

    @property
    def next_sequence(self) -> int:
        """The number the next event will get."""
        return self._first + len(self._blocks)

    def continue_at(self, sequence: int) -> None:
        """Number events from here on: another service has sent the earlier ones."""
        self._first = sequence

    def started(self) -> None:
        """Tell whoever waits that a live worker has the request."""
        self._send("started", b"")

    def event(self, block: bytes) -> None:
        """Send one server-sent event block, such as `data: {…}` and an empty line."""
        self._blocks.append(block)
        if len(self._blocks) == 1:
            self._outbox.wake(self.flush, at_once=self._first == 0)

    async def done(self, reply: ReplyT) -> None:
        """End with the final reply; returns when the broker has it."""
        self.ended = True
        self.flush()
        if self._envelope.keep_events:
            self._keep(self.next_sequence, 0, b"", ended=True)
        with telemetry.span("reply"):
            await self._send("done", reply.model_dump_json().encode())

    async def fail(self, error: PlatformError) -> None:
        """End with an error; returns when the broker has it."""
        self.ended = True
        self.flush()
        body = orjson.dumps(error_body(error))
        if self._envelope.keep_events:
            self._keep(self.next_sequence, 1, error_block(error), ended=True)
        await self._send("error", body)

    async def pass_on(self, spec: TaskSpec[RequestT, OtherT], request: RequestT) -> None:
        """Hand the request to another service, which answers in our place, by the same deadline."""
        self.ended = True
        self.flush()
        envelope = self._envelope.model_copy(update={"task": spec.name})
        message = self._messages.seal(spec.queue, envelope, request.model_dump_json().encode())
        self._send("passed", str(spec.queue).encode())  # before the push: nothing of the next worker may overtake it
        await self._outbox.push(spec.queue, message)

    def end_events(self) -> None:
        """End the kept events of a reply that nobody waits for."""
        self.ended = True
        self.flush()
        self._keep(self.next_sequence, 0, b"", ended=True)

    async def post(self, spec: TaskSpec[RequestT, OtherT], request: RequestT) -> None:
        """Tell another service something in passing; its reply goes nowhere."""
        envelope = self._envelope.model_copy(
            update={"id": uuid.uuid4().hex, "task": spec.name, "attempt": 0, "reply_to": None, "keep_events": False}
        )
        message = self._messages.seal(spec.queue, envelope, request.model_dump_json().encode())
        await self._outbox.push(spec.queue, message)

    def flush(self) -> None:
        """Send the events gathered so far."""
        if not self._blocks:
            return
        blocks, self._blocks = self._blocks, []
        first, self._first = self._first, self._first + len(blocks)
        data = b"".join(blocks)
        if self._envelope.keep_events and self._envelope.reply_to is None:
            # A job may be made again: kept one by one, whatever events the attempt before left are left out, no others.
            for number, block in enumerate(blocks, first):
                self._keep(number, 1, block, ended=False)
        elif self._envelope.keep_events:
            self._keep(first, len(blocks), data, ended=False)
        self._send("events", data, first, len(blocks))

    def _keep(self, first: int, count: int, data: bytes, *, ended: bool) -> None:
        key = keys.events(self.tenant_id, self.request_id)
        self._outbox.keep(key, first, count, self._sealer.seal(data, key, str(first)), ended=ended)

    def _send(self, kind: Kind, data: bytes, sequence: int = 0, count: int = 0) -> "asyncio.Future[int]":
        channel = self._envelope.reply_to
        if channel is None:
            nobody: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            nobody.set_result(0)
            return nobody
        frame = Frame(
            kind=kind,
            attempt=self._envelope.attempt,
            worker=self._worker,
            sequence=sequence,
            count=count,
            from_cache=self.from_cache,
            model=self.model,
            degraded=self.degraded,
        )
        sealed = self._sealer.seal(frame.model_dump_json().encode() + b"\n" + data, self.request_id)
        return self._outbox.publish(channel, self.request_id.encode() + b" " + sealed)


def sse_block(event: dict[str, object], *, name: str | None = None) -> bytes:
    """One server-sent event, complete with its empty line."""
    prefix = f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + orjson.dumps(event) + b"\n\n"


def error_block(error: PlatformError) -> bytes:
    """The event by which a stream ends in an error; the official SDKs raise on it."""
    body = {"message": error.message, "type": error.code.kind.type, "param": error.param, "code": error.code.value}
    return sse_block({"error": body})
