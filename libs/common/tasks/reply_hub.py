"""Replies as a gateway process reads them: frames of the requests it waits for, and events kept for resuming."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import orjson
from pydantic import ValidationError

from libs.common import keys
from libs.common.errors import ErrorCode, PlatformError, RetryableError, error_for
from libs.common.keyring import Keyring
from libs.common.logs import get_logger
from libs.common.tasks.broker import BrokerConnection, Subscription
from libs.common.tasks.replies import Frame
from libs.common.tasks.wire import error_body

_log = get_logger(__name__)
# With what the server and the allocator add, a stream that nobody reads takes less than 1 MB.
_MAX_BUFFERED_BYTES: Final = 512 << 10
# Of a frame beside its data: many small ones weigh more than their bytes.
_FRAME_BYTES: Final = 1024


class PendingReply:
    """What a gateway process holds while it waits: an async iterator over a reply's frames.

    Args:
        on_overflow: called once, when the reader is too far behind: nobody will get the rest.
    """

    def __init__(self, on_overflow: Callable[[], None] | None = None) -> None:
        self._on_overflow = on_overflow
        self._frames: asyncio.Queue[tuple[Frame, bytes]] = asyncio.Queue()
        self._buffered_bytes = 0
        self.overflowed = False

    def put(self, frame: Frame, data: bytes) -> None:
        """Called by the hub. A client that does not read gets no more than a bounded buffer."""
        # One frame always fits: whoever reads in time is not slow, however long an event is.
        if frame.kind == "events" and 0 < self._buffered_bytes > _MAX_BUFFERED_BYTES - len(data) - _FRAME_BYTES:
            if not self.overflowed and self._on_overflow is not None:
                self._on_overflow()
            self.overflowed = True
            return
        self._buffered_bytes += len(data) + _FRAME_BYTES
        self._frames.put_nowait((frame, data))

    async def next(self) -> tuple[Frame, bytes]:
        """The next frame and its data, as soon as it arrives."""
        frame, data = await self._frames.get()
        self._buffered_bytes -= len(data) + _FRAME_BYTES
        return frame, data


class ReplyHub:
    """Receives the replies of one gateway process and hands them to whoever waits, by request id."""

    def __init__(self, url: str, process_id: str, keyring: Keyring) -> None:
        self.channel = keys.replies(process_id)
        self._sealer = keyring.sealer(keys.REPLIES_PURPOSE)
        self._waiting: dict[str, PendingReply] = {}
        self._subscription = Subscription(url, self.channel, self._deliver, self._lost)

    def start(self) -> None:
        """Begin to listen."""
        self._subscription.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._subscription.close()

    @property
    def connected(self) -> bool:
        return self._subscription.connected.is_set()

    def expect(self, request_id: str, on_overflow: Callable[[], None] | None = None) -> PendingReply:
        """Begin to collect frames of this request; call before its message is pushed."""
        pending = self._waiting[request_id] = PendingReply(on_overflow)
        return pending

    def forget(self, request_id: str) -> None:
        """Stop collecting frames of this request."""
        self._waiting.pop(request_id, None)

    def _deliver(self, message: bytes) -> None:
        raw_id, _, sealed = message.partition(b" ")
        request_id = raw_id.decode("ascii", "replace")
        pending = self._waiting.get(request_id)
        if pending is None:
            return
        try:
            header, _, data = self._sealer.open(sealed, request_id).partition(b"\n")
            frame = Frame.model_validate_json(header)
        except (PlatformError, ValidationError):
            _log.warning("refused a reply that was not sealed by us")
            return
        pending.put(frame, data)

    def _lost(self) -> None:
        error = RetryableError(
            ErrorCode.QUEUE_UNAVAILABLE, "The connection to the server's queue broke. Try again.", retry_after_seconds=2
        )
        for pending in self._waiting.values():
            pending.put(Frame(kind="error"), orjson.dumps(error_body(error)))


def error_from(data: bytes) -> PlatformError:
    """The error in an error frame's data."""
    body = orjson.loads(data)
    # A newer service may know more codes during a rolling update.
    known = {code.value for code in ErrorCode}
    code = ErrorCode(body["code"]) if body["code"] in known else ErrorCode.SERVER_ERROR
    return error_for(code, body["message"], param=body["param"], retry_after_seconds=body["retry_after_seconds"])


class EventLog:
    """Reads the kept events of one stored response, from any gateway process."""

    def __init__(self, broker: BrokerConnection, keyring: Keyring) -> None:
        self._broker = broker
        self._sealer = keyring.sealer(keys.REPLIES_PURPOSE)

    async def exists(self, tenant_id: str, request_id: str) -> bool:
        """Whether events are still kept."""
        return bool(await self._broker.execute("EXISTS", keys.events(tenant_id, request_id)))

    async def is_being_made(self, tenant_id: str, request_id: str) -> bool:
        """Whether a live worker answers this request right now."""
        return bool(await self._broker.execute("EXISTS", keys.answering(tenant_id, request_id)))

    async def read(
        self,
        tenant_id: str,
        request_id: str,
        *,
        after: int,
        goes_on: Callable[[], Awaitable[bool]],
        poll_seconds: float = 0.1,
    ) -> AsyncIterator[bytes]:
        """Server-sent event blocks with sequence numbers above `after`, to the end of the stream.

        Args:
            goes_on: asked when nothing new came for a second: whether more may come though no end was kept.
        """
        key = keys.events(tenant_id, request_id)
        position = "-"
        idle_polls = 0
        while True:
            entries = await self._broker.execute("XRANGE", key, position, "+")
            for entry_id, fields in entries:
                position = f"({entry_id.decode()}"
                first = int(entry_id.partition(b"-")[0]) - 1
                for block in self._blocks(key, first, fields, after):
                    yield block
                if fields[fields.index(b"e") + 1] == b"1":
                    return
            idle_polls = 0 if entries else idle_polls + 1
            if idle_polls and idle_polls * poll_seconds % 1.0 < poll_seconds and not await goes_on():
                return
            if not entries:
                await asyncio.sleep(poll_seconds)

    def _blocks(self, key: str, first: int, fields: Sequence[bytes], after: int) -> list[bytes]:
        data = self._sealer.open(fields[fields.index(b"d") + 1], key, str(first))
        blocks = [block + b"\n\n" for block in data.split(b"\n\n") if block]
        return blocks[max(0, after + 1 - first) :]
