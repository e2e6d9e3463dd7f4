"""The retriever against the vector server and real records."""

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import orjson
import pytest
from sqlalchemy import Connection, insert, update

from libs.common import keys, metrics
from libs.common.cache.embeddings import CachedEmbedders
from libs.common.cache.store import Cache
from libs.common.contracts.chat import Retrieval
from libs.common.contracts.filters import Comparison
from libs.common.contracts.ingest import Place
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.rag.chunks import Attributes, ChunkPayload, StoredChunk
from libs.common.rag.collections import Collections
from libs.common.rag.embedder import Embedder, EmbedResult
from libs.common.rag.sparse import encode_document
from libs.common.rag.vectors import qdrant_client_of
from libs.common.records import file_versions, files, vector_store_files, vector_stores
from libs.common.records.database import Database, epoch_now
from libs.common.records.files import NewFile
from libs.common.records.tables import tenants
from libs.common.records.tables import vector_stores as stores_table
from libs.common.records.vector_store_files import FileKey
from libs.common.settings import CacheSettings
from services.chat.ports import ForAnswer, Passage
from services.chat.retrieval import HybridRetriever
from tests.vector_servers import running_vector_server

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_vector_server(tmp_path_factory.mktemp("vectors")) as url:
        yield url


# Of the model here, whose texts all have a similarity of at least 0.5.
_LEAST: Final = 0.95


def _vector(text: str) -> list[float]:
    return [1.0, float("crane" in text), float("tide" in text)]


