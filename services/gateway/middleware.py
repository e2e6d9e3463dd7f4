"""Around every request: its id, its trace, bounds on what arrives, timing and the access log.

Pure ASGI, because Starlette's function middleware breaks streaming and context variables.
"""

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


class RequestFrame:
    """The outermost ASGI layer.

    Args:
        app: what is inside.
        settings: bounds for headers and JSON bodies; uploads bound their own.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

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
        try:
            self._check_headers(scope)
            await self._app(scope, _Bounded(receive, limit), exchange)
        except PlatformError as error:
            await exchange.fail(scope, receive, error)
        except ClientLeftError:
            return  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 - the process boundary: log, answer, live on
            _log.error("unexpected error", exc_info=error)
            failure = RetryableError(ErrorCode.SERVER_ERROR, "The server failed on this request. Try again.")
            await exchange.fail(scope, receive, failure)

    def _check_headers(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._settings.max_header_bytes:
            raise PermanentError(
                ErrorCode.HEADERS_TOO_LARGE, f"The headers are larger than {self._settings.max_header_bytes} bytes."
            )

    def _record(self, scope: Scope, route: str, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        metrics.HTTP_REQUESTS.labels(route=route, method=scope["method"], status=exchange.status).inc()
        metrics.HTTP_SECONDS.labels(route=route, method=scope["method"]).observe(seconds)
        if route not in ("/healthz", "/readyz", "/metrics"):
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
    """Wraps `receive`: counts the body's bytes as they arrive, whatever Content-Length says."""

    def __init__(self, receive: Receive, limit_bytes: int | None) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._received_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        if self._limit_bytes is not None and self._received_bytes > self._limit_bytes:
            raise PermanentError(ErrorCode.BODY_TOO_LARGE, f"The body is larger than {self._limit_bytes} bytes.")
        return message


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "POST" and (path == "/v1/files" or path.startswith("/v1/uploads"))


def _traceparent(scope: Scope) -> str | None:
    value = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    return value.decode("ascii", "replace") if value is not None and len(value) < 64 else None


def _route(scope: Scope) -> str:
    """The route's template, so that no id becomes a label."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unmatched"
