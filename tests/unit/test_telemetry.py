"""Spans: parents across tasks and messages, links of jobs, and nothing of a person's text."""

import asyncio
import contextvars
import re
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings
from structlog.testing import capture_logs

from libs.common import telemetry
from libs.common.errors import ErrorCode, PermanentError
from libs.common.telemetry import (
    GEN_AI_REQUEST_MODEL,
    configure_telemetry,
    current_traceparent,
    linked_span,
    record_span,
    span,
    span_from,
    tracer,
)

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE_TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
REMOTE_SPAN_ID = 0xB7AD6B7169203331

Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture
def spans() -> Generator[Spans]:
    """Ends telemetry and gives the finished spans by name."""
    exporter = InMemorySpanExporter()
    shutdown = configure_telemetry("chat", exporter)

    def finished() -> dict[str, ReadableSpan]:
        shutdown()
        return {done.name: done for done in exporter.get_finished_spans()}

    yield finished
    shutdown()


@pytest.fixture
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    configure_telemetry("chat")


def test_child_has_parent_and_attributes(spans: Spans) -> None:
    with span("answer"), span("complete", **{GEN_AI_REQUEST_MODEL: "local"}) as inner:
        inner.set_attribute("gen_ai.usage.input_tokens", 7)
    done = spans()
    assert done["complete"].parent == done["answer"].context
    assert done["answer"].parent is None
    assert done["complete"].attributes == {"gen_ai.request.model": "local", "gen_ai.usage.input_tokens": 7}
    assert done["answer"].resource.attributes["service.name"] == "chat"


async def test_concurrent_tasks_keep_their_own_parents(spans: Spans) -> None:
    async def work(number: int) -> None:
        with span(f"outer{number}"):
            await asyncio.sleep(0.001 * (5 - number))
            with span(f"inner{number}"):
                await asyncio.sleep(0.001 * number)

    with span("request"):
        await asyncio.gather(*(work(number) for number in range(5)))
    done = spans()
    for number in range(5):
        assert done[f"inner{number}"].parent == done[f"outer{number}"].context
        assert done[f"outer{number}"].parent == done["request"].context


def test_traceparent_carries_a_trace_across_a_message(spans: Spans) -> None:
    with span("publish"):
        sent = current_traceparent()
    assert sent is not None
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", sent)
    assert current_traceparent() is None
    started_ns = time.time_ns() - 1_000_000_000
    with span_from(sent, "handle", kind=SpanKind.CONSUMER, attributes={"docent.attempt": 1}, start_time_ns=started_ns):
        pass
    done = spans()
    assert done["handle"].parent is not None
    assert done["handle"].parent.span_id == done["publish"].context.span_id
    assert done["handle"].context.trace_id == done["publish"].context.trace_id
    assert (done["handle"].kind, done["handle"].start_time) == (SpanKind.CONSUMER, started_ns)


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ü" * 9])
def test_without_a_usable_traceparent_a_trace_begins(spans: Spans, traceparent: str | None) -> None:
    with span_from(traceparent, "handle"):
        pass
    assert spans()["handle"].parent is None


def test_job_has_its_own_trace_and_a_link(spans: Spans) -> None:
    with span("worker loop"), linked_span(REMOTE, "ingest.document"), span("parse"):
        pass
    with linked_span(None, "sweep"):
        pass
    done = spans()
    job = done["ingest.document"]
    assert job.parent is None
    assert job.context.trace_id not in {REMOTE_TRACE_ID, done["worker loop"].context.trace_id}
    assert [(link.context.trace_id, link.context.span_id) for link in job.links] == [(REMOTE_TRACE_ID, REMOTE_SPAN_ID)]
    assert done["parse"].parent == job.context
    assert list(done["sweep"].links) == []