class _Embedder(Embedder):
    """Knows two words."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", "key", model="model", dimension=3)
        self.calls = 0

    async def embed(self, texts: Sequence[str]) -> EmbedResult:
        self.calls += 1
        return EmbedResult([_vector(text) for text in texts], len(texts))


class Library:
    """Stores and files of two tenants, `a` and `b`, and the retriever over them."""

    def __init__(self, database: Database, collections: Collections, model: str, keyring: Keyring) -> None:
        self.database = database
        self.model = model
        self.collection = collections.at(Place(model))
        self.embedder = _Embedder()
        # No cache answers there: every text is embedded.
        cache = Cache(CacheSettings(cache_url="redis://127.0.0.1:9/0"), keyring)
        embedders = CachedEmbedders({model: self.embedder}, cache, 60.0)
        self.retriever = HybridRetriever(database, collections, embedders, keyring, {model: _LEAST})
        self.sealer = keyring.sealer(keys.CHUNKS_PURPOSE)
        self.reranked_by = partial(HybridRetriever, database, collections, embedders, keyring, {model: _LEAST})

    def open(self) -> None:
        def write(connection: Connection) -> None:
            for tenant in ("a", "b"):
                connection.execute(insert(tenants).values(id=tenant, name=tenant, created_at=epoch_now()))
                for store in ("one", "two"):
                    vector_stores.create(
                        connection,
                        tenant,
                        store_id=f"vs_{tenant}_{store}",
                        name="",
                        metadata={},
                        embedding_model=self.model,
                    )

        self.database.write_now(write)

    async def add(self, key: FileKey, *texts: str, version: int = 1, live: bool = True, **more: Any) -> None:
        """Store a version of a file, and let it answer."""
        await self.store(key, *texts, version=version, **more)
        self.database.write_now(partial(_record, key=key))
        if live:
            self.go_live(key, version)

    async def store(
        self, key: FileKey, *texts: str, version: int = 1, damaged: bool = False, attributes: Attributes | None = None
    ) -> None:
        chunks = [
            StoredChunk(
                key.tenant_id,
                key.vector_store_id,
                key.file_id,
                version,
                position,
                _vector(text),
                encode_document(text),
                ChunkPayload(b"damaged" if damaged else self._sealed(key, version, position, text), attributes or {}),
            )
            for position, text in enumerate(texts)
        ]
        await self.collection.upsert(chunks)

    def _sealed(self, key: FileKey, version: int, position: int, text: str) -> bytes:
        start = 10 + 100 * position
        content = {"text": text, "start": start, "end": start + len(text), "page": 3, "filename": "x"}
        content["heading_path"] = ["Port", "Cranes"]
        context = (key.tenant_id, key.vector_store_id, key.file_id, str(version), str(position))
        return self.sealer.seal(orjson.dumps(content), *context)

    def go_live(self, key: FileKey, version: int) -> None:
        def write(connection: Connection) -> None:
            while vector_store_files.get(connection, key).latest_version < version:
                _reattach(connection, key)
            attributes = vector_store_files.get(connection, key).attributes
            assert file_versions.go_live(
                connection, key, version=version, usage_bytes=1, attributes=attributes, place=Place(self.model)
            )

        self.database.write_now(write)

    async def find(
        self,
        *queries: str,
        tenant: str = "a",
        stores: tuple[str, ...] = (),
        gated: bool = False,
        answer: ForAnswer | None = None,
        **how: Any,
    ) -> list[Passage]:
        retrieval = Retrieval(vector_store_ids=stores or (f"vs_{tenant}_one",), **how)
        answer = answer or (ForAnswer(gated=True, passage_tokens=0) if gated else None)
        return await self.retriever.retrieve(tenant, queries or ("crane",), retrieval, answer)


def _record(connection: Connection, key: FileKey) -> None:
    new = NewFile(key.file_id, f"{key.file_id}.txt", "assistants", 3, "0" * 64, f"blob_{key.file_id}")
    file = files.insert(connection, key.tenant_id, new)
    vector_store_files.attach(connection, key.vector_store_id, file, attributes={}, chunking={"type": "auto"})


def _reattach(connection: Connection, key: FileKey) -> None:
    file = files.get(connection, key.tenant_id, key.file_id)
    changed = {"version": float(vector_store_files.get(connection, key).latest_version + 1)}
    vector_store_files.attach(connection, key.vector_store_id, file, attributes=changed, chunking={"type": "auto"})


def _key(name: str = "x", tenant: str = "a", store: str = "one") -> FileKey:
    return FileKey(tenant, f"vs_{tenant}_{store}", f"file-{name}")


def _texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


@pytest.fixture
async def library(server: str, database: Database, keyring: Keyring) -> AsyncIterator[Library]:
    model = f"Model/{uuid4().hex}"
    collections = Collections(qdrant_client_of(server), {model: 3})
    opened = Library(database, collections, model, keyring)
    await opened.collection.ensure()
    opened.open()
    yield opened
    await collections.aclose()


async def test_a_passage_is_what_was_stored(library: Library) -> None:
    await library.add(_key(), "the crane lifts", "the tide falls", attributes={"year": 2026.0})
    [best, *_] = await library.find("crane")
    assert best.text == "the crane lifts"
    assert (best.vector_store_id, best.file_id, best.filename) == ("vs_a_one", "file-x", "file-x.txt")
    assert (best.page, best.start, best.end, best.heading_path) == (3, 10, 25, ("Port", "Cranes"))
    assert best.attributes == {"year": 2026.0}
    assert 0 <= best.score <= 1


async def test_several_queries_make_one_ranking(library: Library) -> None:
    await library.add(_key(), "the crane lifts", "the tide falls", "nothing")
    found = await library.find("crane", "tide")
    assert set(_texts(found[:2])) == {"the crane lifts", "the tide falls"}
    assert len(found) == len(set(_texts(found)))
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)
    assert len(await library.find("crane", "tide", max_num_results=1)) == 1


async def test_only_the_live_version_of_a_file_answers(library: Library) -> None:
    await library.add(_key(), "the old crane")
    await library.store(_key(), "the new crane", version=2)
    assert _texts(await library.find()) == ["the old crane"]
    library.go_live(_key(), 2)
    assert _texts(await library.find()) == ["the new crane"]


async def test_a_version_that_is_gone_does_not_crowd_out_the_one_that_counts(library: Library) -> None:
    await library.add(_key(), *[f"crane {n} crane" for n in range(4)])
    await library.store(_key(), *[f"crane {n} crane" for n in range(4)], version=2)
    library.go_live(_key(), 2)
    assert len(await library.find(max_num_results=4)) == 4


async def test_a_file_whose_first_version_is_being_made_does_not_answer(library: Library) -> None:
    await library.add(_key(), "the crane", live=False)
    assert await library.find() == []


async def test_a_detached_file_answers_no_longer(library: Library) -> None:
    await library.add(_key("x"), "the crane of x")
    await library.add(_key("y"), "the crane of y")
    library.database.write_now(lambda connection: vector_store_files.detach(connection, _key("x")))
    assert _texts(await library.find()) == ["the crane of y"]


async def test_stores_and_tenants_are_kept_apart(library: Library) -> None:
    await library.add(_key("x"), "the crane of a")
    await library.add(_key("y", store="two"), "the crane of a's other store")
    await library.add(_key("z", tenant="b"), "the crane of b")
    assert _texts(await library.find()) == ["the crane of a"]
    assert _texts(await library.find(tenant="b")) == ["the crane of b"]
    assert len(await library.find(stores=("vs_a_one", "vs_a_two"))) == 2


async def test_a_foreign_chunk_that_calls_itself_ours_is_not_shown(library: Library) -> None:
    await library.add(_key("x"), "the crane of a")
    # As if chunks of another tenant had been stored under our name: their seal says whose they are.
    foreign = StoredChunk(
        "a", "vs_a_one", "file-x", 1, 7, _vector("crane"), encode_document("crane"),
        ChunkPayload(library._sealed(_key("x", tenant="b"), 1, 7, "the crane of b")),
    )  # fmt: skip
    await library.collection.upsert([foreign])
    assert _texts(await library.find()) == ["the crane of a"]


@pytest.mark.parametrize("stores", [("vs_none",), ("vs_b_one",), ("vs_a_one", "vs_b_one")])
async def test_a_missing_and_a_foreign_store_are_not_found_alike(library: Library, stores: tuple[str, ...]) -> None:
    await library.add(_key("z", tenant="b"), "the crane of b")
    with pytest.raises(PermanentError) as caught:
        await library.find(stores=stores)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert caught.value.message == f"No vector store found with id '{stores[-1]}'."
    assert library.embedder.calls == 0


async def test_an_expired_store_is_not_found(library: Library) -> None:
    await library.add(_key(), "the crane")
    library.database.write_now(lambda c: c.execute(update(stores_table).values(expires_at=epoch_now() - 1)))
    with pytest.raises(PermanentError) as caught:
        await library.find()
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_damaged_chunk_is_left_out_and_counted(library: Library) -> None:
    await library.add(_key("x"), "the crane of x")
    await library.add(_key("y"), "the crane of y", "another crane", damaged=True)
    before = _seal_failures()
    assert _texts(await library.find()) == ["the crane of x"]
    assert _seal_failures() - before == 2


def _seal_failures() -> float:
    return metrics.REGISTRY.get_sample_value("docent_seal_failures_total", {"purpose": keys.CHUNKS_PURPOSE}) or 0.0


async def test_filters_limits_and_thresholds_hold(library: Library) -> None:
    await library.add(_key("x"), "the crane of x", attributes={"year": 2025.0})
    await library.add(_key("y"), "the crane of y", "the tide", attributes={"year": 2026.0})
    new = {"type": "eq", "key": "year", "value": 2026.0}
    assert {passage.file_id for passage in await library.find(filters=new)} == {"file-y"}
    assert len(await library.find(max_num_results=2)) == 2
    assert all(passage.score >= 0.6 for passage in await library.find(score_threshold=0.6))
    assert len(await library.find(embedding_weight=0.0)) == 2  # only what holds the word


async def test_an_empty_store_has_no_passages(library: Library) -> None:
    assert await library.find() == []


async def test_a_gated_question_finds_nothing_where_the_best_is_unlike_it(library: Library) -> None:
    await library.add(_key("x"), "Four cranes stand in the harbour.", "The tide is high at noon.")
    for question, is_relevant in [
        ("How many cranes stand in the harbour?", True),  # near, and all its terms are there
        ("When is the tide?", True),
        ("Who composed the opera about a flying Dutchman?", False),  # neither
        ("Which crane composed operas about Dutchmen?", True),  # near alone
    ]:
        assert await library.find(question), "an ungated search always finds the least distant"
        assert bool(await library.find(question, gated=True)) is is_relevant, question
    assert await library.find("Who composed operas?", "How many cranes?", gated=True), "one of the queries is enough"


async def test_a_gate_sees_only_what_the_filters_leave(library: Library) -> None:
    await library.add(_key("x"), "Four cranes stand in the harbour.", attributes={"port": "north"})
    await library.add(_key("y"), "The tide is high at noon.", attributes={"port": "south"})
    south = Comparison(type="eq", key="port", value="south")
    assert await library.find("How many cranes stand?", gated=True)
    assert not await library.find("How many cranes stand?", gated=True, filters=south)


async def test_a_passage_for_a_model_holds_what_stands_around_it(library: Library) -> None:
    texts = ["the quay is long", "the crane is old", "the tide is high"]
    await library.add(_key("x"), *texts)
    await library.add(_key("y"), "the crane of y")
    await library.add(_key("foreign", tenant="b"), *texts)
    wide = ForAnswer(gated=False, passage_tokens=100)
    found = await library.find("crane", answer=wide, embedding_weight=0.0)
    assert {passage.file_id: passage.text for passage in found} == {
        "file-x": "\n".join(texts),
        "file-y": "the crane of y",
    }
    narrow = ForAnswer(gated=False, passage_tokens=0)
    assert "the crane is old" in _texts(await library.find("crane", answer=narrow, embedding_weight=0.0))


async def test_neighbours_are_of_the_version_that_is_live(library: Library) -> None:
    await library.add(_key("x"), "the crane is old", "the quay is short")
    await library.add(_key("x"), "the crane is new", "the quay is long", version=2, live=False)
    [found] = await library.find("crane", answer=ForAnswer(gated=False, passage_tokens=100), embedding_weight=0.0)
    assert found.text == "the crane is old\nthe quay is short"


async def test_copies_take_one_place_in_an_answer_and_theirs_in_a_search(library: Library) -> None:
    await library.add(_key("x"), "The crane is old.")
    await library.add(_key("y"), "the crane is OLD")
    await library.add(_key("z"), "A crane is not old.")
    for_answer = ForAnswer(gated=False, passage_tokens=0)
    found = await library.find("crane old", answer=for_answer, max_num_results=2)
    assert len(found) == 2
    assert "A crane is not old." in _texts(found)
    assert len(await library.find("crane old")) == 3


class _Backwards:
    """A reranker that likes long texts, or is away."""

    candidates = 10

    def __init__(self) -> None:
        self.away = False
        self.shown: list[list[str]] = []

    async def scores(self, queries: Sequence[str], texts: Sequence[str]) -> list[float] | None:
        self.shown.append(list(texts))
        return None if self.away else [len(text) / 100 * len(queries) for text in texts]


async def test_a_reranker_has_the_last_word_unless_it_is_away_or_not_wanted(library: Library) -> None:
    await library.add(_key("x"), "crane", "crane crane", "a crane among other things")
    reranker = _Backwards()
    library.retriever = library.reranked_by(reranker)
    found = await library.find("crane", max_num_results=1)
    assert (_texts(found), found[0].score) == (["a crane among other things"], 0.26)
    assert len(reranker.shown[0]) == 3
    assert _texts(await library.find("crane", score_threshold=0.2)) == ["a crane among other things"]
    plain = _texts(await library.find("crane", rerank=False))
    assert len(reranker.shown) == 2
    reranker.away = True
    assert _texts(await library.find("crane")) == plain
