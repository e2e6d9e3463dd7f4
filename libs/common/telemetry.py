"""Traces: thin helpers over OpenTelemetry that cost next to nothing while no collector is configured.

A trace crosses the queue as a W3C `traceparent` string inside the message. Interactive work continues its caller's
trace (`span_from`); a job, which may run hours later and more than once, starts its own and links back (`linked_span`).
The current span lives in a context variable, so it follows an asyncio task and its children.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Token
from types import TracebackType
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.util.types import AttributeValue

from libs.common.errors import PlatformError
from libs.common.logs import get_logger

# GenAI semantic conventions, https://opentelemetry.io/docs/specs/semconv/gen-ai/ (spelled out: still "incubating",
# so the package that carries the names may move them).
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"  # chat, embeddings
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
# General conventions.
ERROR_TYPE: Final = "error.type"
HTTP_ROUTE: Final = "http.route"
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"  # the queue
# Ours, where no convention exists.
REQUEST_ID: Final = "docent.request_id"
TASK_NAME: Final = "docent.task"
JOB_ID: Final = "docent.job_id"
ATTEMPT: Final = "docent.attempt"
PASSAGES_COUNT: Final = "docent.passages"
CACHE_HIT: Final = "docent.cache_hit"

Attributes = Mapping[str, AttributeValue]

_ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_COMPLAINT_INTERVAL_SECONDS: Final = 60.0
# A hanging collector must not hold up the end of a process.
_SHUTDOWN_SECONDS: Final = 3.0
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_log = get_logger("telemetry")
_noop_tracer: Final = trace.NoOpTracer()
_disabled: Final = nullcontext(INVALID_SPAN)
# None while nothing is exported: then no helper makes a span.
_tracer: Tracer | None = None


def configure_telemetry(service_name: str, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Start exporting spans, if a collector is named in the environment, and say how to stop.

    Args:
        service_name: `service.name` of every span.
        exporter: where spans go instead of the environment's OTLP endpoint.

    Returns:
        A function that sends what is still held and stops exporting; it takes 3 seconds at most.
    """
    global _tracer  # noqa: PLW0603 - one tracer per process, read on every call without a look-up
    if exporter is None and any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        # Imported here because it brings `requests`: a tenth of a second that most processes need not spend.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        exporter = OTLPSpanExporter()
    # The library logs every retry, failed batch and dropped span; _QuietExporter says it once a minute. It also logs a
    # span left by another task than entered it, which is how asyncio closes an abandoned generator.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    if exporter is None:
        return lambda: None
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_QuietExporter(exporter)))
    _tracer = provider.get_tracer("docent")

    def shutdown() -> None:
        global _tracer  # noqa: PLW0603 - see above
        _tracer = None
        closing = threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True)
        closing.start()
        closing.join(_SHUTDOWN_SECONDS)

    return shutdown


def tracer() -> Tracer:
    """The process's tracer; one that makes no spans while nothing is exported."""
    return _tracer or _noop_tracer


def current_traceparent() -> str | None:
    """The current span as a W3C `traceparent`, to be sent along; None outside any trace."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def span(name: str, **attributes: AttributeValue) -> AbstractContextManager[Span]:
    """A child of the current span around a block, `await`s included."""
    if _tracer is None:
        return _disabled
    return _Entered(_tracer.start_span(name, attributes=attributes))


def span_from(
    traceparent: str | None,
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    start_time_ns: int | None = None,
) -> AbstractContextManager[Span]:
    """A span around a block that continues the trace of a remote caller.

    Args:
        traceparent: the caller's; without one (or with a malformed one) the parent is the current span, if any.
        name: what is done, of few distinct values.
        kind: SERVER for HTTP, CONSUMER for a message.
        attributes: never text of users.
        start_time_ns: wall clock, for work that began before this call.
    """
    parent = _remote_context(traceparent)
    if _tracer is None:
        # Nothing is recorded here, but a trace begun elsewhere still passes through to the next service and the logs.
        return _Entered(trace.get_current_span(parent)) if parent is not None else _disabled
    return _Entered(
        _tracer.start_span(name, context=parent, kind=kind, attributes=attributes, start_time=start_time_ns)
    )


def linked_span(
    traceparent: str | None,
    name: str,
    *,
    kind: SpanKind = SpanKind.CONSUMER,
    attributes: Attributes | None = None,
) -> AbstractContextManager[Span]:
    """A span around a job: the root of a new trace, linked to the one that submitted it."""
    if _tracer is None:
        return _disabled
    submitter = _remote_context(traceparent)
    links = [Link(trace.get_current_span(submitter).get_span_context())] if submitter is not None else None
    return _Entered(_tracer.start_span(name, context=Context(), kind=kind, attributes=attributes, links=links))


def record_span(
    name: str,
    start_ns: int,
    end_ns: int,
    *,
    traceparent: str | None = None,
    context: Context | None = None,
    attributes: Attributes | None = None,
) -> None:
    """Write a span for an interval that is already over, such as the wait in a queue.

    Args:
        name: what took the time.
        start_ns: wall clock, nanoseconds since 1970.
        end_ns: likewise.
        traceparent: the parent; else `context`, else the current span.
        context: a parent within this process.
        attributes: never text of users.
    """
    if _tracer is not None:
        parent = _remote_context(traceparent) or context
        _tracer.start_span(name, context=parent, attributes=attributes, start_time=start_ns).end(end_ns)


def _remote_context(traceparent: str | None) -> Context | None:
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return trace.set_span_in_context(NonRecordingSpan(remote), Context()) if remote.is_valid else None


class _Entered(AbstractContextManager[Span]):
    """Makes a span current for a block, then ends it; of an exception it keeps the type, never the message."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        if error is not None and self._span.is_recording():
            self._span.set_attribute(ERROR_TYPE, _error_type(error))
            if isinstance(error, Exception):  # a cancelled task or a closed generator is no failure
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _error_type(error: BaseException) -> str:
    return error.code.value if isinstance(error, PlatformError) else type(error).__qualname__


class _QuietExporter(SpanExporter):
    """Passes spans on, and logs failures at most once a minute."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._complained_at = -_COMPLAINT_INTERVAL_SECONDS
        self._lost_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._complain(len(spans))
        return result

    def _complain(self, lost_spans: int) -> None:
        self._lost_spans += lost_spans
        if time.monotonic() - self._complained_at >= _COMPLAINT_INTERVAL_SECONDS:
            self._complained_at = time.monotonic()
            _log.warning("spans could not be exported", lost_spans=self._lost_spans)
            self._lost_spans = 0

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
