"""Files and vector stores through the official SDK, against a whole stack: upload, attach, search, delete."""

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import VectorStore
from sqlalchemy import insert

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.local.ports import free_port
from libs.local.running import Stack, running_stack
from libs.local.stack import ROOT
from services.gateway.auth import new_api_key, store_api_key

_PROGRAMS = ("broker", "cache", "vectors", "models", "chat", "ingest", "gateway")
_LIMIT_BYTES = 2 * 1024 * 1024
_HARBOUR = "# Harbour rules\n\nThe harbour master opens the northern gate at six in the morning.\n"
_PENSION = "# Pensions\n\nStaff may draw a pension from the age of sixty-three.\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack"), only=_PROGRAMS) as running:
        yield running


@pytest.fixture(scope="module")
def small_gateway(stack: Stack) -> Iterator[str]:
    """The URL of a second gateway of the stack, which takes small files only."""
    port = free_port()
    environment = stack.environment("gateway") | {"GATEWAY_PORT": str(port), "MAX_FILE_BYTES": str(_LIMIT_BYTES)}
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "services.gateway.main"], cwd=ROOT, env=environment) as process:
        try:
            _eventually(lambda: _is_alive(url))
            yield url
        finally:
            process.terminate()


def _is_alive(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz").is_success
    return False


def _client(stack: Stack, api_key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key=api_key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    yield from _client(stack, stack.api_key)


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> Iterator[OpenAI]:
    """The client of another tenant."""
    environment = stack.environment("gateway")
    keyring = Keyring.parse(Path(environment["KEYRING_FILE"]).read_text())
    key_id, key = new_api_key()
    with closing(Database(environment["DATABASE_URL"])) as database:
        database.write_now(
            lambda connection: connection.execute(
                insert(tenants).values(id="tenant_b", name="b", created_at=epoch_now())
            )
        )
        database.write_now(
            lambda connection: store_api_key(
                connection,
                keyring.mac(keys.API_KEYS_PURPOSE),
                tenant_id="tenant_b",
                key_id=key_id,
                key=key,
                name="b",
                requests_per_minute=6000,
                parallel_streams=8,
            )
        )
    yield from _client(stack, key)


def _upload(client: OpenAI, text: str = _HARBOUR, name: str = "harbour.md") -> str:
    return client.files.create(file=(name, text.encode()), purpose="assistants").id


def _searchable(client: OpenAI, **texts: str) -> tuple[VectorStore, dict[str, str]]:
    """A vector store with these files, all of them searchable."""
    store = client.vector_stores.create(name="library")
    ids = {name: _upload(client, text, f"{name}.md") for name, text in texts.items()}
    batch = client.vector_stores.file_batches.create_and_poll(
        store.id, file_ids=list(ids.values()), poll_interval_ms=100
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", len(ids))
    return client.vector_stores.retrieve(store.id), ids


def _found(client: OpenAI, store_id: str, query: str = "When does the gate open?", **options: Any) -> list[str]:
    return [result.file_id for result in client.vector_stores.search(store_id, query=query, **options).data]


def _eventually(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < give_up_at, "it did not come true in time"
        time.sleep(0.1)


def _blob_files(stack: Stack) -> list[Path]:
    return [path for path in (stack.state_dir / "blobs").rglob("*") if path.is_file()]


def _blobs(stack: Stack) -> int:
    return len(_blob_files(stack))


def _refused(call: Callable[[], object]) -> tuple[int, str | None, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value.status_code, caught.value.code, caught.value.param


def test_a_file_comes_back_byte_for_byte_and_lies_sealed_on_disk(client: OpenAI, stack: Stack) -> None:
    content = b"secret canary " * 40_000
    made = client.files.create(
        file=("../../plan\u202e.txt", BytesIO(content)),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(content),
        "plan.txt",
        "user_data",
        "processed",
    )
    assert made.expires_at is not None
    assert abs(made.expires_at - made.created_at - 3600) <= 1
    assert client.files.retrieve(made.id) == made
    assert hashlib.sha256(client.files.content(made.id).content).digest() == hashlib.sha256(content).digest()
    assert not any(b"secret canary" in path.read_bytes() for path in _blob_files(stack))


def test_files_are_paged_by_the_sdk_and_deleted_with_their_bytes(client: OpenAI, stack: Stack) -> None:
    before = _blobs(stack)
    ids = [_upload(client, f"number {number}") for number in range(3)]
    assert [file.id for file in client.files.list(limit=1)][:3] == ids[::-1]
    for file_id in ids:
        assert client.files.delete(file_id).deleted
    assert _refused(lambda: client.files.retrieve(ids[0]))[:2] == (404, "not_found")
    _eventually(lambda: _blobs(stack) == before)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"files": {"file": ("a.txt", b"")}, "data": {"purpose": "assistants"}}, (400, "empty_file", "file")),
        ({"files": {"file": ("a.txt", b"x")}}, (400, "missing_required_parameter", "purpose")),
        ({"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "theft"}}, (400, "invalid_value", "purpose")),
        (
            {"files": {"other": ("a.txt", b"x")}, "data": {"purpose": "batch"}},
            (400, "missing_required_parameter", "file"),
        ),
        (
            {"files": {"file": ("a.txt", b"x" * (_LIMIT_BYTES + 1))}, "data": {"purpose": "batch"}},
            (413, "request_too_large", None),
        ),
        (
            {"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "batch", "expires_after[seconds]": "1"}},
            (400, "missing_required_parameter", "expires_after.anchor"),
        ),
        ({"json": {"purpose": "batch"}}, (415, "unsupported_media_type", None)),
        (
            {"content": b"--b\r\nno", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            (400, "invalid_value", None),
        ),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(
    client: OpenAI, stack: Stack, small_gateway: str, form: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    before = _blobs(stack), len(list(client.files.list()))
    headers = {"authorization": f"Bearer {stack.api_key}"} | form.get("headers", {})
    reply = httpx.post(f"{small_gateway}/v1/files", timeout=30, **(form | {"headers": headers}))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == expected
    assert (_blobs(stack), len(list(client.files.list()))) == before


def test_a_file_of_just_the_limit_whose_purpose_comes_last_is_taken(
    client: OpenAI, stack: Stack, small_gateway: str
) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n' + b"x" * _LIMIT_BYTES
    body += b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    headers = {"authorization": f"Bearer {stack.api_key}", "content-type": "multipart/form-data; boundary=b"}
    reply = httpx.post(f"{small_gateway}/v1/files", headers=headers, content=body, timeout=30)
    assert (reply.status_code, reply.json()["bytes"]) == (200, _LIMIT_BYTES)
    client.files.delete(reply.json()["id"])


def test_a_client_that_leaves_in_the_middle_leaves_nothing(stack: Stack) -> None:
    before = set(_blob_files(stack))
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: docent\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Authorization: Bearer {stack.api_key}\r\nContent-Length: 50000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    )
    address = urlsplit(stack.url)
    with socket.create_connection((str(address.hostname), address.port)) as connection:
        connection.sendall(head.encode() + b"x" * 12_000_000)
        _eventually(lambda: bool(set(_blob_files(stack)) - before))
    _eventually(lambda: set(_blob_files(stack)) <= before)


def test_an_attached_file_is_found_until_it_is_detached(client: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR, pensions=_PENSION)
    assert (store.status, store.file_counts.completed, store.name) == ("completed", 2, "library")
    assert store.usage_bytes > 0
    page = client.vector_stores.search(store.id, query=["When does the gate open?"], max_num_results=1)
    assert [(result.file_id, result.filename) for result in page.data] == [(ids["harbour"], "harbour.md")]
    assert "northern gate at six" in page.data[0].content[0].text
    assert client.vector_stores.files.delete(ids["harbour"], vector_store_id=store.id).deleted
    assert ids["harbour"] not in _found(client, store.id)
    assert client.files.retrieve(ids["harbour"]).id == ids["harbour"]


def test_a_deleted_file_answers_no_longer_anywhere(client: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR)
    assert _found(client, store.id) == [ids["harbour"]]
    client.files.delete(ids["harbour"])
    assert _found(client, store.id) == []
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0


def test_filters_follow_the_attributes_of_a_file(client: OpenAI) -> None:
    store = client.vector_stores.create()
    file_id = _upload(client)
    attached = client.vector_stores.files.create_and_poll(
        file_id, vector_store_id=store.id, attributes={"year": 2024, "draft": False}, poll_interval_ms=100
    )
    assert (attached.status, attached.attributes) == ("completed", {"year": 2024, "draft": False})
    newer: Any = {"type": "gte", "key": "year", "value": 2025}
    assert _found(client, store.id, filters=newer) == []
    client.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"year": 2025})
    _eventually(lambda: _found(client, store.id, filters=newer) == [file_id])


def test_attaching_again_keeps_one_copy_and_other_chunking_replaces_it(client: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR)
    again = client.vector_stores.files.create_and_poll(
        ids["harbour"],
        vector_store_id=store.id,
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}},
        poll_interval_ms=100,
    )
    assert (again.status, again.chunking_strategy and again.chunking_strategy.type) == ("completed", "static")
    assert _found(client, store.id) == [ids["harbour"]]


def test_a_file_that_cannot_be_read_fails_with_its_reason(client: OpenAI) -> None:
    store = client.vector_stores.create()
    file_id = client.files.create(file=("tool.exe", b"MZ\x90\x00\x03" + bytes(200)), purpose="assistants").id
    attached = client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=100)
    assert attached.status == "failed"
    assert attached.last_error is not None
    assert attached.last_error.code == "unsupported_file"
    assert "program" in attached.last_error.message
    failed = client.vector_stores.files.list(store.id, filter="failed")
    assert [each.id for each in failed] == [file_id]


def test_vector_stores_are_listed_changed_and_deleted(client: OpenAI) -> None:
    store = client.vector_stores.create(metadata={"k": "v"}, expires_after={"anchor": "last_active_at", "days": 2})
    assert (store.name, store.metadata, store.expires_after and store.expires_after.days) == ("", {"k": "v"}, 2)
    changed = client.vector_stores.update(store.id, name="new", expires_after=None)
    assert (changed.name, changed.metadata, changed.expires_at) == ("new", {"k": "v"}, None)
    assert next(iter(client.vector_stores.list(limit=1))).id == store.id
    assert client.vector_stores.delete(store.id).deleted
    assert _refused(lambda: client.vector_stores.retrieve(store.id))[:2] == (404, "not_found")
    assert _refused(lambda: _found(client, store.id))[:2] == (404, "not_found")


def test_a_new_version_answers_instead_of_the_file_it_replaces(client: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR)
    newer = client.files.create(
        file=("harbour.md", b"The harbour opens its northern gate at noon."), purpose="assistants"
    )
    files = client.vector_stores.files
    for replaces, expected in (("file-none", (404, "not_found")), (newer.id, (400, "invalid_value"))):
        create = partial(files.create, store.id, file_id=newer.id, extra_body={"replaces": replaces})
        assert _refused(create) == (*expected, "replaces")
    files.create(store.id, file_id=newer.id, extra_body={"replaces": ids["harbour"]})
    _eventually(lambda: _found(client, store.id) == [newer.id])
    assert client.vector_stores.retrieve(store.id).file_counts.total == 1


def test_a_store_is_rebuilt_by_a_job_and_answers_as_before(client: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR)
    unknown = partial(client.post, f"/vector_stores/{store.id}/reindex", body={"model": "none"}, cast_to=httpx.Response)
    assert _refused(unknown) == (400, "invalid_value", "model")
    begun = client.post(f"/vector_stores/{store.id}/reindex", body={}, cast_to=httpx.Response)
    job = begun.json()
    assert (begun.status_code, job["type"], job["resource_id"]) == (202, "ingest.reindex_store", store.id)

    def done() -> bool:
        return bool(client.get(f"/jobs/{job['id']}", cast_to=httpx.Response).json()["state"] == "succeeded")

    _eventually(done)
    assert _found(client, store.id) == [ids["harbour"]]
    content = client.vector_stores.files.content(ids["harbour"], vector_store_id=store.id)
    assert "northern gate" in str(content.data[0].text)


def test_bad_requests_name_the_field(client: OpenAI) -> None:
    store = client.vector_stores.create()
    uneven: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51}}
    files, stores = client.vector_stores.files, client.vector_stores
    assert _refused(lambda: files.create(store.id, file_id="file-none"))[:2] == (404, "not_found")
    assert _refused(lambda: stores.create(chunking_strategy=uneven))[:2] == (400, "invalid_value")
    assert _refused(lambda: stores.search(store.id, query="q", max_num_results=51)) == (
        400, "invalid_value", "max_num_results",
    )  # fmt: skip
    assert _refused(lambda: stores.list(after="vs_none")) == (400, "invalid_cursor", "after")
    assert _refused(lambda: files.list(store.id, limit=-1))[:2] == (400, "invalid_value")