def test_past_interval_is_recorded_under_its_parent(spans: Spans) -> None:
    record_span("queue wait", 1_000, 2_000, traceparent=REMOTE, attributes={"messaging.destination.name": "chat"})
    with span("handle"):
        record_span("inner wait", 1_000, 2_000)
    done = spans()
    wait = done["queue wait"]
    assert (wait.start_time, wait.end_time) == (1_000, 2_000)
    assert wait.parent is not None
    assert (wait.parent.trace_id, wait.parent.span_id) == (REMOTE_TRACE_ID, REMOTE_SPAN_ID)
    assert done["inner wait"].parent == done["handle"].context


def test_exception_leaves_its_type_and_not_its_message(spans: Spans) -> None:
    with pytest.raises(ValueError, match="person"), span("complete"):
        raise ValueError("what a person asked")
    with pytest.raises(PermanentError), span("retrieve"):
        raise PermanentError(ErrorCode.NOT_FOUND, "No file found with id 'what a person typed'.")
    done = spans()
    assert done["complete"].attributes == {"error.type": "ValueError"}
    assert done["retrieve"].attributes == {"error.type": "not_found"}
    assert done["complete"].status.status_code is StatusCode.ERROR
    assert "person" not in "".join(each.to_json() for each in done.values())


async def test_cancellation_ends_the_span_without_an_error(spans: Spans) -> None:
    async def work() -> None:
        with span("complete"):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    complete = spans()["complete"]
    assert complete.attributes == {"error.type": "CancelledError"}
    assert complete.status.status_code is StatusCode.UNSET


async def test_generator_closed_by_another_task_ends_its_span(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    async def stream() -> AsyncGenerator[int]:
        with span("stream"):
            yield 1

    events = stream()
    await asyncio.create_task(anext_of(events), context=contextvars.copy_context())
    await events.aclose()
    assert "stream" in spans()
    assert caplog.records == []


async def anext_of(events: AsyncGenerator[int]) -> int:
    return await anext(events)


@pytest.mark.usefixtures("no_collector")
def test_without_a_collector_nothing_is_recorded_and_everything_works() -> None:
    with span("a", key="value") as a, linked_span(REMOTE, "b") as b, span_from(None, "c") as c:
        a.set_attribute("k", 1)
        record_span("wait", 1, 2)
        assert not any(each.is_recording() for each in (a, b, c))
        assert current_traceparent() is None
    with tracer().start_as_current_span("d") as d:
        assert not d.is_recording()


@pytest.mark.usefixtures("no_collector")
def test_without_a_collector_a_callers_trace_still_passes_through() -> None:
    with span_from(REMOTE, "handle"):
        assert current_traceparent() == REMOTE
        with span("inner"):
            assert current_traceparent() == REMOTE
    assert current_traceparent() is None


class _Refusing(SpanExporter):
    def __init__(self) -> None:
        self.batches = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert spans
        self.batches += 1
        return SpanExportResult.FAILURE


def test_failures_to_export_are_logged_once_a_minute() -> None:
    refusing = _Refusing()
    quiet = telemetry._QuietExporter(refusing)
    with capture_logs() as logs:
        for _ in range(5):
            quiet.export([ReadableSpan(name="a"), ReadableSpan(name="b")])
    assert refusing.batches == 5
    assert [(entry["event"], entry["lost_spans"]) for entry in logs] == [("spans could not be exported", 2)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.enable_socket
async def test_collector_named_in_the_environment_receives_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as collector:
        arrival = asyncio.create_task(collector.await_trace(lambda each: each.name == "retrieve", timeout=20))
        await asyncio.sleep(0)
        shutdown = configure_telemetry("chat")
        with span("retrieve", **{"docent.passages": 4}):
            pass
        await asyncio.to_thread(shutdown)
        received = await arrival
    assert [(each.key, each.value.int_value) for each in received.attributes] == [("docent.passages", 4)]


@pytest.mark.enable_socket
def test_absent_collector_neither_raises_nor_holds_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{_free_port()}/v1/traces")
    shutdown = configure_telemetry("chat")
    with span("retrieve"):
        pass
    shutdown()
    assert not trace.get_current_span().is_recording()
