"""The same path with PostgreSQL as the database: the code asks the URL, nothing else."""

import os
import time
from collections.abc import Iterator

import pytest
from openai import OpenAI

from libs.local.ports import free_ports
from libs.local.postgres import postgres_available, running_postgres
from libs.local.running import Stack, running_stack
from libs.local.stack import DATABASE_VARIABLE
from tests.e2e.conftest import MODEL

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if reason := postgres_available():
        pytest.skip(reason)
    with (
        running_postgres(tmp_path_factory.mktemp("postgres")) as server,
        running_stack(
            tmp_path_factory.mktemp("stack"),
            ports=free_ports(),
            environ={**os.environ, DATABASE_VARIABLE: server.url},
        ) as stack,
    ):
        yield stack


def test_upload_ask_converse_and_work_in_the_background(stack: Stack) -> None:
    assert stack.environment("gateway")["DATABASE_URL"].startswith("postgresql")
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, timeout=60) as client:
        store = client.vector_stores.create(name="ferries")
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("ferry.txt", b"The ferry leaves at noon."), poll_interval_ms=100
        )
        assert file.status == "completed"
        conversation = client.conversations.create()
        response = client.responses.create(
            model=MODEL,
            conversation=conversation.id,
            input="When does the ferry leave?",
            tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
            background=True,
        )
        deadline = time.monotonic() + 30
        while response.status in {"queued", "in_progress"} and time.monotonic() < deadline:
            time.sleep(0.1)
            response = client.responses.retrieve(response.id)
        assert "noon" in response.output_text
        assert len(list(client.conversations.items.list(conversation.id))) == 3
