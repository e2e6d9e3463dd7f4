"""Five services are five processes, and each can be away alone."""

import time
from pathlib import Path

import httpx
from openai import OpenAI

from libs.local.running import Stack
from tests.e2e.conftest import MODEL

SERVICES = ("gateway", "chat", "ingest", "batch", "conversations")
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


def test_five_processes(stack: Stack) -> None:
    commands = {name: Path(f"/proc/{stack.pid(name)}/cmdline").read_bytes().split(b"\0") for name in SERVICES}
    assert len({stack.pid(name) for name in SERVICES}) == 5
    for name, command in commands.items():
        assert f"services.{name}.main".encode() in command


def test_without_chat_ingestion_goes_on_and_chat_is_refused(stack: Stack, client: OpenAI, http: httpx.Client) -> None:
    stack.stop("chat")
    try:
        store = client.vector_stores.create(name="while chat is away")
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("note.txt", b"The ferry leaves at noon."), poll_interval_ms=100
        )
        assert file.status == "completed"

        refused = http.post("/v1/chat/completions", json=QUESTION)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_unavailable"
        assert int(refused.headers["retry-after"]) > 0
        report = http.get("/readyz").json()
        assert report["status"] == "ready"
        assert report["dependencies"]["consumers of chat"]["ok"] is False
    finally:
        stack.start("chat")
        stack.wait_ready("chat")

    deadline = time.monotonic() + 20
    while http.post("/v1/chat/completions", json=QUESTION).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "When does the ferry leave?"}],
        extra_body={"vector_store_ids": [store.id]},
    )
    assert "noon" in (answer.choices[0].message.content or "")