def test_another_tenant_sees_nothing_of_it(client: OpenAI, stranger: OpenAI) -> None:
    store, ids = _searchable(client, harbour=_HARBOUR)
    file_id = ids["harbour"]
    mine = stranger.vector_stores.create()
    attempts: list[Callable[[], object]] = [
        lambda: stranger.files.retrieve(file_id),
        lambda: stranger.files.content(file_id),
        lambda: stranger.files.delete(file_id),
        lambda: stranger.vector_stores.retrieve(store.id),
        lambda: stranger.vector_stores.update(store.id, name="x"),
        lambda: stranger.vector_stores.delete(store.id),
        lambda: stranger.vector_stores.search(store.id, query="gate"),
        lambda: stranger.vector_stores.files.list(store.id),
        lambda: stranger.vector_stores.files.retrieve(file_id, vector_store_id=store.id),
        lambda: stranger.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={}),
        lambda: stranger.vector_stores.files.delete(file_id, vector_store_id=store.id),
        lambda: stranger.vector_stores.files.create(mine.id, file_id=file_id),
        lambda: stranger.vector_stores.file_batches.create(mine.id, file_ids=[file_id]),
        lambda: stranger.vector_stores.create(file_ids=[file_id]),
    ]
    assert {_refused(attempt)[:2] for attempt in attempts} == {(404, "not_found")}
    assert file_id not in [file.id for file in stranger.files.list()]
    assert [each.id for each in stranger.vector_stores.list()] == [mine.id]
    assert _found(client, store.id) == [file_id]


