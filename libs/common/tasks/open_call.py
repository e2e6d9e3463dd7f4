"""One interactive request on its way: where it is now, and what to do when its message or its worker died."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from libs.common import metrics, telemetry
from libs.common.contracts.base import Message, TaskSpec
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.logs import get_logger
from libs.common.tasks.broker import BrokerClock
from libs.common.tasks.publisher import Admission, Consumers, Limits, Publisher
from libs.common.tasks.replies import Frame
from libs.common.tasks.reply_hub import PendingReply, error_from
from libs.common.tasks.wire import Envelope, MessageSealer

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

_log = get_logger(__name__)
_UNSTARTED_SECONDS: Final = 2.0
_WATCH_SECONDS: Final = 1.0
_MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Call(Generic[RequestT, ReplyT]):
    """One request to be made.

    Args:
        id: the request's id, unique for ever.
        keep_events: keep its events for whoever resumes the stream.
        stream: counts as one of the key's parallel streams.
        admission: of a request that was counted before.
    """

    spec: TaskSpec[RequestT, ReplyT]
    request: RequestT
    id: str
    limits: Limits
    deadline_seconds: float
    keep_events: bool = False
    stream: bool = False
    admission: Admission | None = None


class Sender:
    """What a call on its way needs: sealing, pushing, and looking after queue and worker.

    Args:
        reply_to: the channel of this gateway process.
        consumerless_seconds: how long a queue may be without a live consumer before its callers are refused; longer
            than a worker takes to restart.
    """

    def __init__(
        self,
        publisher: Publisher,
        consumers: Consumers,
        clock: BrokerClock,
        messages: MessageSealer,
        *,
        reply_to: str,
        consumerless_seconds: float,
    ) -> None:
        self.publisher = publisher
        self.consumers = consumers
        self.consumerless_seconds = consumerless_seconds
        self._clock = clock
        self._messages = messages
        self._reply_to = reply_to

    def seal(self, call: Call[Message, ReplyT], attempt: int) -> bytes:
        """The message of one attempt."""
        now = self._clock.now()
        envelope = Envelope(
            id=call.id,
            task=call.spec.name,
            tenant_id=call.limits.tenant_id,
            key_id=call.limits.key_id,
            attempt=attempt,
            issued_at=now,
            deadline=now + call.deadline_seconds,
            reply_to=self._reply_to,
            keep_events=call.keep_events,
            traceparent=telemetry.current_traceparent(),
        )
        return self._messages.seal(call.spec.queue, envelope, call.request.model_dump_json().encode())


class OpenCall(Generic[ReplyT]):
    """A request on its way. Read `events` until it ends, then `reply`."""

    def __init__(self, sender: "Sender", call: Call[Message, ReplyT], pending: PendingReply) -> None:
        self._sender = sender
        self._call = call
        self._pending = pending
        self._deadline = asyncio.get_running_loop().time() + call.deadline_seconds + 1.0
        self._attempt = 0
        self._message = b""
        # Where the request is: in a queue since a moment, or with a worker of that queue.
        self._queue: str = call.spec.queue
        self._queued_at = 0.0
        self._worker = ""
        self._passed_on = False
        self._consumerless_since: float | None = None
        self._begun = False
        self.admission = call.admission
        self.from_cache = False  # known once the first event or the reply is here, like the next two
        self.model = ""
        self.degraded = False
        self.in_flight = False  # a worker may have it, or get it
        self._reply: ReplyT | None = None

    async def push(self) -> None:
        """Admit and push.

        Raises:
            RetryableError: refused, or the broker is away.
        """
        self._message = self._sender.seal(self._call, self._attempt)
        self._queued_at = asyncio.get_running_loop().time()
        with telemetry.span("publish", **{telemetry.MESSAGING_DESTINATION_NAME: str(self._call.spec.queue)}):
            self.in_flight = True
            try:
                admission = await self._sender.publisher.admit_and_push(
                    self._call.limits,
                    self._call.spec.queue,
                    self._message,
                    stream_id=self._call.id if self._call.stream else "",
                    stream_seconds=self._call.deadline_seconds,
                    counted=self.admission is not None,
                )
                self.admission = self.admission or admission
            except PlatformError as error:
                # Silence of the broker leaves it open whether the message went into the queue.
                self.in_flight = error.code is ErrorCode.QUEUE_UNAVAILABLE
                raise

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent event blocks as they arrive; returns at the reply.

        Raises:
            PlatformError: the request failed, wherever that was.
        """
        while True:
            frame, data = await self._next_frame()
            if self._pending.overflowed:
                raise RetryableError(ErrorCode.TOO_MANY_STREAMS, "The client reads its stream too slowly.")
            if frame.attempt != self._attempt and frame.kind != "error":
                continue  # an attempt that was given up still speaks
            self.from_cache, self.model, self.degraded = frame.from_cache, frame.model, frame.degraded
            if frame.kind == "started":
                self._worker = frame.worker
            elif frame.kind == "passed":
                self._enter(data.decode(), passed_on=True)
            elif frame.kind == "events":
                self._begun = True
                yield data
            elif frame.kind == "error":
                self.in_flight = frame.worker == ""  # the hub's own: only the connection was lost
                raise error_from(data)
            else:
                self.in_flight = False
                self._reply = self._call.spec.reply.model_validate_json(data)
                return

    async def reply(self) -> ReplyT:
        """The final reply; events on the way are dropped.

        Raises:
            PlatformError: the request failed, wherever that was.
        """
        if self._reply is None:
            async for _ in self.events():
                pass
        if self._reply is None:
            raise RetryableError(ErrorCode.SERVER_ERROR, "The reply did not arrive.")
        return self._reply

    def _enter(self, queue: str, *, passed_on: bool) -> None:
        self._queue = queue
        self._queued_at = asyncio.get_running_loop().time()
        self._worker = ""
        self._passed_on = passed_on
        self._consumerless_since = None

    async def _next_frame(self) -> tuple[Frame, bytes]:
        while True:
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    return await self._pending.next()
            except TimeoutError:
                if asyncio.get_running_loop().time() > self._deadline:
                    raise RetryableError(
                        ErrorCode.DEADLINE_EXCEEDED, "The request took longer than its deadline. Try again."
                    ) from None
            await self._watch()

    async def _watch(self) -> None:
        """Nothing came for a while: the request must be with a live worker, or wait for one that lives."""
        if self._worker:
            if not await self._sender.consumers.is_alive(self._queue, self._worker):
                await self._begin_again()
            return
        now = asyncio.get_running_loop().time()
        if now - self._queued_at < _UNSTARTED_SECONDS:
            return
        if not await self._waits_in_queue():
            await self._begin_again()
            return
        if await self._sender.consumers.count(self._queue) > 0:
            self._consumerless_since = None
            return
        self._consumerless_since = self._consumerless_since or now
        if now - self._consumerless_since >= self._sender.consumerless_seconds:
            await self._give_up()

    async def _waits_in_queue(self) -> bool:
        # The message of a request that was passed on is not known here: any message may be it.
        if self._passed_on:
            return await self._sender.publisher.depth(self._queue) > 0
        return await self._sender.publisher.holds(self._queue, self._message)

    async def _give_up(self) -> None:
        """Nobody consumes the queue: take the message back and say so, unless somebody has just taken it."""
        if not self._passed_on:
            if not await self._sender.publisher.withdraw(self._queue, self._message):
                return
            self.in_flight = False
        raise RetryableError(
            ErrorCode.QUEUE_UNAVAILABLE,
            f"The service behind the queue '{self._queue}' is not running right now. Try again.",
            retry_after_seconds=5,
        )

    async def _begin_again(self) -> None:
        """The message or its worker is lost: start over, unless the client has seen a part of the answer."""
        if self._begun:
            raise RetryableError(ErrorCode.SERVER_ERROR, "The server that was answering was lost. Try again.")
        if self._attempt + 1 >= _MAX_ATTEMPTS:
            raise RetryableError(ErrorCode.SERVER_ERROR, "The server was lost while answering. Try again.")
        self._attempt += 1
        queue = self._call.spec.queue
        metrics.REPUSHED_MESSAGES.labels(queue=queue).inc()
        _log.warning("pushing a request again", request_id=self._call.id, attempt=self._attempt)
        self._message = self._sender.seal(self._call, self._attempt)
        self._enter(queue, passed_on=False)
        await self._sender.publisher.push(queue, self._message)
