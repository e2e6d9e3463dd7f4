"""The gateway's side of the interactive lane: makes calls and cancels them when nobody waits any more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from libs.common import keys
from libs.common.contracts.base import Message
from libs.common.errors import ErrorCode, RetryableError
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.open_call import Call, OpenCall, Sender
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.reply_hub import ReplyHub
from libs.common.tasks.wire import MessageSealer

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)


class Caller:
    """Makes interactive calls from one gateway process. Must be used within one event loop.

    Args:
        consumerless_seconds: as for `Sender`.
    """

    def __init__(
        self,
        broker: BrokerConnection,
        publisher: Publisher,
        consumers: Consumers,
        clock: BrokerClock,
        messages: MessageSealer,
        hub: ReplyHub,
        *,
        consumerless_seconds: float = 8.0,
    ) -> None:
        self.sender = Sender(
            publisher,
            consumers,
            clock,
            messages,
            reply_to=hub.channel,
            consumerless_seconds=consumerless_seconds,
        )
        self._broker = broker
        self._hub = hub

    @asynccontextmanager
    async def open(self, call: Call[RequestT, ReplyT]) -> AsyncIterator[OpenCall[ReplyT]]:
        """Push a request; leaving the block early cancels it at the worker.

        Raises:
            RetryableError: refused, or the broker is away.
        """
        if not self._hub.connected:
            raise RetryableError(
                ErrorCode.QUEUE_UNAVAILABLE, "The server's queue cannot be reached. Try again.", retry_after_seconds=2
            )
        # At once: the reader may be stuck for long before it hears of it, and the model would go on for nobody.
        pending = self._hub.expect(call.id, on_overflow=lambda: self.cancel(call.id))
        open_call: OpenCall[ReplyT] = OpenCall(self.sender, call, pending)  # type: ignore[arg-type]  # read-only in RequestT
        try:
            await open_call.push()
            yield open_call
        finally:
            self._hub.forget(call.id)
            if call.stream:
                self.sender.publisher.release_stream(call.limits, call.id)
            if open_call.in_flight:
                self.cancel(call.id)

    async def call(self, call: Call[RequestT, ReplyT]) -> ReplyT:
        """Make a request and wait for its reply.

        Raises:
            PlatformError: the request failed, wherever that was.
        """
        async with self.open(call) as open_call:
            return await open_call.reply()

    def cancel(self, request_id: str) -> None:
        """Have a request stopped wherever it is; nobody waits for the outcome."""
        self._broker.send("SET", keys.cancel(request_id), "1", "EX", 300)
        self._broker.send("PUBLISH", keys.CANCELS, request_id)
