"""The ingest service as a process, with its queue, records, vector server and embedding model: also when they fail."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator

import httpx
import orjson
import pytest

from libs.common import keys, ledger
from libs.common.records.database import Database
from libs.local.running import Stack, running_stack
from services.gateway import attachments
from tests.integration.ingest_platform import STORE, TENANT, Platform, database_of, eventually, platform_of


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    only = ("broker", "vectors", "models", "ingest")
    with running_stack(tmp_path_factory.mktemp("stack"), only=only) as running:
        yield running


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Database]:
    with database_of(stack) as opened:
        yield opened


@pytest.fixture
async def platform(stack: Stack, database: Database) -> AsyncIterator[Platform]:
    async with platform_of(stack, database) as opened:
        yield opened


def _long_text(words: str) -> str:
    paragraphs = (
        f"Paragraph {number}. " + f"{words} lies in dock {number} of the harbour. " * 9 for number in range(100)
    )
    return "\n\n".join(paragraphs)


async def test_a_file_becomes_sealed_chunks_that_point_into_its_text(platform: Platform) -> None:
    file_id = await platform.upload("canary", "# Heading of canaries\n\nThe yellow canary sings at dawn.\n")
    await platform.attach(file_id, attributes={"year": 2024.0})
    ended = await platform.ended(file_id)
    assert (ended.status, ended.live_version, ended.error_message) == ("completed", 1, None)
    [chunk] = await platform.stored(file_id)
    sealer = platform.keyring.sealer(keys.CHUNKS_PURPOSE)
    payload = orjson.loads(sealer.open(chunk.sealed, TENANT, STORE, file_id, "1", "0"))
    assert payload["text"].endswith("The yellow canary sings at dawn.")
    assert payload["end"] - payload["start"] == len(payload["text"])
    assert (payload["filename"], payload["heading_path"]) == ("canary.md", ["Heading of canaries"])
    assert chunk.attributes == {"year": 2024.0}
    # By another process: to close SQLite's file here would drop the locks of this process's own connections.
    search = ("grep", "--recursive", "--files-with-matches", "yellow canary", str(platform.stack.state_dir))
    assert (await asyncio.to_thread(subprocess.run, search, capture_output=True)).returncode == 1


async def test_a_killed_worker_loses_and_doubles_nothing(platform: Platform) -> None:
    file_id = await platform.upload("long", _long_text("The ship"))
    attached = await platform.attach(file_id)
    assert attached.job_id is not None
    job_id = attached.job_id

    async def under_way() -> bool:
        row = await platform.database.read(lambda connection: ledger.get(connection, TENANT, job_id))
        return bool(row.progress_done > 0)

    await eventually(under_way)
    assert (await platform.file(file_id)).live_version == 0
    await asyncio.to_thread(platform.stack.kill, "ingest")
    ended = await platform.ended(file_id)
    job = await platform.database.read(lambda connection: ledger.get(connection, TENANT, job_id))
    assert (ended.status, job.state, job.attempt, job.failures) == ("completed", "succeeded", 2, 0)
    positions = [chunk.position for chunk in await platform.stored(file_id)]
    assert positions == list(range(job.progress_total))
    assert await platform.count(file_id) == len(positions)


async def test_another_chunking_replaces_every_chunk(platform: Platform) -> None:
    file_id = await platform.upload("again", _long_text("The tug")[:20_000])
    await platform.attach(file_id)
    await platform.ended(file_id)
    many = await platform.count(file_id)
    windows = {"type": "static", "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0}}
    await platform.attach(file_id, chunking=windows)
    assert (await platform.ended(file_id)).live_version == 2

    async def only_new() -> bool:
        return await platform.stored(file_id, 1) == []

    await eventually(only_new)
    assert 0 < await platform.count(file_id) < many


async def test_a_deleted_file_leaves_neither_chunks_nor_bytes(platform: Platform) -> None:
    file_id = await platform.upload("gone", "The lighthouse is closed.")
    await platform.attach(file_id)
    await platform.ended(file_id)
    assert await platform.count(file_id) == 1
    await platform.change(attachments.delete_file, tenant_id=TENANT, file_id=file_id)

    async def cleared() -> bool:
        return await platform.count(file_id) == 0 and not await platform.blobs.exists(TENANT, "blob_gone")

    await eventually(cleared)


async def test_a_file_without_text_fails_for_good(platform: Platform) -> None:
    file_id = await platform.upload("blank", "  \n\n ")
    attached = await platform.attach(file_id)
    ended = await platform.ended(file_id)
    assert (ended.status, ended.error_code) == ("failed", "invalid_file")
    job = await platform.database.read(lambda c: ledger.get(c, TENANT, str(attached.job_id)))
    assert (job.state, job.attempt) == ("failed", 1)


async def test_work_waits_for_the_vector_database_and_the_service_stays_ready(platform: Platform) -> None:
    stack = platform.stack
    file_id = await platform.upload("patient", "The dry dock is free in May.")
    await asyncio.to_thread(stack.stop, "vectors")
    try:
        await asyncio.to_thread(stack.restart, "ingest")
        await asyncio.to_thread(stack.wait_ready, "ingest")
        await platform.attach(file_id)
        attached = await platform.file(file_id)
        assert attached.status == "in_progress"

        async def waits() -> bool:
            row = await platform.database.read(lambda c: ledger.get(c, TENANT, str(attached.job_id)))
            assert row.failures == 0
            return bool(row.error_code == "retrieval_unavailable" and row.attempt >= 2)

        await eventually(waits)
        port = stack.environment("ingest")["HEALTH_PORT"]
        async with httpx.AsyncClient() as client:
            report = (await client.get(f"http://127.0.0.1:{port}/readyz")).json()
        assert (report["status"], report["dependencies"]["qdrant"]["ok"]) == ("ready", False)
    finally:
        await asyncio.to_thread(stack.start, "vectors")
    await asyncio.to_thread(stack.wait_ready, "vectors")
    assert (await platform.ended(file_id)).status == "completed"
    assert await platform.count(file_id) == 1