def test_a_job_is_shown_and_a_failed_one_can_be_requeued(client: OpenAI, stranger: OpenAI) -> None:
    store = client.vector_stores.create()
    good, bad = _upload(client), client.files.create(file=("a.exe", b"MZ\x90" + bytes(99)), purpose="assistants").id
    for file_id in (good, bad):
        client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=100)

    def job_of(file_id: str) -> dict[str, Any]:
        page: Any = client.get(f"/jobs?resource_id={file_id}", cast_to=object)
        found: Any = client.get(f"/jobs/{page['data'][0]['id']}", cast_to=object)
        return dict(found)

    def post(path: str) -> object:
        return client.post(path, cast_to=object)

    done, failed = job_of(good), job_of(bad)
    assert (done["type"], done["state"], done["progress"]) == ("ingest.file", "succeeded", {"done": 1, "total": 1})
    assert (failed["state"], failed["error"]["code"]) == ("failed", "unsupported_file")
    assert _refused(lambda: post(f"/jobs/{done['id']}/cancel"))[:2] == (400, "job_not_cancellable")
    assert _refused(lambda: post(f"/jobs/{done['id']}/requeue"))[:2] == (400, "job_not_requeueable")
    assert _refused(lambda: stranger.get(f"/jobs/{done['id']}", cast_to=object))[:2] == (404, "not_found")
    post(f"/jobs/{failed['id']}/requeue")
    _eventually(lambda: job_of(bad)["attempts"] == 2 and job_of(bad)["state"] == "failed")
    assert client.vector_stores.files.retrieve(bad, vector_store_id=store.id).status == "failed"


def test_what_waits_can_be_cancelled_and_then_never_answers(client: OpenAI, stack: Stack) -> None:
    store = client.vector_stores.create()
    file_id = _upload(client)
    stack.stop("ingest")
    try:
        batch = client.vector_stores.file_batches.create(store.id, files=[{"file_id": file_id}])
        assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 1)
        cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
        assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 1)
    finally:
        stack.start("ingest")
    stack.wait_ready("ingest")
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="cancelled")
    assert [each.id for each in listed] == [file_id]
    assert _found(client, store.id) == []
