"""One effect for each request through a running gateway, however often it arrives."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select, update

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import batches, conversations, files, idempotency, responses, tenants, vector_stores
from libs.local.running import Stack, running_stack
from services.gateway.auth import new_api_key, store_api_key

_PROGRAMS = ("broker", "cache", "vectors", "models", "chat", "conversations", "gateway")
_MODEL = "docent-extractive"
_RETRY = {"x-stainless-retry-count": "1"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack"), only=_PROGRAMS) as running:
        yield running


@pytest.fixture(scope="module")
def records(stack: Stack) -> Iterator[Database]:
    with closing(Database(stack.environment("gateway")["DATABASE_URL"])) as database:
        yield database


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient(base_url=f"{stack.url}/v1", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def foreign_key(stack: Stack, records: Database) -> str:
    """The API key of another tenant."""
    keyring = Keyring.parse(Path(stack.environment("gateway")["KEYRING_FILE"]).read_text())
    key_id, key = new_api_key()
    mac = keyring.mac(keys.API_KEYS_PURPOSE)
    limits: dict[str, Any] = {"requests_per_minute": 6000, "parallel_streams": 8}
    records.write_now(lambda c: c.execute(insert(tenants).values(id="tenant_b", name="b", created_at=epoch_now())))
    records.write_now(lambda c: store_api_key(c, mac, tenant_id="tenant_b", key_id=key_id, key=key, name="b", **limits))
    return key


def _count(records: Database, table: Any) -> int:
    number: int = records.read_now(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())
    return number


def _code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def _until_answered(client: httpx.AsyncClient, path: str, key: str, **content: Any) -> httpx.Response:
    while True:
        response = await client.post(path, headers={"idempotency-key": key}, **content)
        if response.status_code != 409:
            return response
        assert _code(response) == (409, "idempotency_in_progress")
        assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("1", "true")
        await asyncio.sleep(0.2)


def _form(text: str = "a line\n", purpose: str = "assistants") -> dict[str, Any]:
    return {"files": {"file": ("a.txt", text.encode())}, "data": {"purpose": purpose}}


async def _batch_body(client: httpx.AsyncClient) -> dict[str, Any]:
    uploaded = await client.post("/files", **_form("{}\n", "batch"))
    endpoint = "/v1/chat/completions"
    return {"input_file_id": uploaded.json()["id"], "endpoint": endpoint, "completion_window": "24h"}


@pytest.mark.parametrize("path", ["/files", "/vector_stores", "/batches", "/conversations", "/responses"])
async def test_fifty_at_once_with_one_key_are_one(client: httpx.AsyncClient, records: Database, path: str) -> None:
    contents: Mapping[str, Any] = {
        "/files": _form(),
        "/vector_stores": {"json": {"name": "one"}},
        "/batches": {"json": await _batch_body(client) if path == "/batches" else None},
        "/conversations": {"json": {"items": [{"role": "user", "content": "hello"}]}},
        "/responses": {"json": {"model": _MODEL, "input": "hello"}},
    }
    tables = dict(zip(contents, (files, vector_stores, batches, conversations, responses), strict=True))
    before = _count(records, tables[path])
    key = f"fifty{path}"
    replies = await asyncio.gather(*(_until_answered(client, path, key, **contents[path]) for _ in range(50)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert len({reply.headers["content-type"] for reply in replies}) == 1
    assert [reply.headers.get("idempotent-replayed") for reply in replies].count(None) == 1
    assert _count(records, tables[path]) - before == 1


async def test_a_key_belongs_to_its_first_request(client: httpx.AsyncClient) -> None:
    first = await client.post("/vector_stores", headers={"idempotency-key": "mine"}, json={"name": "a"})
    assert first.status_code == 200
    other_body = await client.post("/vector_stores", headers={"idempotency-key": "mine"}, json={"name": "b"})
    other_path = await client.post("/conversations", headers={"idempotency-key": "mine"}, json={"name": "a"})
    other_file = await client.post("/files", headers={"idempotency-key": "mine"}, **_form())
    for response in (other_body, other_path, other_file):
        assert _code(response) == (422, "idempotency_key_reused")
        assert response.headers["x-should-retry"] == "false"


async def test_another_tenant_has_the_key_for_itself(client: httpx.AsyncClient, foreign_key: str) -> None:
    key, body = {"idempotency-key": "shared"}, {"name": "a"}
    ours = await client.post("/vector_stores", headers=key, json=body)
    theirs = await client.post("/vector_stores", headers={**key, "authorization": f"Bearer {foreign_key}"}, json=body)
    assert theirs.status_code == 200
    assert "idempotent-replayed" not in theirs.headers
    assert ours.json()["id"] != theirs.json()["id"]


async def test_errors_are_replayed_too(client: httpx.AsyncClient) -> None:
    path, key = "/vector_stores/vs_none/files", {"idempotency-key": "error"}
    first, second = [await client.post(path, headers=key, json={"file_id": "file-none"}) for _ in range(2)]
    assert _code(first) == (404, "not_found")
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/files", "/vector_stores", "/chat/completions"])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, headers={"idempotency-key": "k" * 256}, json={})
    assert _code(response) == (400, "invalid_value")
    assert response.json()["error"]["param"] == "Idempotency-Key"


async def test_a_key_without_an_api_key_is_not_taken(client: httpx.AsyncClient) -> None:
    key = {"idempotency-key": "unknown"}
    refused = await client.post("/vector_stores", headers={**key, "authorization": "Bearer none"}, json={})
    assert refused.status_code == 401
    accepted = await client.post("/vector_stores", headers=key, json={})
    assert accepted.status_code == 200
    assert "idempotent-replayed" not in accepted.headers


@pytest.mark.parametrize("path", ["/files", "/vector_stores", "/conversations", "/responses"])
async def test_an_sdk_retry_finds_what_the_first_try_made(client: httpx.AsyncClient, path: str) -> None:
    content = {
        "/files": _form("retried\n"),
        "/vector_stores": {"json": {"name": "retried"}},
        "/conversations": {"json": {"metadata": {"topic": "retried"}}},
        "/responses": {"json": {"model": _MODEL, "input": "retried"}},
    }[path]
    unknown = await client.post(path, headers=_RETRY, **content)
    first = await client.post(path, headers={"x-stainless-retry-count": "0"}, **content)
    again = await client.post(path, headers=_RETRY, **content)
    assert {unknown.status_code, first.status_code, again.status_code} == {200}
    assert again.json() == first.json()
    assert unknown.json()["id"] != first.json()["id"]


async def test_an_sdk_retry_of_a_file_batch_and_of_items_adds_nothing(client: httpx.AsyncClient) -> None:
    store = (await client.post("/vector_stores", json={})).json()["id"]
    conversation = (await client.post("/conversations", json={})).json()["id"]
    uploaded = (await client.post("/files", **_form("batched\n"))).json()["id"]
    requests: list[tuple[str, Any]] = [
        (f"/vector_stores/{store}/file_batches", {"file_ids": [uploaded]}),
        (f"/conversations/{conversation}/items", {"items": [{"role": "user", "content": "hello"}]}),
    ]
    for path, body in requests:
        first, again = [await client.post(path, headers=headers, json=body) for headers in ({}, _RETRY)]
        assert first.status_code == 200
        assert again.json() == first.json()
    listed = await client.get(f"/conversations/{conversation}/items")
    assert len(listed.json()["data"]) == 1


async def test_fifty_equal_requests_on_purpose_are_fifty(client: httpx.AsyncClient, records: Database) -> None:
    before = _count(records, vector_stores)
    replies = await asyncio.gather(*(client.post("/vector_stores", json={"name": "same"}) for _ in range(50)))
    assert len({reply.json()["id"] for reply in replies}) == 50
    assert _count(records, vector_stores) - before == 50


async def test_stateless_requests_leave_no_row_without_a_key(client: httpx.AsyncClient, records: Database) -> None:
    store = (await client.post("/vector_stores", json={})).json()["id"]
    before = _count(records, idempotency)
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "hello"}]}
    assert (await client.post("/chat/completions", headers=_RETRY, json=body)).status_code == 200
    # Nothing was ever ingested in this stack: whether the search finds anything is not asked here.
    await client.post(f"/vector_stores/{store}/search", headers=_RETRY, json={"query": "hello"})
    assert _count(records, idempotency) == before
    first, again = [
        await client.post("/chat/completions", headers={"idempotency-key": "chat"}, json=body) for _ in range(2)
    ]
    assert first.content == again.content


async def test_a_stream_with_a_key_is_replayed_from_its_kept_events(client: httpx.AsyncClient) -> None:
    body = {"model": _MODEL, "input": "hello", "stream": True}
    first, again = [await client.post("/responses", headers={"idempotency-key": "s"}, json=body) for _ in range(2)]
    assert first.headers["content-type"] == again.headers["content-type"]
    assert again.headers["idempotent-replayed"] == "true"
    assert again.text == first.text
    assert "response.completed" in again.text
    unkept = {"model": _MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    headers = {"idempotency-key": "t", "cache-control": "no-store"}
    codes = [await client.post("/chat/completions", headers=headers, json=unkept) for _ in range(2)]
    assert codes[0].status_code == 200
    assert _code(codes[1]) == (422, "idempotency_key_reused")


async def test_a_client_that_left_in_the_middle_can_ask_again(client: httpx.AsyncClient, records: Database) -> None:
    before = _count(records, responses)
    body = {"model": _MODEL, "input": "impatient"}
    for timeout_seconds in (0.01, 0.02, 0.04):
        with suppress(httpx.TimeoutException):
            await client.post("/responses", headers={"idempotency-key": "left"}, json=body, timeout=timeout_seconds)
    answered = await _until_answered(client, "/responses", "left", json=body)
    assert answered.json()["status"] == "completed"
    assert _count(records, responses) - before == 1


async def test_a_reply_lost_with_its_gateway_is_made_again_from_the_record(
    client: httpx.AsyncClient, records: Database, stack: Stack
) -> None:
    contents: dict[str, Any] = {
        "/files": _form("killed\n"),
        "/vector_stores": {"json": {"name": "killed"}},
        "/conversations": {"json": {"metadata": {"topic": "killed"}}},
        "/responses": {"json": {"model": _MODEL, "input": "killed"}},
        "/batches": {"json": await _batch_body(client)},
    }
    tables = (files, vector_stores, conversations, responses, batches)
    made = {path: await _until_answered(client, path, f"killed{path}", **each) for path, each in contents.items()}
    counted = [_count(records, table) for table in tables]
    await asyncio.to_thread(stack.kill, "gateway")
    # As a kill between the commit of the records and the keeping of the replies leaves the rows, the leases run out.
    lost: dict[str, Any] = {"status": None, "sealed_reply": None, "lease_expires_at": 0.0}
    records.write_now(lambda c: c.execute(update(idempotency).where(idempotency.c.key.like("killed%")).values(**lost)))
    await asyncio.to_thread(stack.wait_ready, "gateway")
    for path, each in contents.items():
        again = await _until_answered(client, path, f"killed{path}", **each)
        assert again.status_code == 200
        assert again.json()["id"] == made[path].json()["id"]
        assert "idempotent-replayed" not in again.headers
    assert [_count(records, table) for table in tables] == counted
