"""Names and labels of the metrics, and the timer of a stage."""

import asyncio
import re

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from libs.common import metrics
from libs.common.telemetry import configure_telemetry

ALLOWED_LABELS = {
    "route", "method", "status", "code", "queue", "task", "outcome", "stage", "reason", "kind", "state", "model",
    "layer", "result", "dependency", "purpose",
}  # fmt: skip


def _value(sample: str, labels: dict[str, str]) -> float:
    return metrics.REGISTRY.get_sample_value(sample, labels) or 0.0


def test_render_is_what_prometheus_reads() -> None:
    metrics.set_build_info("chat")
    metrics.QUEUE_DEPTH.labels("chat").set(3)
    body, content_type = metrics.render()
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert content_type.startswith("text/plain")
    depths = {sample.labels["queue"]: sample.value for sample in families["docent_queue_depth"].samples}
    assert depths["chat"] == 3
    assert families["docent_build_info"].samples[0].labels["service"] == "chat"
    assert re.match(r"\d+\.\d+", families["docent_build_info"].samples[0].labels["version"])
    ours = [name for name in families if not name.startswith("process_")]
    assert all(name.startswith("docent_") for name in ours)


def test_no_label_can_name_a_person_or_a_thing_of_theirs() -> None:
    defined = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    assert len(defined) > 20
    assert {label for each in defined for label in each._labelnames} == ALLOWED_LABELS


async def test_stage_feeds_histogram_and_trace() -> None:
    exporter = InMemorySpanExporter()
    shutdown = configure_telemetry("chat", exporter)
    before = _value("docent_stage_seconds_count", {"stage": "embed"})
    with metrics.stage("embed", **{"gen_ai.request.model": "local"}) as current:
        await asyncio.sleep(0)
        current.set_attribute("docent.cache_hit", value=True)
    shutdown()
    (embed,) = exporter.get_finished_spans()
    assert embed.name == "embed"
    assert embed.attributes == {"gen_ai.request.model": "local", "docent.cache_hit": True}
    assert _value("docent_stage_seconds_count", {"stage": "embed"}) == before + 1


def test_stage_that_fails_is_timed_too_and_raises() -> None:
    before = _value("docent_stage_seconds_count", {"stage": "parse"})
    with pytest.raises(KeyError), metrics.stage("parse"):
        raise KeyError
    assert _value("docent_stage_seconds_count", {"stage": "parse"}) == before + 1
