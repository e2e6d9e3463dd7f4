"""One trace follows a question from HTTP through the queue to the answer."""

import secrets
import time

import httpx

from tests.e2e.collector import Collector
from tests.e2e.conftest import MODEL

EXPECTED = {"publish", "queue wait", "chat.answer", "embed", "retrieve", "complete", "reply"}


def test_one_trace_from_http_to_reply(http: httpx.Client, handbook: str, collector: Collector) -> None:
    trace_id = secrets.token_hex(16)
    reply = http.post(
        "/v1/chat/completions",
        headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
        json={
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is Docent?"}],
            "vector_store_ids": [handbook],
        },
    )
    assert reply.status_code == 200

    deadline = time.monotonic() + 20
    names: set[str] = set()
    while not (names >= EXPECTED and any(name.startswith("POST ") for name in names)) and time.monotonic() < deadline:
        time.sleep(0.1)
        spans = collector.trace(trace_id)
        names = {span.name for _, span in spans}
    assert names >= EXPECTED
    by_name = {span.name: (service, span) for service, span in spans}
    (http_span,) = [span for service, span in spans if span.name == "POST /v1/chat/completions"]

    services = {name: by_name[name][0] for name in EXPECTED}
    assert services["publish"] == "gateway"
    assert {services[name] for name in EXPECTED - {"publish"}} == {"chat"}
    # The queue's far side hangs below the HTTP request, and the stages below the handler.
    handler = by_name["chat.answer"][1]
    assert by_name["publish"][1].parent_span_id == http_span.span_id
    assert handler.parent_span_id == http_span.span_id
    assert by_name["queue wait"][1].parent_span_id == http_span.span_id
    for stage in ("embed", "retrieve", "complete", "reply"):
        assert by_name[stage][1].parent_span_id == handler.span_id
