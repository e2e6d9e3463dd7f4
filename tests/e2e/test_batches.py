"""Batches and jobs through the official SDK."""

import json
import time

import httpx
from openai import OpenAI

from tests.e2e.conftest import MODEL


def finished(client: OpenAI, batch_id: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        status = client.batches.retrieve(batch_id).status
        if status in {"completed", "failed", "expired", "cancelled"}:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def line(custom_id: str, content: str, model: str = MODEL) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode()


def test_every_line_is_answered_once(client: OpenAI) -> None:
    content = b"\n".join(line(f"q{number}", f"Hello number {number}") for number in range(25))
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"of": "greetings"},
    )
    assert batch.status == "validating"
    assert finished(client, batch.id) == "completed"
    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (25, 25, 0)
    assert batch.output_file_id is not None
    results = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(result["custom_id"] for result in results) == sorted(f"q{number}" for number in range(25))
    assert all(result["response"]["body"]["choices"][0]["message"]["content"] for result in results)


def test_a_bad_file_fails_whole_and_says_where(client: OpenAI) -> None:
    content = b"\n".join([line("a", "Hello"), b"{not json", line("a", "twice")])
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert finished(client, batch.id) == "failed"
    batch = client.batches.retrieve(batch.id)
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or []] == [
        (2, "invalid_json"),
        (3, "duplicate_custom_id"),
    ]
    assert batch.output_file_id is None


def test_a_job_shows_its_progress(client: OpenAI, http: httpx.Client) -> None:
    store = client.vector_stores.create(name="jobs")
    file = client.files.create(file=("a.txt", b"The quick brown fox. " * 200), purpose="assistants")
    client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=100)
    jobs = http.get("/v1/jobs").json()["data"]
    (job,) = [job for job in jobs if job["resource_id"] == file.id]
    shown = http.get(f"/v1/jobs/{job['id']}").json()
    assert shown["state"] == "succeeded"
    assert shown["progress"]["done"] == shown["progress"]["total"] > 0
    assert shown["attempts"] == 1
