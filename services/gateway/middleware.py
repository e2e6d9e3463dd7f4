"""Around every request: its id, its trace, bounds on what arrives, timing and the access log.

Pure ASGI, because Starlette's function middleware breaks streaming and context variables.
"""

import asyncio
import time
import uuid

from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common import logs, metrics, telemetry
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from services.gateway.errors import error_response
from services.gateway.settings import GatewaySettings
from services.gateway.streams import ClientLeftError

_access = logs.get_logger("access")
_log = logs.get_logger(__name__)
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestFrame:
    """The outermost ASGI layer.

    Args:
        app: what is inside.
        settings: bounds for headers and JSON bodies; uploads bound their own.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(request_id, send)
        with (
            logs.log_context(request_id=request_id),
            telemetry.span_from(_traceparent(scope), "HTTP", kind=SpanKind.SERVER) as span,
        ):
            await self._answer(scope, receive, exchange)
            route = _route(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute(telemetry.HTTP_ROUTE, route)
            span.set_attribute(telemetry.HTTP_RESPONSE_STATUS_CODE, exchange.status)
            self._record(scope, route, exchange)

    async def _answer(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        limit = None if _is_upload(scope) else self._settings.max_json_bytes
        self._under_way += 1
        try:
            self._check_headers(scope)
            self._check_load(scope)
            await self._app(scope, _Bounded(receive, limit, self._settings), exchange)
        except PlatformError as error:
            await exchange.fail(scope, receive, error)
        except ClientLeftError:
            return  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 - the process boundary: log, answer, live on
            _log.error("unexpected error", exc_info=error)
            failure = RetryableError(ErrorCode.SERVER_ERROR, "The server failed on this request. Try again.")
            await exchange.fail(scope, receive, failure)
        finally:
            self._under_way -= 1

    def _check_load(self, scope: Scope) -> None:
        if self._under_way > self._settings.parallel_requests and scope["path"] not in _PROBES:
            message = "The server has as many requests under way as it takes. Try again."
            raise RetryableError(ErrorCode.TOO_MANY_STREAMS, message, retry_after_seconds=1)

    def _check_headers(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._settings.max_header_bytes:
            raise PermanentError(
                ErrorCode.HEADERS_TOO_LARGE, f"The headers are larger than {self._settings.max_header_bytes} bytes."
            )
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in scope["headers"]):
            message = "Bodies are taken as they are: send this one without 'Content-Encoding'."
            raise PermanentError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)

    def _record(self, scope: Scope, route: str, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        metrics.HTTP_REQUESTS.labels(route=route, method=scope["method"], status=exchange.status).inc()
        metrics.HTTP_SECONDS.labels(route=route, method=scope["method"]).observe(seconds)
        if route not in _PROBES:
            _access.info(
                "request",
                method=scope["method"],
                route=route,
                status=exchange.status,
                milliseconds=round(seconds * 1000, 1),
            )


class _Exchange:
    """Wraps `send`: adds our headers and remembers the status."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.started = time.perf_counter()
        self.status = 499  # the client left before an answer began
        self._request_id = request_id.encode()
        self._send = send
        self._begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self.status = message["status"]
            milliseconds = int((time.perf_counter() - self.started) * 1000)
            message["headers"] = [
                *message["headers"],
                (b"x-request-id", self._request_id),
                (b"openai-processing-ms", str(milliseconds).encode()),
            ]
        await self._send(message)

    async def fail(self, scope: Scope, receive: Receive, error: PlatformError) -> None:
        """Answer with an error, unless the answer has begun: then the connection ends."""
        if not self._begun:
            await error_response(error)(scope, receive, self)


class _Bounded:
    """Wraps `receive`: counts the body's bytes as they arrive, whatever Content-Length says, and how long they take."""

    def __init__(self, receive: Receive, limit_bytes: int | None, settings: GatewaySettings) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._settings = settings
        self._received_bytes = 0
        self._waited_seconds = 0.0
        self._complete = False

    async def __call__(self) -> Message:
        # After the body comes nothing but the client's leaving, for which anybody may wait as long as he likes.
        message = await (self._receive() if self._complete else self._receive_in_time())
        self._complete = not message.get("more_body", False)
        self._received_bytes += len(message.get("body", b""))
        if self._limit_bytes is not None and self._received_bytes > self._limit_bytes:
            raise PermanentError(ErrorCode.BODY_TOO_LARGE, f"The body is larger than {self._limit_bytes} bytes.")
        return message

    async def _receive_in_time(self) -> Message:
        settings = self._settings
        # Only what was waited for the client counts: what we did meanwhile is not its fault.
        allowed_seconds = settings.body_seconds + self._received_bytes / settings.body_bytes_per_second
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(settings.body_seconds, allowed_seconds - self._waited_seconds)):
                return await self._receive()
        except TimeoutError:
            raise RetryableError(ErrorCode.REQUEST_TIMEOUT, "The body arrives too slowly. Send it again.") from None
        finally:
            self._waited_seconds += time.monotonic() - began


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    is_part = path.startswith("/v1/uploads/") and path.endswith("/parts")
    return scope["method"] == "POST" and (path == "/v1/files" or is_part)


def _traceparent(scope: Scope) -> str | None:
    value = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    return value.decode("ascii", "replace") if value is not None and len(value) < 64 else None


def _route(scope: Scope) -> str:
    """The route's template, so that no id becomes a label."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unmatched"
