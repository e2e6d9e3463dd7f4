"""The whole stack as it runs for users: nine processes, reached over HTTP alone."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from libs.local.ports import free_ports
from libs.local.running import Stack, running_stack
from tests.e2e.collector import Collector, running_collector

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = "docent-extractive"
# Made by the tests that need it.
SEMANTIC_TENANT = "tenant_semantic"


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "EMBEDDING_"))},
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "SEMANTIC_CACHE_TENANTS": SEMANTIC_TENANT,
        "OCR_PAGES": "20",
    }
    state_dir = tmp_path_factory.mktemp("stack")
    with running_stack(state_dir, ports=free_ports(), environ=environ) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """Plain HTTP with the key, for what no SDK would send."""
    headers = {"authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="package")
def handbook(stack: Stack) -> str:
    """The id of a vector store that holds the sample documents."""
    paths = [path for path in sorted(SAMPLES.iterdir()) if path.suffix in {".pdf", ".docx", ".html", ".csv", ".txt"}]
    paths.append(SAMPLES / "operations-runbook.md")
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, timeout=60) as client:
        store = client.vector_stores.create(name="handbook")
        batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=paths, poll_interval_ms=100)
        assert batch.file_counts.completed == len(paths)
    return store.id
