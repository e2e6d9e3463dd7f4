"""A second tenant meets every route with the first one's ids: each is the 404 of an id that does not exist."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import insert

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.local.running import Stack
from services.gateway.auth import new_api_key, store_api_key
from services.gateway.main import create_app
from services.gateway.openapi import document
from services.gateway.settings import GatewaySettings
from tests.e2e.conftest import MODEL

# Bodies by which a request is right but for its ids.
BODIES: dict[str, Any] = {
    "/v1/vector_stores/{store_id}": {"name": "mine"},
    "/v1/vector_stores/{store_id}/search": {"query": "secret"},
    "/v1/vector_stores/{store_id}/reindex": {},
    "/v1/vector_stores/{store_id}/files": {"file_id": "{file_id}"},
    "/v1/vector_stores/{store_id}/files/{file_id}": {"attributes": {"a": "b"}},
    "/v1/vector_stores/{store_id}/file_batches": {"file_ids": ["{file_id}"]},
    "/v1/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_1"]},
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/fork": {"item_id": "{item_id}"},
    "/v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "x"}]},
}
LISTS = (
    "/v1/files",
    "/v1/vector_stores",
    "/v1/batches",
    "/v1/jobs",
    "/v1/conversations",
    "/v1/chat/completions",
)


def routes() -> list[tuple[str, str]]:
    paths = document(create_app(GatewaySettings()))["paths"]
    return [
        (method.upper(), path)
        for path, methods in sorted(paths.items())
        for method in sorted(methods)
        if "{" in path and "{model}" not in path
    ]


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> Iterator[httpx.Client]:
    """A client with the key of another tenant."""
    environment = stack.environment("gateway")
    keyring = Keyring.parse((stack.state_dir / "keyring.json").read_text())
    database = Database(environment["DATABASE_URL"])
    key_id, key = new_api_key()

    def create(connection: Any) -> None:
        connection.execute(insert(tenants).values(id="tenant_stranger", name="Stranger", created_at=epoch_now()))
        store_api_key(
            connection,
            keyring.mac(keys.API_KEYS_PURPOSE),
            tenant_id="tenant_stranger",
            key_id=key_id,
            key=key,
            name="stranger",
            requests_per_minute=10_000,
            parallel_streams=10,
        )

    database.write_now(create)
    database.close()
    with httpx.Client(base_url=stack.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ids(stack: Stack) -> dict[str, str]:
    """One object of each kind, all the first tenant's."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, timeout=60) as client:
        store = client.vector_stores.create(name="ours")
        file = client.files.create(file=("a.txt", b"Our secret is the number 7."), purpose="assistants")
        file_batch = client.vector_stores.file_batches.create_and_poll(
            store.id, file_ids=[file.id], poll_interval_ms=100
        )
        conversation = client.conversations.create(items=[{"role": "user", "content": "ours"}])
        (item,) = client.conversations.items.list(conversation.id).data
        response = client.responses.create(model=MODEL, input="ours")
        question: Any = [{"role": "user", "content": "ours"}]
        completion = client.chat.completions.create(model=MODEL, messages=question, store=True)
        line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "x", "input": "y"}}
        upload = client.uploads.create(bytes=3, filename="a.txt", mime_type="text/plain", purpose="assistants")
        batch_file = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=batch_file.id, endpoint="/v1/embeddings", completion_window="24h")
        jobs = client.get("/jobs", cast_to=httpx.Response).json()["data"]
    return {
        "store_id": store.id,
        "file_id": file.id,
        "file_batch_id": file_batch.id,
        "conversation_id": conversation.id,
        "item_id": item.id or "",
        "response_id": response.id,
        "completion_id": completion.id,
        "batch_id": batch.id,
        "upload_id": upload.id,
        "job_id": jobs[0]["id"],
    }


@pytest.mark.parametrize(("method", "path"), routes(), ids=lambda part: part)
def test_foreign_is_the_same_as_missing(stranger: httpx.Client, ids: dict[str, str], method: str, path: str) -> None:
    missing = {name: f"{value[:-8]}00000000" for name, value in ids.items()}
    foreign_reply = ask(stranger, method, path, ids)
    missing_reply = ask(stranger, method, path, missing)
    assert foreign_reply.status_code == 404
    assert foreign_reply.json()["error"]["code"] == "not_found"
    assert missing_reply.status_code == 404
    assert without(foreign_reply.text, ids) == without(missing_reply.text, missing)


def ask(client: httpx.Client, method: str, path: str, names: dict[str, str]) -> httpx.Response:
    body = json.loads(filled(json.dumps(BODIES[path]), names)) if method == "POST" and path in BODIES else None
    return client.request(method, filled(path, names), json=body)


def filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


def without(text: str, names: dict[str, str]) -> str:
    for value in names.values():
        text = text.replace(value, "…")
    return text


def test_foreign_ids_in_bodies(stranger: httpx.Client, ids: dict[str, str]) -> None:
    question = {"model": MODEL, "messages": [{"role": "user", "content": "What is our secret number?"}]}
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {**question, "vector_store_ids": [ids["store_id"]]}),
        ("/v1/responses", {"model": MODEL, "input": "x", "conversation": ids["conversation_id"]}),
        ("/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": ids["response_id"]}),
        ("/v1/responses/input_tokens", {"input": "x", "conversation": ids["conversation_id"]}),
        ("/v1/responses/input_tokens", {"input": "x", "previous_response_id": ids["response_id"]}),
        ("/v1/responses/compact", {"model": MODEL, "previous_response_id": ids["response_id"]}),
        (
            "/v1/responses",
            {
                "model": MODEL,
                "input": "x",
                "tools": [{"type": "file_search", "vector_store_ids": [ids["store_id"]]}],
            },
        ),
        (
            "/v1/batches",
            {"input_file_id": ids["file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"},
        ),
        ("/v1/vector_stores", {"file_ids": [ids["file_id"]]}),
    ]
    for path, body in attempts:
        reply = stranger.post(path, json=body)
        assert reply.status_code == 404, (path, body, reply.text)
        assert reply.json()["error"]["code"] == "not_found"


def test_lists_are_empty(stranger: httpx.Client, ids: dict[str, str]) -> None:
    assert ids
    for path in LISTS:
        assert stranger.get(path).json()["data"] == []


def test_a_foreign_file_cannot_be_replaced(stranger: httpx.Client, ids: dict[str, str]) -> None:
    """Last, for the stranger has objects of its own from here on."""
    store = stranger.post("/v1/vector_stores", json={}).json()["id"]
    form = {"purpose": "assistants"}
    file = stranger.post("/v1/files", files={"file": ("b.txt", b"Theirs.")}, data=form).json()["id"]
    reply = stranger.post(f"/v1/vector_stores/{store}/files", json={"file_id": file, "replaces": ids["file_id"]})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "replaces")
