"""Long conversations on a stack of their own: what no longer fits the prompt is summarised, through every queue."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
from openai import OpenAI

from libs.local.running import Stack, running_stack
from tests.e2e.conftest import MODEL

PATIENCE_SECONDS = 60.0
FACT = "The heron that lives by the mill pond is called Balthasar, and it is nine years old."


def test_the_beginning_of_a_long_conversation_is_kept_in_short(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "EMBEDDING_"))}
    environ = {**inherited, "SUMMARIES": "on", "HISTORY_TOKENS": "120"}
    programs = ["broker", "models", "vectors", "gateway", "chat", "conversations"]
    with (
        running_stack(tmp_path, environ=environ, only=programs) as stack,
        OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, max_retries=0, timeout=60) as client,
    ):
        conversation = client.conversations.create()
        for text in (FACT, "x " * 120, "y " * 120, "z " * 120):
            client.responses.create(model=MODEL, conversation=conversation.id, input=text)
        jobs = until_summarised(stack, conversation.id)
        assert {job["type"] for job in jobs} == {"chat.summarise", "conversations.keep_summary"}
        assert {job["state"] for job in jobs} == {"succeeded"}
        answer = client.responses.create(model=MODEL, conversation=conversation.id, input="Go on.")
        assert answer.status == "completed"
        client.conversations.delete(conversation.id)
        with closing(sqlite3.connect(tmp_path / "docent.db")) as database:
            query = "SELECT DISTINCT sealed_request FROM jobs WHERE resource_id = ?"
            assert database.execute(query, [conversation.id]).fetchall() == [(b"",)]


def until_summarised(stack: Stack, conversation_id: str) -> list[dict[str, str]]:
    """The jobs of a conversation, once one of them has kept a summary and none is under way."""
    headers = {"authorization": f"Bearer {stack.api_key}"}
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        reply = httpx.get(f"{stack.url}/v1/jobs?resource_id={conversation_id}", headers=headers, timeout=30)
        jobs: list[dict[str, str]] = reply.raise_for_status().json()["data"]
        kept = any(job["type"] == "conversations.keep_summary" for job in jobs)
        if kept and all(job["state"] not in ("queued", "running") for job in jobs):
            return jobs
        assert time.monotonic() < give_up_at, jobs
        time.sleep(0.2)
