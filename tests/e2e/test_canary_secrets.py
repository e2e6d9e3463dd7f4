"""What people send by mistake or in confidence is in no log, no span and no refusal."""

import secrets
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from libs.local.running import Stack
from tests.e2e.collector import Collector
from tests.e2e.conftest import MODEL

MARK = secrets.token_hex(6)
KEY = f"sk-proj-{MARK}key"
PASSWORD = f"Tr0ub4dor-{MARK}"
CARD = f"4111 1111 1111 {secrets.randbelow(9000) + 1000}"
MAIL = f"mallory.{MARK}@example.org"
CANARIES = (MARK, CARD, CARD.replace(" ", ""))


def sent(http: httpx.Client, **request: Any) -> httpx.Response:
    headers = {"x-api-key": KEY, "cookie": f"session={KEY}", "user-agent": f"agent/{MARK}"} | request.pop("headers", {})
    return http.request(**{"method": "POST", "headers": headers, **request})


@pytest.fixture(scope="module")
def refusals(stack: Stack) -> list[httpx.Response]:
    """Replies to requests with secrets in every place, of which each is refused."""
    question = {"model": MODEL, "messages": [{"role": "user", "content": f"My password is {PASSWORD}."}]}
    upload = {"file": (f"{MAIL} {CARD}.txt", PASSWORD.encode())}
    attempts: list[dict[str, Any]] = [
        {"url": "/v1/models", "method": "GET", "headers": {"authorization": f"Bearer {KEY}"}},
        {"url": "/v1/models", "method": "GET", "headers": {"authorization": f"Basic {KEY}"}},
        {"url": f"/v1/{MARK}?token={KEY}&mail={MAIL}", "method": "GET"},
        {"url": f"/v1/files/{MARK}", "method": "GET"},
        {"url": f"/v1/files?after={MARK}&limit={MARK}", "method": "GET"},
        {"url": "/v1/chat/completions", "json": question | {"temperature": CARD}},
        {"url": "/v1/chat/completions", "json": question | {"messages": [{"role": PASSWORD, "content": MAIL}]}},
        {"url": "/v1/chat/completions", "json": question | {"messages": [{"role": "user", "content": {MAIL: CARD}}]}},
        {"url": "/v1/chat/completions", "json": question | {"metadata": {"card": [CARD], MAIL: PASSWORD * 40}}},
        {"url": "/v1/chat/completions", "json": question | {"vector_store_ids": ["vs_none"]}},
        {"url": "/v1/chat/completions", "json": question | {MAIL: CARD}},
        {"url": "/v1/chat/completions", "json": question | {"metadata": {MAIL: [CARD]}}},
        {"url": f"/v1/files/{MAIL}", "method": "GET"},
        {"url": "/v1/chat/completions", "content": f'{{"password": "{PASSWORD}", '},
        {"url": "/v1/responses", "json": {"input": [{"type": PASSWORD, "content": CARD}]}},
        {"url": "/v1/responses", "json": {"input": MAIL, "tools": [{"type": CARD}]}},
        {"url": "/v1/files", "files": upload, "data": {"purpose": PASSWORD}},
        {"url": "/v1/vector_stores", "json": {"name": [MAIL], "metadata": {"card": {"number": CARD}}}},
        {"url": "/v1/embeddings", "json": {"model": "none", "input": [CARD, {"mail": MAIL}]}},
    ]
    own = {"authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        return [sent(http, **attempt | {"headers": own | attempt.get("headers", {})}) for attempt in attempts]


@pytest.fixture(scope="module")
def used(stack: Stack) -> None:
    """Secrets in what is accepted, worked on and answered, ingestion included."""
    with OpenAI(
        base_url=f"{stack.url}/v1", api_key=stack.api_key, timeout=60, default_headers={"x-api-key": KEY}
    ) as client:
        store = client.vector_stores.create(name=MAIL, metadata={"card": CARD, "password": PASSWORD})
        for name, content in [(f"{MAIL} {CARD}.txt", f"The password is {PASSWORD}."), (f"{MARK}.pdf", "no PDF")]:
            client.vector_stores.files.upload_and_poll(
                vector_store_id=store.id, file=(name, content.encode()), poll_interval_ms=100
            )
        text = f"Is {PASSWORD} the password of {MAIL}, who pays by {CARD}?"
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": text}],
            extra_body={"vector_store_ids": [store.id]},
            store=True,
            metadata={"mail": MAIL},
        )
        conversation = client.conversations.create(metadata={"mail": MAIL})
        client.responses.create(model=MODEL, input=text, conversation=conversation.id, metadata={"card": CARD})
        client.vector_stores.search(store.id, query=text)
        client.embeddings.create(model="all-minilm-l6-v2", input=text)
        client.moderations.create(input=text)


def found_in(text: str) -> list[str]:
    return [line[:300] for line in text.splitlines() if any(canary in line for canary in CANARIES)]


def test_refusals_repeat_no_secret(refusals: list[httpx.Response]) -> None:
    assert [reply.status_code for reply in refusals if reply.status_code < 400] == []
    shown = [reply.text + str(dict(reply.headers)) for reply in refusals]
    # The id that was asked for is named to whoever asked.
    texts = [text for reply, text in zip(refusals, shown, strict=True) if "/v1/files/" not in str(reply.url)]
    assert len(texts) == len(refusals) - 2
    assert [line for text in texts for line in found_in(text)] == []


@pytest.mark.usefixtures("refusals", "used")
def test_logs_hold_no_secret(stack: Stack) -> None:
    logs = sorted(Path(stack.state_dir, "logs").glob("*"))
    assert {"gateway.log", "chat.log", "ingest.log", "conversations.log"} <= {path.name for path in logs}
    assert {path.name: lines for path in logs if (lines := found_in(path.read_text(errors="replace")))} == {}


@pytest.mark.usefixtures("refusals", "used")
def test_spans_hold_no_secret(stack: Stack, collector: Collector) -> None:
    trace_id = secrets.token_hex(16)
    with httpx.Client(base_url=stack.url, timeout=60) as http:
        trace = {"authorization": f"Bearer {stack.api_key}", "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        http.post("/v1/embeddings", headers=trace, json={"model": "all-minilm-l6-v2", "input": MAIL})
    deadline = time.monotonic() + 20
    while not collector.trace(trace_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    spans = collector.spans()
    assert {"gateway", "chat", "ingest", "conversations"} <= {service for service, _ in spans}
    assert [line for _, span in spans for line in found_in(str(span))] == []
