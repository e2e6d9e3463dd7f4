"""One set of tests for the vector server and for Qdrant itself: whatever holds here, the platform may rely on."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any
from uuid import uuid4

import httpx
import pytest
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from testcontainers.core.container import DockerContainer

ROOT = Path(__file__).parents[2]
UUID_ID = "0b8f6c1e-0000-4000-8000-000000000001"


@dataclass
class Server:
    """The vector server as a process of its own, which can be killed and started again on the same directory."""

    path: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "libs.local.vector_server", "--port", str(self.port), "--path", str(self.path)]
        self.process = subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=20)

    async def ready(self) -> None:
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            while True:
                assert self.process is not None
                assert self.process.poll() is None, "the server ended instead of starting"
                try:
                    await client.get(f"{self.url}/readyz")
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
                else:
                    return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def own_server() -> Iterator[Server]:
    server = Server(Path(tempfile.mkdtemp(prefix="vectors-")), free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(server.path)


@contextmanager
def real_qdrant() -> Iterator[str]:
    if shutil.which("docker") is None or subprocess.call(["docker", "info"], stdout=DEVNULL, stderr=DEVNULL) != 0:
        pytest.skip("no Docker engine runs here")
    with DockerContainer("qdrant/qdrant:v1.18.0").with_exposed_ports(6333) as container:
        yield f"http://{container.get_container_host_ip()}:{container.get_exposed_port(6333)}"


@pytest.fixture(scope="module", params=["vector-server", "qdrant"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "qdrant":
        with real_qdrant() as address:
            yield address
    else:
        with own_server() as server:
            asyncio.run(server.ready())
            yield server.url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncQdrantClient]:
    client = AsyncQdrantClient(url=url, prefer_grpc=False, check_compatibility=False)
    async with asyncio.timeout(60):
        while True:
            try:
                await client.get_collections()
                break
            except ResponseHandlingException:
                await asyncio.sleep(0.1)
    yield client
    await client.close()


async def create(client: AsyncQdrantClient) -> str:
    name = f"chunks-{uuid4().hex[:12]}"
    await client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=4, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    await client.create_payload_index(
        name, "tenant_id", models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    )
    return name


@pytest.fixture
async def chunks(client: AsyncQdrantClient) -> AsyncIterator[str]:
    """Six points: 1 to 4 of tenant a, 5 of tenant b, and one with a UUID of tenant b."""
    name = await create(client)
    await client.upsert(name, SIX, wait=True)
    yield name
    await client.delete_collection(name)


def point(identifier: int | str, dense: list[float], terms: dict[int, float], **payload: Any) -> models.PointStruct:
    sparse = models.SparseVector(indices=list(terms), values=list(terms.values()))
    return models.PointStruct(id=identifier, vector={"dense": dense, "bm25": sparse}, payload=payload)


SIX = [
    point(1, [1, 0, 0, 0], {10: 1.0}, tenant_id="a", page=1, score=0.5, at="2024-01-01T00:00:00Z", text="red fox"),
    point(2, [0.9, 0.1, 0, 0], {20: 1.0}, tenant_id="a", page=2, score=1.5, at="2024-06-01T00:00:00Z", text="red hen"),
    point(3, [0.5, 0.5, 0, 0], {10: 0.5, 20: 0.5}, tenant_id="a", page=3, draft=True, tags=["x", "y"]),
    point(4, [0, 1, 0, 0], {30: 1.0}, tenant_id="a", page=4, draft=False, tags=[], note=None),
    point(5, [1, 0, 0, 0], {10: 2.0, 20: 2.0}, tenant_id="b", page=1),
    point(UUID_ID, [1, 0, 0, 0], {10: 2.0, 30: 2.0}, tenant_id="b", page=2),
]


def field(key: str, **condition: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **condition)


def tenant(name: str) -> models.Filter:
    return models.Filter(must=[field("tenant_id", match=models.MatchValue(value=name))])


def hybrid(owner: str, limit: int = 10) -> list[models.Prefetch]:
    terms = models.SparseVector(indices=[20], values=[1.0])
    return [
        models.Prefetch(query=[1, 0, 0, 0], using="dense", limit=limit, filter=tenant(owner)),
        models.Prefetch(query=terms, using="bm25", limit=limit, filter=tenant(owner)),
    ]


async def test_dbsf_fuses_dense_and_sparse_under_the_tenants_filter(client: AsyncQdrantClient, chunks: str) -> None:
    fusion = models.FusionQuery(fusion=models.Fusion.DBSF)
    found = await client.query_points(chunks, query=fusion, prefetch=hybrid("a"), limit=4, with_payload=True)
    # 2 is near in the dense space and first by its term; 3 holds the term at half weight; 1 and 4 lack it.
    assert [hit.id for hit in found.points] == [2, 3, 1, 4]
    assert {(hit.payload or {})["tenant_id"] for hit in found.points} == {"a"}


async def test_rrf_scores_are_the_sum_of_reciprocal_ranks(client: AsyncQdrantClient, chunks: str) -> None:
    query = models.RrfQuery(rrf=models.Rrf(k=60, weights=[1.0, 3.0]))
    found = await client.query_points(chunks, query=query, prefetch=hybrid("a"), limit=2)
    assert [hit.id for hit in found.points] == [2, 3]
    assert found.points[0].score > found.points[1].score > 0


@pytest.mark.parametrize("fusion", list(models.Fusion))
async def test_a_prefetch_never_leaves_its_tenant(
    client: AsyncQdrantClient, chunks: str, fusion: models.Fusion
) -> None:
    query = models.FusionQuery(fusion=fusion)
    found = await client.query_points(chunks, query=query, prefetch=hybrid("b"), limit=10)
    assert {hit.id for hit in found.points} == {5, UUID_ID}


async def test_dense_query_orders_by_similarity_and_honours_every_option(
    client: AsyncQdrantClient, chunks: str
) -> None:
    options: dict[str, Any] = {"query": [1, 0, 0, 0], "using": "dense", "query_filter": tenant("a")}
    found = (await client.query_points(chunks, **options, with_payload=["page"], with_vectors=["bm25"])).points
    assert [hit.id for hit in found] == [1, 2, 3, 4]
    assert found[0].payload == {"page": 1}
    assert found[0].vector == {"bm25": models.SparseVector(indices=[10], values=[1.0])}
    assert found[0].score == pytest.approx(1.0)
    above = await client.query_points(chunks, **options, score_threshold=0.9)
    assert [hit.id for hit in above.points] == [1, 2]
    page = await client.query_points(chunks, **options, limit=2, offset=1)
    assert [hit.id for hit in page.points] == [2, 3]


async def test_sparse_query_weighs_rare_terms_higher(client: AsyncQdrantClient, chunks: str) -> None:
    query = models.SparseVector(indices=[10, 30], values=[1.0, 1.0])
    found = await client.query_points(chunks, query=query, using="bm25", query_filter=tenant("a"), limit=3)
    assert [hit.id for hit in found.points] == [4, 1, 3]


async def test_a_batch_answers_every_query_in_order(client: AsyncQdrantClient, chunks: str) -> None:
    requests = [
        models.QueryRequest(query=[1, 0, 0, 0], using="dense", limit=1, filter=tenant("a")),
        models.QueryRequest(query=[0, 1, 0, 0], using="dense", limit=1, filter=tenant("a")),
    ]
    answers = await client.query_batch_points(chunks, requests)
    assert [[hit.id for hit in answer.points] for answer in answers] == [[1], [4]]


FILTERS: dict[str, tuple[models.Filter, set[int | str]]] = {
    "value": (models.Filter(must=field("page", match=models.MatchValue(value=2))), {2, UUID_ID}),
    "bool": (models.Filter(must=[field("draft", match=models.MatchValue(value=True))]), {3}),
    "any": (models.Filter(must=[field("page", match=models.MatchAny(any=[3, 4]))]), {3, 4}),
    "any of list": (models.Filter(must=[field("tags", match=models.MatchAny(any=["y", "z"]))]), {3}),
    "except": (models.Filter(must=[field("tenant_id", match=models.MatchExcept(**{"except": ["a"]}))]), {5, UUID_ID}),
    "text": (models.Filter(must=[field("text", match=models.MatchText(text="hen"))]), {2}),
    "range": (models.Filter(must=[tenant("a"), field("page", range=models.Range(gt=1, lte=3))]), {2, 3}),
    "float range": (models.Filter(must=[field("score", range=models.Range(gte=0.5, lt=1.5))]), {1}),
    "datetime": (models.Filter(must=[field("at", range=models.DatetimeRange(gte="2024-02-01T00:00:00Z"))]), {2}),
    "has_id": (models.Filter(must=[models.HasIdCondition(has_id=[1, UUID_ID, 99])]), {1, UUID_ID}),
    "is_empty": (
        models.Filter(must=[tenant("a"), models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))]),
        {1, 2, 4},
    ),
    "is_null": (models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="note"))]), {4}),
    "must_not": (models.Filter(must=[tenant("a")], must_not=[field("page", range=models.Range(lte=2))]), {3, 4}),
    "nested": (
        models.Filter(
            must=[tenant("a")],
            should=[
                field("page", match=models.MatchValue(value=1)),
                models.Filter(must=[field("page", match=models.MatchValue(value=4))], must_not=[tenant("b")]),
            ],
        ),
        {1, 4},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_filters(client: AsyncQdrantClient, chunks: str, name: str) -> None:
    condition, expected = FILTERS[name]
    records, following = await client.scroll(chunks, scroll_filter=condition, limit=10)
    assert {record.id for record in records} == expected
    assert following is None
    assert (await client.count(chunks, count_filter=condition, exact=True)).count == len(expected)


@pytest.mark.parametrize(
    ("key", "schema", "condition", "expected"),
    [
        ("page", models.PayloadSchemaType.INTEGER, {"range": models.Range(gte=4)}, 1),
        ("score", models.PayloadSchemaType.FLOAT, {"range": models.Range(gt=1.0)}, 1),
        ("draft", models.PayloadSchemaType.BOOL, {"match": models.MatchValue(value=False)}, 1),
        ("at", models.PayloadSchemaType.DATETIME, {"range": models.DatetimeRange(lt="2024-02-01T00:00:00Z")}, 1),
        ("tags", models.PayloadSchemaType.KEYWORD, {"match": models.MatchAny(any=["x"])}, 1),
    ],
)
async def test_an_index_changes_speed_and_not_answers(
    client: AsyncQdrantClient, chunks: str, key: str, schema: models.PayloadSchemaType, condition: Any, expected: int
) -> None:
    await client.create_payload_index(chunks, key, schema, wait=True)
    assert (await client.get_collection(chunks)).payload_schema[key].data_type == schema
    where = models.Filter(must=[field(key, **condition)])
    assert (await client.count(chunks, count_filter=where)).count == expected
    await client.delete_payload_index(chunks, key)
    assert key not in (await client.get_collection(chunks)).payload_schema
    assert (await client.count(chunks, count_filter=where)).count == expected


async def test_scroll_visits_every_point_once(client: AsyncQdrantClient) -> None:
    name = await create(client)
    await client.upsert(name, [point(i, [1, 0, 0, 0], {1: 1.0}, tenant_id="a") for i in range(25)], wait=True)
    seen: list[Any] = []
    offset: Any = None
    while True:
        records, offset = await client.scroll(name, scroll_filter=tenant("a"), limit=10, offset=offset)
        seen += [record.id for record in records]
        if offset is None:
            break
    assert seen == list(range(25))
    await client.delete_collection(name)


async def test_retrieve_returns_what_was_stored(client: AsyncQdrantClient, chunks: str) -> None:
    [record] = await client.retrieve(chunks, [4, 99], with_vectors=True)
    assert record.payload == SIX[3].payload
    assert record.vector == {"dense": [0, 1, 0, 0], "bm25": models.SparseVector(indices=[30], values=[1.0])}
    [record] = await client.retrieve(chunks, [UUID_ID], with_payload=models.PayloadSelectorExclude(exclude=["page"]))
    assert record.payload == {"tenant_id": "b"}
    assert record.vector is None


async def test_batch_upsert_replaces_points(client: AsyncQdrantClient, chunks: str) -> None:
    batch = models.Batch(ids=[1, 7], vectors={"dense": [[0, 0, 1, 0], [0, 0, 0, 1]]}, payloads=[{"new": 1}, {"new": 2}])
    await client.upsert(chunks, batch, wait=True)
    records = await client.retrieve(chunks, [1, 7], with_vectors=True)
    assert {record.id: record.payload for record in records} == {1: {"new": 1}, 7: {"new": 2}}
    assert all(list(record.vector or {}) == ["dense"] for record in records)
    assert (await client.count(chunks)).count == 7


async def test_payload_is_set_overwritten_and_deleted(client: AsyncQdrantClient, chunks: str) -> None:
    await client.set_payload(chunks, {"live": True}, points=[1, 2], wait=True)
    await client.set_payload(chunks, {"live": False}, points=tenant("b"), wait=True)
    await client.set_payload(chunks, {"deep": 1}, points=[1], key="info", wait=True)
    await client.overwrite_payload(chunks, {"only": "this"}, points=[3], wait=True)
    await client.delete_payload(chunks, ["text", "score"], points=[2], wait=True)
    await client.delete_payload(chunks, ["page"], points=tenant("b"), wait=True)
    records = {record.id: record.payload or {} for record in (await client.scroll(chunks, limit=10))[0]}
    assert records[1] == {**(SIX[0].payload or {}), "live": True, "info": {"deep": 1}}
    assert records[2] == {"tenant_id": "a", "page": 2, "at": "2024-06-01T00:00:00Z", "live": True}
    assert records[3] == {"only": "this"}
    assert records[5] == {"tenant_id": "b", "live": False}


async def test_delete_by_filter_spares_everything_else(client: AsyncQdrantClient, chunks: str) -> None:
    where = models.Filter(must=[tenant("a"), field("page", range=models.Range(gte=3))])
    await client.delete(chunks, points_selector=models.FilterSelector(filter=where), wait=True)
    await client.delete(chunks, points_selector=models.PointIdsList(points=[1, 99]), wait=True)
    assert {record.id for record in (await client.scroll(chunks))[0]} == {2, 5, UUID_ID}


async def test_an_alias_switches_between_collections_at_once(client: AsyncQdrantClient, chunks: str) -> None:
    other, alias = await create(client), f"alias-{uuid4().hex[:8]}"
    await client.update_collection_aliases([create_alias(chunks, alias)])
    assert (await client.count(alias)).count == 6
    assert (await client.get_collection(alias)).points_count == 6
    switch: list[Any] = [
        models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
        create_alias(other, alias),
    ]
    await client.update_collection_aliases(switch)
    await client.upsert(alias, [SIX[0]], wait=True)
    assert (await client.count(other)).count == 1
    assert [entry.alias_name for entry in (await client.get_collection_aliases(other)).aliases] == [alias]
    assert (await client.get_collection_aliases(chunks)).aliases == []
    renamed = models.RenameAlias(old_alias_name=alias, new_alias_name=f"{alias}-2")
    await client.update_collection_aliases([models.RenameAliasOperation(rename_alias=renamed)])
    assert f"{alias}-2" in {entry.alias_name for entry in (await client.get_aliases()).aliases}
    await client.delete_collection(other)
    assert not await client.collection_exists(f"{alias}-2")


def create_alias(collection: str, alias: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))


async def test_collections_are_listed_described_and_deleted(client: AsyncQdrantClient, chunks: str) -> None:
    info = await client.get_collection(chunks)
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 6
    assert isinstance(info.config.params.vectors, dict)
    assert info.config.params.vectors["dense"].size == 4
    assert (info.config.params.sparse_vectors or {})["bm25"].modifier == models.Modifier.IDF
    assert info.payload_schema["tenant_id"].params is not None
    name = await create(client)
    assert {chunks, name} <= {entry.name for entry in (await client.get_collections()).collections}
    assert await client.delete_collection(name)
    assert not await client.collection_exists(name)


async def test_what_is_missing_is_404_and_what_exists_is_409(client: AsyncQdrantClient, chunks: str) -> None:
    assert await status(client.count("nobody")) == 404
    assert await status(client.get_collection("nobody")) == 404
    assert await status(client.upsert("nobody", [SIX[0]])) == 404
    assert await status(client.update_collection_aliases([create_alias("nobody", "some-alias")])) == 404
    params = models.VectorParams(size=4, distance=models.Distance.DOT)
    assert await status(client.create_collection(chunks, vectors_config=params)) == 409


async def status(call: Any) -> int | None:
    with pytest.raises(UnexpectedResponse) as failure:
        await call
    return failure.value.status_code


POINT = {"id": 1, "vector": {"dense": [1, 0, 0, 0]}}
BAD: dict[str, tuple[str, str, Any]] = {
    "no json": ("PUT", "points", b"{"),
    "not an object": ("POST", "points/query", b"[]"),
    "negative id": ("PUT", "points", {"points": [POINT | {"id": -1}]}),
    "id that is no uuid": ("POST", "points", {"ids": ["nobody"]}),
    "wrong dimension": ("PUT", "points", {"points": [POINT | {"vector": {"dense": [1.0]}}]}),
    "unknown vector": ("PUT", "points", {"points": [POINT | {"vector": {"other": [1, 0, 0, 0]}}]}),
    "text as vector": ("PUT", "points", {"points": [POINT | {"vector": {"dense": "near"}}]}),
    "number out of range": ("PUT", "points", b'{"points":[{"id":1,"vector":{"dense":[1e999,0,0,0]}}]}'),
    "uneven sparse": ("PUT", "points", {"points": [POINT | {"vector": {"bm25": {"indices": [1, 2], "values": [1]}}}]}),
    "repeated index": (
        "PUT",
        "points",
        {"points": [POINT | {"vector": {"bm25": {"indices": [1, 1], "values": [1, 2]}}}]},
    ),
    "payload is a list": ("PUT", "points", {"points": [POINT | {"payload": [1]}]}),
    "uneven batch": ("PUT", "points", {"batch": {"ids": [1, 2], "vectors": {"dense": [[1, 0, 0, 0]]}}}),
    "query of wrong dimension": ("POST", "points/query", {"query": [1.0], "using": "dense"}),
    "query of unknown vector": ("POST", "points/query", {"query": [1.0], "using": "other"}),
    "dense query of sparse vector": ("POST", "points/query", {"query": [1.0], "using": "bm25"}),
    "fusion of nothing": ("POST", "points/query", {"query": {"fusion": "dbsf"}}),
    "unknown fusion": ("POST", "points/query", {"query": {"fusion": "sum"}}),
    "limit zero": ("POST", "points/query", {"query": [1, 0, 0, 0], "using": "dense", "limit": 0}),
    "bad path": ("POST", "points/count", {"filter": {"must": [{"key": "a[", "match": {"value": 1}}]}}),
    "bad datetime": ("POST", "points/count", {"filter": {"must": [{"key": "at", "range": {"gt": "soon"}}]}}),
    "condition of nothing": ("POST", "points/count", {"filter": {"must": [{"key": "at"}]}}),
    "delete of nothing": ("POST", "points/delete", {}),
    "set payload of a missing point": ("POST", "points/payload", {"payload": {"a": 1}, "points": [999]}),
    "unknown index type": ("PUT", "index", {"field_name": "a", "field_schema": "colour"}),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_in_qdrants_own_words(url: str, chunks: str, name: str) -> None:
    method, path, body = BAD[name]
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.request(
            method, f"/collections/{chunks}/{path}", params={"wait": "true"}, headers=headers, **content
        )
        assert 400 <= answer.status_code < 500
        if answer.headers["content-type"] == "application/json":
            assert answer.json()["status"]["error"]
        count = await http.post(f"/collections/{chunks}/points/count", json={"exact": True})
    assert count.json()["result"]["count"] == 6


# From here on: what only our own server promises.


@pytest.fixture
def server() -> Iterator[Server]:
    with own_server() as server:
        yield server


async def connect(server: Server) -> AsyncQdrantClient:
    await server.ready()
    return AsyncQdrantClient(url=server.url, prefer_grpc=False, check_compatibility=False)


async def test_a_killed_server_has_lost_no_acknowledged_point(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    await client.update_collection_aliases([create_alias(name, "live")])
    for start in range(0, 1000, 100):
        rows = [point(i, [1, 0, 0, i], {i: 1.0}, tenant_id="a", n=i) for i in range(start, start + 100)]
        await client.upsert(name, rows, wait=True)
    await client.delete(name, points_selector=models.PointIdsList(points=[0]), wait=True)
    await client.close()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    client = await connect(server)
    assert (await client.count("live")).count == 999
    [record] = await client.retrieve("live", [999], with_vectors=True)
    assert (record.payload or {})["n"] == 999
    assert "tenant_id" in (await client.get_collection(name)).payload_schema
    await client.close()


async def test_refused_updates_never_keep_a_collection_from_opening(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    await client.upsert(name, SIX, wait=True)
    deep: Any = 1
    for _ in range(200):
        deep = {"a": deep}
    nested: Any = {"must": [{"key": "a", "match": {"value": 1}}]}
    for _ in range(200):
        nested = {"must": [nested]}
    hostile: list[tuple[str, str, Any]] = [
        ("PUT", "points", {"points": [POINT | {"payload": deep}]}),
        ("POST", "points/payload", {"payload": {"a": 1}, "points": [1], "key": ".".join("a" * 200)}),
        ("POST", "points/delete", {"filter": nested}),
        ("POST", "points/count", {"filter": nested}),
        *BAD.values(),
    ]
    async with httpx.AsyncClient(base_url=f"{server.url}/collections/{name}") as http:
        for method, path, body in hostile:
            content = {"content": body} if isinstance(body, bytes) else {"json": body}
            answer = await http.request(method, f"/{path}", **content)
            assert 400 <= answer.status_code < 500, (path, body)
    await client.close()
    server.stop(signal.SIGKILL)
    server.start()
    client = await connect(server)
    assert (await client.count(name)).count == 6
    await client.close()


async def test_the_deepest_update_accepted_can_be_read_back_after_a_crash(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    await client.upsert(name, SIX, wait=True)
    deep: Any = 1
    for _ in range(31):
        deep = {"a": deep}
    nested: Any = {"key": "page", "match": {"value": 4}}
    for _ in range(15):
        nested = {"must": [nested]}
    async with httpx.AsyncClient(base_url=f"{server.url}/collections/{name}") as http:
        update = {"payload": {"p": deep}, "points": [1], "key": ".".join("b" * 32)}
        assert (await http.post("/points/payload", json=update)).status_code == 200
        assert (await http.post("/points/delete", json={"filter": nested})).status_code == 200
    await client.close()
    server.stop(signal.SIGKILL)
    server.start()
    client = await connect(server)
    assert (await client.count(name)).count == 5
    assert await client.retrieve(name, [1])
    await client.close()


async def test_sigterm_ends_the_server_cleanly_and_keeps_everything(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    await client.upsert(name, SIX, wait=True)
    await client.close()
    assert server.stop() in (0, -signal.SIGTERM)
    server.start()
    client = await connect(server)
    assert (await client.count(name)).count == 6
    await client.close()


async def test_the_directory_has_one_owner_at_a_time(server: Server) -> None:
    await server.ready()
    second = Server(server.path, free_port())
    second.start()
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, 30) != 0


async def test_half_made_collections_are_swept_away_at_start(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    server.stop(signal.SIGKILL)
    os.mkdir(server.path / "collections" / "half")  # noqa: PTH102  # as a crash would leave it
    server.start()
    await server.ready()
    await client.close()
    client = await connect(server)
    assert [entry.name for entry in (await client.get_collections()).collections] == [name]
    assert not (server.path / "collections" / "half").exists()
    await client.close()


async def test_a_body_over_the_limit_is_refused_while_it_arrives(server: Server) -> None:
    await server.ready()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b" " * 1024 * 1024

    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.put("/collections/any/points", content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["..", ".", "a%2F..%2Fb", "%00", "a b", "x" * 256])
async def test_a_name_cannot_leave_the_directory(server: Server, name: str) -> None:
    await server.ready()
    body = {"vectors": {"size": 4, "distance": "Dot"}}
    async with httpx.AsyncClient() as http:
        answer = await http.request("PUT", f"{server.url}/collections/{name}", json=body)
    assert 400 <= answer.status_code < 500
    assert list((server.path / "collections").iterdir()) == []


async def test_options_it_cannot_honour_are_refused(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    assert await status(client.scroll(name, order_by="page")) == 400
    assert await status(client.query_points(name, query=models.SampleQuery(sample=models.Sample.RANDOM))) == 400
    await client.close()


async def test_idf_over_a_tenants_own_points_ignores_everyone_elses(server: Server) -> None:
    client = await connect(server)
    name = await create(client)
    await client.upsert(name, SIX[:4], wait=True)
    params = models.SearchParams(idf=models.IdfCorpusParams(corpus=tenant("a")))

    async def scores() -> list[float]:
        query = models.SparseVector(indices=[10, 20], values=[1.0, 1.0])
        options: dict[str, Any] = {"using": "bm25", "query_filter": tenant("a"), "search_params": params}
        return [hit.score for hit in (await client.query_points(name, query=query, **options)).points]

    alone = await scores()
    await client.upsert(name, SIX[4:], wait=True)
    assert len(alone) == 3
    assert await scores() == pytest.approx(alone)
    await client.close()
