"""The embedder against a small embeddings endpoint on the loopback."""

import json
import struct
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest

from libs.common import upstreams
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.embedder import Embedder


class Endpoint(ThreadingHTTPServer):
    """Embeds a text as [its length, its position in the batch]; `failures` are played first, one per request."""

    def __init__(self, failures: list[int | str] | None = None, *, hold_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures = failures or []
        self.hold_seconds = hold_seconds
        self.batches: list[list[str]] = []
        self.running = self.most_running = 0
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.batches.append(request["input"])
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            failure = self.server.failures.pop(0) if self.server.failures else 200
        time.sleep(self.server.hold_seconds)
        with self.server.lock:
            self.server.running -= 1
        with suppress(ConnectionError):  # of a client that has stopped waiting
            self._answer(failure, request)

    def _answer(self, failure: int | str, request: dict[str, Any]) -> None:
        if failure == "hang up":
            return
        body = json.dumps(_reply(request)).encode()
        if isinstance(failure, str) and failure != "cut":
            body = failure.encode()
        self.send_response(failure if isinstance(failure, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(body) + 50 * (failure == "cut")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    assert request["encoding_format"] == "base64"
    assert request["model"] == "small"
    vectors = [struct.pack("<2f", len(text), place) for place, text in enumerate(request["input"])]
    data = [{"index": place, "embedding": b64encode(vector).decode()} for place, vector in enumerate(vectors)]
    return {"data": data[::-1], "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}


@contextmanager
def _serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    with endpoint:
        Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield endpoint
        endpoint.shutdown()


def _embedder(endpoint: Endpoint, *, dimension: int = 2, timeout_seconds: float = 10.0) -> Embedder:
    return Embedder(endpoint.url, "key", model="small", dimension=dimension, timeout_seconds=timeout_seconds)


@pytest.fixture(autouse=True)
def _hasty_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "RETRY_WINDOW_SECONDS", 0.01)


async def test_vectors_come_in_the_order_of_the_texts_with_the_tokens_of_all_batches() -> None:
    texts = ["x" * length for length in range(1, 151)]
    with _serving(Endpoint(hold_seconds=0.05)) as endpoint:
        embedder = _embedder(endpoint)
        result = await embedder.embed(texts)
        await embedder.aclose()
    assert result.vectors == [[float(place + 1), float(place % 64)] for place in range(150)]
    assert result.tokens == 150
    assert sorted(map(len, endpoint.batches)) == [22, 64, 64]
    assert endpoint.most_running == 2


async def test_nothing_to_embed_asks_nothing() -> None:
    with _serving(Endpoint()) as endpoint:
        result = await _embedder(endpoint).embed([])
    assert (result.vectors, result.tokens, endpoint.batches) == ([], 0, [])


@pytest.mark.parametrize("failure", [429, 500, 503, "hang up", "cut"])
async def test_a_passing_failure_is_tried_once_more(failure: int | str) -> None:
    with _serving(Endpoint([failure])) as endpoint:
        embedder = _embedder(endpoint)
        assert (await embedder.embed(["abc"])).vectors == [[3.0, 0.0]]
        await embedder.aclose()
    assert len(endpoint.batches) == 2


@pytest.mark.parametrize("failure", [429, 500, "hang up", "cut"])
async def test_a_lasting_failure_is_unavailable_after_two_attempts(failure: int | str) -> None:
    with _serving(Endpoint([failure] * 5)) as endpoint:
        embedder = _embedder(endpoint)
        with pytest.raises(RetryableError) as raised:
            await embedder.embed(["abc"])
        await embedder.aclose()
    assert raised.value.code is ErrorCode.LLM_UNAVAILABLE
    assert raised.value.retry_after_seconds == (7.0 if isinstance(failure, int) else None)
    assert str(endpoint.server_port) not in str(raised.value)
    assert len(endpoint.batches) == 2


async def test_a_model_that_keeps_failing_is_left_alone() -> None:
    with _serving(Endpoint([500] * 50)) as endpoint:
        embedder = _embedder(endpoint)
        for _ in range(20):
            with pytest.raises(RetryableError) as raised:
                await embedder.embed(["abc"])
        await embedder.aclose()
    assert (raised.value.code, len(endpoint.batches)) == (ErrorCode.LLM_UNAVAILABLE, 5)
    assert raised.value.retry_after_seconds is not None


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (401, ErrorCode.LLM_AUTH),
        (403, ErrorCode.LLM_AUTH),
        (400, ErrorCode.LLM_BAD_RESPONSE),
        ("not json", ErrorCode.LLM_BAD_RESPONSE),
        ('{"data": []}', ErrorCode.LLM_BAD_RESPONSE),
        ('{"data": [{"index": 0, "embedding": "%%%"}]}', ErrorCode.LLM_BAD_RESPONSE),
        ('{"data": [{"index": 0, "embedding": "AAAA"}]}', ErrorCode.LLM_BAD_RESPONSE),
        ('{"data": [{"index": 0, "embedding": "AADAfwAAwH8="}]}', ErrorCode.LLM_BAD_RESPONSE),
        ('{"data": [{"index": 1, "embedding": [1.0, 2.0]}]}', ErrorCode.LLM_BAD_RESPONSE),
    ],
)
async def test_a_failure_that_will_last_is_not_tried_again(failure: int | str, code: ErrorCode) -> None:
    with _serving(Endpoint([failure])) as endpoint:
        embedder = _embedder(endpoint)
        with pytest.raises(PermanentError) as raised:
            await embedder.embed(["abc"])
        await embedder.aclose()
    assert raised.value.code is code
    assert len(endpoint.batches) == 1


async def test_a_server_that_knows_no_base64_is_understood() -> None:
    with _serving(Endpoint(['{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}'])) as endpoint:
        embedder = _embedder(endpoint)
        result = await embedder.embed(["abc"])
        await embedder.aclose()
    assert (result.vectors, result.tokens) == ([[1.0, 2.0]], 0)


async def test_vectors_of_another_length_are_refused() -> None:
    with _serving(Endpoint()) as endpoint:
        embedder = _embedder(endpoint, dimension=3)
        with pytest.raises(PermanentError) as raised:
            await embedder.embed(["abc"])
        await embedder.aclose()
    assert raised.value.code is ErrorCode.LLM_BAD_RESPONSE


async def test_a_slow_model_times_out_without_another_attempt() -> None:
    with _serving(Endpoint(hold_seconds=1.0)) as endpoint:
        embedder = _embedder(endpoint, timeout_seconds=0.2)
        with pytest.raises(RetryableError) as raised:
            await embedder.embed(["abc"])
        await embedder.aclose()
    assert raised.value.code is ErrorCode.LLM_TIMEOUT
    assert len(endpoint.batches) == 1


async def test_one_failed_batch_fails_the_call() -> None:
    with _serving(Endpoint([200, 401, 401], hold_seconds=0.02)) as endpoint:
        embedder = _embedder(endpoint)
        with pytest.raises(PermanentError) as raised:
            await embedder.embed(["abc"] * 400)
        await embedder.aclose()
    assert raised.value.code is ErrorCode.LLM_AUTH
    assert len(endpoint.batches) < 7


async def test_it_can_be_used_after_closing() -> None:
    with _serving(Endpoint()) as endpoint:
        embedder = _embedder(endpoint)
        for _ in range(2):
            assert (await embedder.embed(["abc"])).tokens == 1
            await embedder.aclose()
