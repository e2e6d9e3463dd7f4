"""Importing files from URLs, through the official SDK, against a whole stack and a server that is allowed."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from libs.local.running import Stack, running_stack

_TEXT = b"The ferry to the island leaves at eight.\n"
_LARGE = 3_000_000


class _Site(BaseHTTPRequestHandler):
    """A few pages; `begun` is set when the slow one is asked, which goes on when `go_on` is."""

    begun, go_on = threading.Event(), threading.Event()
    busy = 1

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/docs/ferry%20times.txt":
            self._send(200, _TEXT)
        elif path == "/large":
            self._send(200, b"x" * _LARGE)
        elif path == "/empty":
            self._send(200, b"")
        elif path == "/busy.txt" and type(self).busy:
            type(self).busy -= 1
            self._send(503, b"")
        elif path == "/busy.txt":
            self._send(200, _TEXT)
        elif path == "/slow.txt":
            self._slow()
        elif path == "/moved":
            self._send(302, b"", location="/docs/ferry%20times.txt")
        else:
            self._send(404, b"")

    def _slow(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "20")
        self.end_headers()
        self.wfile.write(b"0123456789")
        type(self).begun.set()
        type(self).go_on.wait(60)
        self.wfile.write(b"0123456789")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Stack]:
    only = ("broker", "cache", "vectors", "models", "ingest", "gateway")
    environ = {"IMPORT_ALLOWED_HOSTS": site.removeprefix("http://"), "IMPORT_MAX_BYTES": str(_LARGE - 1)}
    with running_stack(tmp_path_factory.mktemp("stack"), only=only, environ=environ) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, max_retries=0, timeout=30) as client:
        yield client


def _begin(client: OpenAI, url: str, **more: Any) -> dict[str, Any]:
    reply = client.post("/files/import", cast_to=httpx.Response, body={"url": url, "purpose": "assistants"} | more)
    assert reply.status_code == 202
    job: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def _job(client: OpenAI, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/jobs/{job_id}", cast_to=httpx.Response).json()
    return job


def _ended(client: OpenAI, job_id: str) -> dict[str, Any]:
    give_up_at = time.monotonic() + 60
    while (job := _job(client, job_id))["state"] in ("queued", "running"):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    return job


def _blobs(stack: Stack) -> int:
    return sum(path.is_file() for path in (stack.state_dir / "blobs").rglob("*"))


def test_a_file_comes_from_a_url_and_can_be_searched(client: OpenAI, site: str) -> None:
    begun = _begin(client, f"{site}/docs/ferry%20times.txt?signature=secret")
    job = _ended(client, begun["id"])
    assert (job["type"], job["state"]) == ("ingest.import_file", "succeeded")
    assert job["progress"]["total"] == len(_TEXT)
    file = client.files.retrieve(job["resource_id"])
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "ferry times.txt", len(_TEXT), "assistants", "processed",
    )  # fmt: skip
    assert client.files.content(file.id).read() == _TEXT
    store = client.vector_stores.create()
    attached = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=100)
    assert attached.status == "completed"


def test_a_name_may_be_given_and_a_busy_server_is_asked_again(client: OpenAI, site: str) -> None:
    job = _ended(client, _begin(client, f"{site}/busy.txt", filename="../../other.txt")["id"])
    assert (job["state"], job["failures"]) == ("succeeded", 1)
    assert client.files.retrieve(job["resource_id"]).filename == "other.txt"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/none?token=secret", "invalid_url"),
        ("/moved", "invalid_url"),
        ("/empty", "empty_file"),
        ("/large", "request_too_large"),
    ],
)
def test_what_cannot_be_fetched_fails_and_leaves_nothing(
    client: OpenAI, stack: Stack, site: str, path: str, code: str
) -> None:
    blobs = _blobs(stack)
    job = _ended(client, _begin(client, site + path)["id"])
    assert (job["state"], job["error"]["code"], job["attempts"]) == ("failed", code, 1)
    assert "secret" not in job["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(job["resource_id"])
    assert _blobs(stack) == blobs


def test_a_killed_import_is_done_again_and_leaves_one_blob(client: OpenAI, stack: Stack, site: str) -> None:
    blobs = _blobs(stack)
    begun = _begin(client, f"{site}/slow.txt")
    assert _Site.begun.wait(60)
    stack.kill("ingest")
    _Site.go_on.set()
    job = _ended(client, begun["id"])
    assert (job["state"], job["attempts"], job["failures"]) == ("succeeded", 2, 0)
    assert client.files.content(job["resource_id"]).read() == b"0123456789" * 2
    assert _blobs(stack) == blobs + 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://169.254.169.254/latest/", "https://user@example.com/", "https://2130706433/"]
)
def test_a_url_that_may_not_be_asked_is_refused_at_once(client: OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        _begin(client, url)
    assert (caught.value.code, caught.value.param) == ("invalid_url", "url")


def test_a_name_that_leads_inside_is_refused_by_the_job(client: OpenAI) -> None:
    job = _ended(client, _begin(client, "https://localhost/")["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "invalid_url")
