"""What a connection may cost around its requests: time, bytes and places, none of which uvicorn bounds.

A head that takes too long or is too large is refused, a client that does not read is cut off, and of the connections
that wait for a request the oldest is closed when there are too many, so that half-open ones never keep others out.
"""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from libs.common import metrics
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from services.gateway.errors import error_response
from services.gateway.settings import GatewaySettings

_LINGER_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one server's connections.

    Args:
        head_seconds: from the first byte of a request, or the connection's beginning, to the end of its headers.
        head_bytes: of a request line and headers, beyond the piece in which they begin.
        write_seconds: for a client to make room for more of an answer, or to take the rest of one.
        waiting: connections that may be open without a request.
    """

    head_seconds: float
    head_bytes: int
    write_seconds: float
    waiting: int

    @classmethod
    def of(cls, settings: GatewaySettings) -> "ConnectionLimits":
        """As configured."""
        return cls(
            settings.header_seconds, settings.max_header_bytes, settings.write_seconds, settings.waiting_connections
        )


def bounded_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """The protocol class of one server, to be given to uvicorn as `http`."""

    class BoundedProtocol(_BoundedProtocol):
        pass

    BoundedProtocol.limits, BoundedProtocol.waiting = limits, {}
    return BoundedProtocol


class _BoundedProtocol(HttpToolsProtocol):
    """One connection. It waits while it has no request whose headers are complete."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict["_BoundedProtocol", None]]  # the oldest first

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._head_bytes: int | None = None  # of a head that is not complete yet, after its first piece

    # What asyncio and the parser call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        self._wait()
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self in self.waiting and self._head_timer is None:
            self._start_head_timer()
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > self.limits.head_bytes:
            message = f"The headers are larger than {self.limits.head_bytes} bytes."
            self._refuse(PermanentError(ErrorCode.HEADERS_TOO_LARGE, message))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_bytes = None
        self._stop_waiting()

    def on_response_complete(self) -> None:
        goes_on = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_write_timer()
        elif not goes_on:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        # Closing goes on until all is written.
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def timeout_keep_alive_handler(self) -> None:
        self.close_for("idle")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text is not our error body
        self._refuse(PermanentError(ErrorCode.INVALID_VALUE, "The request is not valid HTTP/1.1."))

    # Waiting for a request

    def _wait(self) -> None:
        self.waiting[self] = None
        if self._head_bytes is not None:  # it came behind the request before
            self._start_head_timer()
        if len(self.waiting) > self.limits.waiting:
            next(iter(self.waiting)).close_for("crowded")

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._head_bytes is not None:
            message = f"The headers did not arrive within {self.limits.head_seconds:g} seconds."
            self._refuse(RetryableError(ErrorCode.REQUEST_TIMEOUT, message))
        else:
            # Nothing came, or what never becomes a request, such as the rest of a body that was not wanted.
            self.close_for("no_request")

    # The end

    def _refuse(self, error: PlatformError) -> None:
        """Answer what never became a request, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        # In the middle of an answer there is no place for another one.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            response = error_response(error)
            headers = {**response.headers, "x-request-id": f"req_{uuid.uuid4().hex}", "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[response.status_code] + lines.encode() + b"\r\n" + bytes(response.body))
        metrics.CLOSED_CONNECTIONS.labels(reason=error.code.value).inc()
        self._stop_waiting()
        # Closed at once while the client still sends, it would be told of a reset instead of the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def close_for(self, reason: str) -> None:
        """Close it once what was written is read, but do not wait for ever."""
        metrics.CLOSED_CONNECTIONS.labels(reason=reason).inc()
        self._stop_waiting()
        self.transport.close()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        # Also of a closed transport, which lives until what was written has been read: that may be never.
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self._cut_off)

    def _cut_off(self) -> None:
        metrics.CLOSED_CONNECTIONS.labels(reason="unread_answer").inc()
        self.transport.abort()
