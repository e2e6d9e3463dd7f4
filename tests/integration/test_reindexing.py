"""Vector stores built anew with the ingest service, the vector server and two embedding models, while they answer."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from starlette.responses import Response

from libs.common import ledger
from libs.common.cache.embeddings import CachedEmbedders
from libs.common.cache.store import Cache
from libs.common.contracts.chat import Retrieval
from libs.common.contracts.ingest import Place
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.collections import Collections
from libs.common.rag.embedder import embedders_of
from libs.common.records import reindexing as marks
from libs.common.records import vector_store_files, vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_store_files import FileKey
from libs.common.records.vector_stores import VectorStore
from libs.local.ports import free_port
from libs.local.running import Stack, running_stack
from services.chat.retrieval import HybridRetriever
from services.gateway import attachments, reindexing
from services.gateway.attachments import Wanted
from services.ingest.settings import IngestSettings
from tests.faults.upstream import POISON, Upstream
from tests.integration.ingest_platform import AUTO, TENANT, Platform, database_of, eventually, platform_of

OLD, NEW = "stub-32", "stub-48"


@dataclass
class Models:
    """Both models; texts that hold POISON wait at the new one while it is held."""

    old: Upstream
    new: Upstream
    held: threading.Event
    waiting: threading.Event

    async def wait(self, _text: str) -> Response | None:
        while self.held.is_set():
            self.waiting.set()
            await asyncio.sleep(0.01)
        return None


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    both = Models(
        Upstream(free_port(), dimensions=32), Upstream(free_port(), dimensions=48), threading.Event(), threading.Event()
    )
    both.new.on_poison = both.wait
    for model in (both.old, both.new):
        model.start()
    yield both
    both.held.clear()
    for model in (both.old, both.new):
        model.stop()


@pytest.fixture(autouse=True)
def _nothing_held(models: Models) -> Iterator[None]:
    models.waiting.clear()
    yield
    models.held.clear()


def _environ(models: Models) -> dict[str, str]:
    further = {NEW: {"dimensions": 48, "base_url": f"http://127.0.0.1:{models.new.port}/v1"}}
    return {
        "EMBEDDING_BASE_URL": f"http://127.0.0.1:{models.old.port}/v1",
        "EMBEDDING_MODEL": OLD,
        "EMBEDDING_DIMENSIONS": "32",
        "EMBEDDING_MODELS": json.dumps(further),
    }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[Stack]:
    only = ("broker", "vectors", "ingest")
    with running_stack(tmp_path_factory.mktemp("stack"), only=only, environ=_environ(models)) as running:
        yield running


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Database]:
    with database_of(stack) as opened:
        yield opened


@dataclass(frozen=True)
class Library:
    """Vector stores of the platform, and searching them."""

    platform: Platform
    collections: Collections
    retriever: HybridRetriever
    offered: dict[str, int]

    async def store(self, name: str, *, files: int = 0) -> str:
        """A store with files, of which the last holds POISON; all are searchable when this returns."""
        store_id = f"vs_{name}"
        create = partial(
            vector_stores.create, tenant_id=TENANT, store_id=store_id, name="", metadata={}, embedding_model=OLD
        )
        await self.platform.database.write(create)
        for number in range(files):
            word = POISON if number == files - 1 else "calm"
            await self.add(store_id, f"{name}{number}", f"Berth {name}{number} lies in {word} water.")
        return store_id

    async def add(self, store_id: str, name: str, text: str) -> str:
        file_id = await self.platform.upload(name, text)
        await self.attach(store_id, file_id)
        await eventually(lambda: self._ended(store_id, file_id))
        return file_id

    async def attach(self, store_id: str, file_id: str) -> None:
        wanted = Wanted(file_id, {}, AUTO)
        await self.platform.change(attachments.attach_file, tenant_id=TENANT, store_id=store_id, wanted=wanted)

    async def _ended(self, store_id: str, file_id: str) -> bool:
        key = FileKey(TENANT, store_id, file_id)
        found = await self.platform.database.read(lambda c: vector_store_files.get(c, key))
        assert found.status != "failed", found.error_message
        return found.status == "completed"

    async def reindex(self, store_id: str, model: str | None = None) -> str:
        begin = partial(reindexing.begin, tenant_id=TENANT, store_id=store_id, model=model, offered=self.offered)
        job_id: str = await self.platform.database.write(lambda connection: begin(connection, self.platform.messages))
        return job_id

    async def job(self, job_id: str) -> Any:
        return await self.platform.database.read(lambda c: ledger.get(c, TENANT, job_id))

    async def done(self, job_id: str) -> None:
        async def ended() -> bool:
            return bool((await self.job(job_id)).state in ledger.TERMINAL)

        await eventually(ended)
        job = await self.job(job_id)
        assert job.state == "succeeded", job.error_message

    async def record(self, store_id: str) -> VectorStore:
        return await self.platform.database.read(lambda c: vector_stores.get(c, TENANT, store_id))

    async def stored(self, store_id: str, place: Place) -> int:
        return await self.collections.at(place).count(TENANT, vector_store_id=store_id)

    async def found(self, query: str, *store_ids: str) -> list[str]:
        retrieval = Retrieval(vector_store_ids=store_ids, max_num_results=20)
        return [passage.file_id for passage in await self.retriever.retrieve(TENANT, [query], retrieval)]

    @asynccontextmanager
    async def searched_all_the_while(self, store_id: str, name: str) -> AsyncIterator[None]:
        """Search for one file without a pause; each search must find it."""
        stop = asyncio.Event()

        async def search() -> int:
            searches = 0
            while not stop.is_set():
                assert f"file-{name}" in await self.found(f"berth {name}", store_id)
                searches += 1
            return searches

        searching = asyncio.create_task(search())
        try:
            yield
        finally:
            stop.set()
            assert await searching > 0


@pytest.fixture
async def library(stack: Stack, database: Database, models: Models) -> AsyncIterator[Library]:
    given = {name.lower(): value for name, value in _environ(models).items()}
    given["embedding_models"] = json.loads(given["embedding_models"])
    settings = IngestSettings.model_validate(
        given | {"qdrant_url": stack.environment("ingest")["QDRANT_URL"], "cache_url": "redis://127.0.0.1:9/0"}
    )
    async with platform_of(stack, database) as platform:
        collections = Collections.connect(settings)
        embedders = CachedEmbedders(embedders_of(settings, concurrency=2), Cache(settings, platform.keyring), 60.0)
        retriever = HybridRetriever(database, collections, embedders, platform.keyring, {})
        yield Library(platform, collections, retriever, settings.dimensions_by_model())
        await embedders.aclose()
        await collections.aclose()


async def _at_poison(models: Models) -> None:
    assert await asyncio.to_thread(models.waiting.wait, 60)


async def test_a_store_moves_to_another_model_and_answers_all_the_while(library: Library, models: Models) -> None:
    store_id = await library.store("move", files=8)
    embedded = models.new.embedded
    async with library.searched_all_the_while(store_id, "move3"):
        job_id = await library.reindex(store_id, NEW)
        await library.done(job_id)
    record, job = await library.record(store_id), await library.job(job_id)
    assert (record.place, record.reindex_job_id) == (Place(NEW), None)
    assert (job.progress_done, job.progress_total, job.resource_id) == (8, 8, store_id)
    assert (await library.stored(store_id, Place(OLD)), await library.stored(store_id, Place(NEW))) == (0, 8)
    assert models.new.embedded > embedded + 8  # the files, and questions since
    late = await library.add(store_id, "late", "The late ferry waits.")
    assert (await library.found("late ferry", store_id))[0] == late
    counts = await library.platform.database.read(lambda c: vector_stores.counts(c, TENANT, [store_id]))
    assert counts[store_id].usage_bytes > 9 * 48 * 4


async def test_rebuilding_with_the_same_model_goes_to_and_fro(library: Library) -> None:
    store_id = await library.store("same", files=3)
    for generation in (2, 1):
        async with library.searched_all_the_while(store_id, "same1"):
            await library.done(await library.reindex(store_id))
        assert (await library.record(store_id)).place == Place(OLD, generation)
        assert await library.stored(store_id, Place(OLD, generation)) == 3
        assert await library.stored(store_id, Place(OLD, 3 - generation)) == 0


async def test_a_killed_reindex_goes_on_where_it_was(library: Library, models: Models) -> None:
    store_id = await library.store("kill", files=6)
    embedded = models.new.embedded
    models.held.set()
    async with library.searched_all_the_while(store_id, "kill0"):
        job_id = await library.reindex(store_id, NEW)
        await _at_poison(models)
        with pytest.raises(PermanentError) as refused:
            await library.reindex(store_id)
        assert refused.value.code is ErrorCode.REINDEX_IN_PROGRESS
        assert models.new.embedded == embedded + 6
        await asyncio.to_thread(library.platform.stack.kill, "ingest")

        async def at_poison_again() -> bool:
            assert models.new.embedded <= embedded + 7  # only the file that was under way is embedded once more
            return bool((await library.job(job_id)).attempt == 2 and models.new.embedded == embedded + 7)

        await eventually(at_poison_again)
        assert (await library.record(store_id)).place == Place(OLD)
        models.held.clear()
        await library.done(job_id)
    assert (await library.job(job_id)).attempt == 2
    assert await library.stored(store_id, Place(NEW)) == 6


async def test_what_changes_meanwhile_is_right_after_the_switch(library: Library, models: Models) -> None:
    store_id = await library.store("busy", files=4)
    models.held.set()
    job_id = await library.reindex(store_id, NEW)
    await _at_poison(models)
    change = library.platform.change
    await library.add(store_id, "newcomer", "The newcomer has a mast.")
    await change(attachments.detach_file, key=FileKey(TENANT, store_id, "file-busy0"))
    tagged = FileKey(TENANT, store_id, "file-busy1")
    await change(attachments.update_attributes, key=tagged, attributes={"year": 2026.0})
    await change(attachments.detach_file, key=FileKey(TENANT, store_id, "file-busy3"))  # the one that waits
    models.held.clear()
    await library.done(job_id)
    assert set(await library.found("berth newcomer mast water", store_id)) == {
        "file-busy1", "file-busy2", "file-newcomer",
    }  # fmt: skip
    (chunk,) = await library.collections.at(Place(NEW)).scroll_file(TENANT, store_id, "file-busy1", 1)
    assert chunk.attributes == {"year": 2026.0}

    async def only_theirs() -> bool:
        return await library.stored(store_id, Place(NEW)) == 3 and await library.stored(store_id, Place(OLD)) == 0

    await eventually(only_theirs)


async def test_a_cancelled_reindex_leaves_the_store_as_it_was(library: Library, models: Models) -> None:
    store_id = await library.store("undo", files=3)
    models.held.set()
    job_id = await library.reindex(store_id, NEW)
    await _at_poison(models)

    def cancel(connection: Any) -> None:
        ledger.cancel(connection, TENANT, job_id)
        reindexing.give_up(connection, library.platform.messages, TENANT, job_id, delay_seconds=1.0)

    await library.platform.database.write(cancel)

    async def stopped() -> bool:
        return bool((await library.job(job_id)).state == "cancelled")

    await eventually(stopped)
    models.held.clear()

    async def clean() -> bool:
        return await library.stored(store_id, Place(NEW)) == 0

    await eventually(clean)
    assert (await library.record(store_id)).place == Place(OLD)
    assert len(await library.found("berth water", store_id)) == 3
    await library.done(await library.reindex(store_id, NEW))  # and it can begin anew


async def test_chunks_missing_at_the_goal_are_noticed_before_the_switch(library: Library, models: Models) -> None:
    store_id = await library.store("hole", files=3)
    models.held.set()
    job_id = await library.reindex(store_id, NEW)
    await _at_poison(models)
    await library.collections.at(Place(NEW)).delete_file(TENANT, store_id, "file-hole0")
    models.held.clear()
    await library.done(job_id)
    assert (await library.job(job_id)).failures == 1
    assert await library.stored(store_id, Place(NEW)) == 3


async def test_stores_of_two_models_are_searched_together(library: Library) -> None:
    one, two = await library.store("one", files=1), await library.store("two", files=1)
    await library.done(await library.reindex(two, NEW))
    assert set((await library.found("berth", one, two))[:2]) == {"file-one0", "file-two0"}
    foreign = partial(marks.give_up, tenant_id="tenant_b", job_id="job_x")
    assert await library.platform.database.write(foreign) == []


async def test_a_model_that_is_not_offered_is_refused_and_one_that_is_gone_said_so(library: Library) -> None:
    store_id = await library.store("strict", files=1)
    with pytest.raises(PermanentError) as refused:
        await library.reindex(store_id, "gpt-none")
    assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_VALUE, "model")
    with pytest.raises(PermanentError) as missing:
        await library.reindex("vs_none")
    assert missing.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(RetryableError, match="EMBEDDING_MODELS"):
        library.collections.at(Place("retired"))
