"""Chunks of two tenants in the vector server, which speaks Qdrant's REST API."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from uuid import uuid4

import pytest
from pydantic import TypeAdapter

from libs.common.contracts.filters import Comparison, Compound, Filter
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.chunks import Attributes, ChunkPayload, ScoredChunk, StoredChunk
from libs.common.rag.fusion import HybridWeights
from libs.common.rag.sparse import encode_document, encode_query
from libs.common.rag.vectors import ChunkCollection, CollectionMissingError, QueryScope
from tests.vector_servers import running_vector_server

FILTER: TypeAdapter[Comparison | Compound] = TypeAdapter(Filter)
SCOPE_A = QueryScope("tenant-a", ("store",))
SCOPE_B = QueryScope("tenant-b", ("store",))
TEXTS = ["budget of the northern region", "holiday policy for staff", "budget forecast and budget review", "fire drill"]
DENSE = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_vector_server(tmp_path_factory.mktemp("vectors")) as url:
        yield url


@pytest.fixture
async def collection(server: str) -> AsyncIterator[ChunkCollection]:
    collection = ChunkCollection.connect(server, model=f"Model/{uuid4().hex}", dimension=3)
    await collection.ensure()
    yield collection
    await collection.aclose()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _file(
    tenant: str, file: str = "file", *, version: int = 1, store: str = "store", attributes: Attributes | None = None
) -> list[StoredChunk]:
    return [
        StoredChunk(
            tenant, store, file, version, position, dense, encode_document(text), _payload(tenant, text, attributes)
        )
        for position, (text, dense) in enumerate(zip(TEXTS, DENSE, strict=True))
    ]


def _payload(tenant: str, text: str, attributes: Attributes | None) -> ChunkPayload:
    return ChunkPayload(f"{tenant}: {text}".encode(), attributes or {})


async def _ask(
    collection: ChunkCollection,
    question: str = "budget review",
    scope: QueryScope = SCOPE_A,
    *,
    filters: Filter | None = None,
    limit: int = 10,
    weights: HybridWeights | None = None,
    score_threshold: float = 0.0,
) -> list[ScoredChunk]:
    return await collection.query(
        scope,
        [0.6, 0.8, 0.0],
        encode_query(question),
        filters=filters,
        limit=limit,
        weights=weights,
        score_threshold=score_threshold,
    )


async def test_many_processes_may_set_up_at_once_and_again(server: str) -> None:
    model = uuid4().hex
    collections = [ChunkCollection.connect(server, model=model, dimension=3) for _ in range(6)]
    await asyncio.gather(*(collection.ensure() for collection in collections))
    await collections[0].upsert(_file("tenant-a"))
    await collections[1].ensure()
    assert await collections[2].count("tenant-a") == len(TEXTS)
    for collection in collections:
        await collection.aclose()


async def test_the_best_chunk_by_both_rankings_comes_first(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a", attributes={"team": "legal", "year": 2024.0, "draft": True}))
    found = await _ask(collection)
    assert [chunk.position for chunk in found[:1]] == [2]
    assert found[0].sealed == b"tenant-a: budget forecast and budget review"
    assert (found[0].vector_store_id, found[0].file_id, found[0].version) == ("store", "file", 1)
    assert found[0].attributes == {"team": "legal", "year": 2024.0, "draft": True}
    scores = [chunk.score for chunk in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert [chunk.id for chunk in await _ask(collection, limit=1)] == [found[0].id]
    assert await _ask(collection, score_threshold=scores[1]) == found[:2]


async def test_storing_a_chunk_again_changes_nothing(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a"))
    await collection.upsert(_file("tenant-a"))
    assert await collection.count("tenant-a") == len(TEXTS)


async def test_a_question_without_terms_is_answered_by_meaning(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a"))
    found = await _ask(collection, "what is it that they do")
    assert [chunk.position for chunk in found] == [2, 1, 0, 3]
    assert await _ask(collection, "what is it", weights=HybridWeights(embedding=0)) == []


async def test_weights_decide_between_the_rankings(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a"))
    question = "fire drill"

    async def first(embedding: float, text: float) -> int:
        found = await _ask(collection, question, weights=HybridWeights(embedding, text))
        assert all(0 <= chunk.score <= 1 for chunk in found)
        return found[0].position

    assert await first(1, 0) == await first(9, 1) == 2
    assert await first(0, 1) == await first(1, 9) == 3
    only_text = await _ask(collection, question, weights=HybridWeights(0, 1))
    assert [chunk.position for chunk in only_text] == [3]


async def test_only_the_ratio_of_weights_matters_and_it_moves_scores_smoothly(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a"))
    equal = {chunk.id: chunk.score for chunk in await _ask(collection)}
    nearly = {chunk.id: chunk.score for chunk in await _ask(collection, weights=HybridWeights(1, 1.000001))}
    scaled = {chunk.id: chunk.score for chunk in await _ask(collection, weights=HybridWeights(7, 7))}
    assert nearly == pytest.approx(equal, abs=1e-4)
    assert scaled == equal


@pytest.mark.parametrize(
    ("raw", "files"),
    [
        ({"type": "eq", "key": "team", "value": "legal"}, {"a"}),
        ({"type": "ne", "key": "team", "value": "legal"}, {"b", "c"}),
        ({"type": "eq", "key": "year", "value": 2024}, {"a"}),
        ({"type": "eq", "key": "year", "value": "2024"}, set()),
        ({"type": "gt", "key": "year", "value": 2023.5}, {"a"}),
        ({"type": "gte", "key": "year", "value": 2020}, {"a", "b"}),
        ({"type": "lt", "key": "year", "value": 2024}, {"b"}),
        ({"type": "lte", "key": "year", "value": 2024}, {"a", "b"}),
        ({"type": "eq", "key": "draft", "value": True}, {"a"}),
        ({"type": "eq", "key": "draft", "value": False}, {"b"}),
        ({"type": "in", "key": "year", "value": [2020, 2021, "x"]}, {"b"}),
        ({"type": "nin", "key": "team", "value": ["legal", "sales"]}, {"c"}),
        ({"type": "eq", "key": "odd key[0].x:é", "value": "yes"}, {"c"}),
        ({"type": "eq", "key": "tenant_id", "value": "tenant-b"}, set()),
        (
            {
                "type": "or",
                "filters": [
                    {"type": "eq", "key": "team", "value": "sales"},
                    {
                        "type": "and",
                        "filters": [
                            {"type": "eq", "key": "team", "value": "legal"},
                            {"type": "gt", "key": "year", "value": 2000},
                        ],
                    },
                ],
            },
            {"a", "b"},
        ),
    ],
)
async def test_attribute_filters(collection: ChunkCollection, raw: object, files: set[str]) -> None:
    await collection.upsert(_file("tenant-a", "a", attributes={"team": "legal", "year": 2024.0, "draft": True}))
    await collection.upsert(_file("tenant-a", "b", attributes={"team": "sales", "year": 2020.0, "draft": False}))
    await collection.upsert(_file("tenant-a", "c", attributes={"odd key[0].x:é": "yes"}))
    await collection.upsert(_file("tenant-b", "d", attributes={"team": "legal", "year": 2024.0, "draft": True}))
    found = await _ask(collection, filters=FILTER.validate_python(raw), limit=50)
    assert {chunk.file_id for chunk in found} == files


async def test_a_file_is_read_in_order_over_several_pages(collection: ChunkCollection) -> None:
    chunks = [
        StoredChunk("tenant-a", "store", "long", 3, position, [1.0, 0.0, 0.0], encode_document(""), ChunkPayload(b"x"))
        for position in range(300)
    ]
    await collection.upsert(chunks)
    await collection.upsert(_file("tenant-a", "long", version=2))
    read = await collection.scroll_file("tenant-a", "store", "long", 3)
    assert [chunk.position for chunk in read] == list(range(300))
    assert await collection.scroll_file("tenant-a", "store", "long", 1) == []


async def test_other_versions_are_deleted_and_the_kept_one_stays(collection: ChunkCollection) -> None:
    for version in (1, 2, 3):
        await collection.upsert(_file("tenant-a", version=version))
    await collection.upsert(_file("tenant-a", "other"))
    await collection.delete_file("tenant-a", "store", "file", keep_version=2)
    assert {chunk.version for chunk in await _ask(collection, limit=50) if chunk.file_id == "file"} == {2}
    await collection.delete_file("tenant-a", "store", "file")
    assert await collection.count("tenant-a", vector_store_id="store", file_id="file") == 0
    assert await collection.count("tenant-a") == len(TEXTS)


async def test_older_versions_are_deleted_and_newer_ones_stay(collection: ChunkCollection) -> None:
    async def left() -> dict[int, int]:
        return {
            version: len(await collection.scroll_file("tenant-a", "store", "file", version)) for version in (1, 2, 3, 4)
        }

    for version in (1, 2, 3, 4):
        await collection.upsert(_file("tenant-a", version=version))
    await collection.upsert(_file("tenant-a", "other"))
    whole = len(TEXTS)
    await collection.delete_older("tenant-a", "store", "file", 3, from_position=2, keep_version=1)
    assert await left() == {1: whole, 2: 0, 3: 2, 4: whole}
    await collection.delete_older("tenant-a", "store", "file", 3, from_position=0)
    assert await left() == {1: 0, 2: 0, 3: 0, 4: whole}
    await collection.delete_newer("tenant-a", "store", "file", 3)
    assert await left() == {1: 0, 2: 0, 3: 0, 4: 0}
    assert await collection.count("tenant-a", vector_store_id="store", file_id="other") == whole


async def test_queries_see_only_the_vector_stores_asked_for(collection: ChunkCollection) -> None:
    for store in ("one", "two", "three"):
        await collection.upsert(_file("tenant-a", store=store))
    found = await _ask(collection, scope=QueryScope("tenant-a", ("one", "two")), limit=50)
    assert {chunk.vector_store_id for chunk in found} == {"one", "two"}
    assert await _ask(collection, scope=QueryScope("tenant-a", ())) == []
    await collection.delete_store("tenant-a", "one")
    assert await collection.count("tenant-a", vector_store_id="one") == 0
    assert await collection.count("tenant-a") == 2 * len(TEXTS)


async def test_no_tenant_sees_or_touches_the_chunks_of_another(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a", attributes={"owner": "a"}))
    before = await collection.scroll_file("tenant-a", "store", "file", 1)

    assert await _ask(collection, scope=SCOPE_B) == []
    assert await collection.count("tenant-b") == 0
    assert await collection.count("tenant-b", vector_store_id="store", file_id="file") == 0
    assert await collection.scroll_file("tenant-b", "store", "file", 1) == []
    await collection.set_attributes("tenant-b", "store", "file", {"owner": "b"})
    await collection.delete_file("tenant-b", "store", "file")
    await collection.delete_file("tenant-b", "store", "file", keep_version=7)
    await collection.delete_older("tenant-b", "store", "file", 7, from_position=0)
    await collection.delete_newer("tenant-b", "store", "file", 0)
    await collection.delete_store("tenant-b", "store")
    await collection.delete_tenant("tenant-b")

    assert await collection.scroll_file("tenant-a", "store", "file", 1) == before
    assert len(before) == len(TEXTS)


async def test_equal_ids_and_vectors_of_two_tenants_stay_apart(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a"))
    alone = await _ask(collection)
    await collection.upsert(_file("tenant-b"))
    for scope, mark in ((SCOPE_A, b"tenant-a:"), (SCOPE_B, b"tenant-b:")):
        found = await _ask(collection, scope=scope, limit=50)
        assert len(found) == len(TEXTS)
        assert all(chunk.sealed.startswith(mark) for chunk in found)
    # Not even the rarity of words in the other's documents shows.
    assert await _ask(collection) == alone
    await collection.set_attributes("tenant-b", "store", "file", {"owner": "b"})
    assert [chunk.attributes for chunk in await _ask(collection)] == [{}] * len(TEXTS)
    await collection.delete_tenant("tenant-b")
    assert await collection.count("tenant-b") == 0
    assert await collection.count("tenant-a") == len(TEXTS)


async def test_attributes_are_replaced_on_every_chunk(collection: ChunkCollection) -> None:
    await collection.upsert(_file("tenant-a", attributes={"old": "x", "both": 1.0}))
    await collection.set_attributes("tenant-a", "store", "file", {"both": 2.0, "new": True})
    found = await _ask(collection, limit=50)
    assert [chunk.attributes for chunk in found] == [{"both": 2.0, "new": True}] * len(TEXTS)


async def test_a_server_that_is_not_there_is_unavailable_and_unnamed() -> None:
    port = _free_port()
    collection = ChunkCollection.connect(f"http://127.0.0.1:{port}", model="m", dimension=3, timeout_seconds=2)
    with pytest.raises(RetryableError) as failure:
        await _ask(collection)
    assert failure.value.code is ErrorCode.RETRIEVAL_UNAVAILABLE
    assert str(port) not in str(failure.value)
    await collection.aclose()


async def test_a_collection_not_yet_set_up_is_unavailable(server: str) -> None:
    collection = ChunkCollection.connect(server, model=uuid4().hex, dimension=3)
    for _ in range(20):  # the server is there, so it is never left alone
        with pytest.raises(CollectionMissingError) as failure:
            await collection.count("tenant-a")
    assert failure.value.code is ErrorCode.RETRIEVAL_UNAVAILABLE
    await collection.aclose()


async def test_a_vector_of_another_length_is_refused_for_good(collection: ChunkCollection) -> None:
    with pytest.raises(PermanentError):
        await collection.query(SCOPE_A, [1.0, 0.0], encode_query("budget"))


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_failing_server_is_unavailable_and_soon_left_alone(status: int) -> None:
    calls = 0

    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal calls
            calls += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as failing:
        Thread(target=failing.serve_forever, daemon=True).start()
        collection = ChunkCollection.connect(f"http://127.0.0.1:{failing.server_port}", model="m", dimension=3)
        for _ in range(20):
            with pytest.raises(RetryableError) as failure:
                await collection.count("tenant-a")
        await collection.aclose()
        failing.shutdown()
    assert (failure.value.code, calls) == (ErrorCode.RETRIEVAL_UNAVAILABLE, 5)
    assert failure.value.retry_after_seconds is not None
