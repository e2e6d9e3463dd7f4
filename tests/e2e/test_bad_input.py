"""Bad input gets our error body with its code: never a 500, never a hang."""

import gzip
import secrets
from typing import Any

import httpx
import pytest

from libs.local.running import Stack
from tests.e2e.conftest import MODEL

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def assert_error(reply: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    assert reply.headers["x-request-id"].startswith("req_")


RAW_BODIES: list[tuple[bytes, str]] = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b'{"model": NaN}', "invalid_value"),
    (b'{"model": -Infinity}', "invalid_value"),
    (b'{"model": 1e999}', "invalid_value"),
    (b'{"model": NaN', "invalid_json"),
    (b'{"model": "\\ud800"}', "invalid_unicode"),
    (b'{"model": "a\\u0000b"}', "invalid_unicode"),
    (b"\xff\xfe", "invalid_unicode"),
    (b"[" * 100 + b"]" * 100, "invalid_value"),
    (b"[" * 100_000, "invalid_value"),
    (b"[]", "invalid_value"),
    (b'"text"', "invalid_value"),
    (b"null", "invalid_value"),
]


@pytest.mark.parametrize(("body", "code"), RAW_BODIES, ids=range(len(RAW_BODIES)))
def test_bodies_that_are_no_request(http: httpx.Client, body: bytes, code: str) -> None:
    assert_error(http.post(CHAT, content=body, headers=JSON), 400, code)


def test_a_compressed_body_is_refused(http: httpx.Client) -> None:
    body = gzip.compress(b'{"model": "docent-extractive"}')
    assert_error(
        http.post(CHAT, content=body, headers=JSON | {"Content-Encoding": "gzip"}), 415, "unsupported_media_type"
    )


CHAT_BODIES: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"messages": MESSAGES}, 400, "missing_required_parameter", "model"),
    ({"model": MODEL}, 400, "missing_required_parameter", "messages"),
    ({"model": MODEL, "messages": []}, 400, "invalid_value", "messages"),
    ({"model": MODEL, "messages": "Hello"}, 400, "invalid_value", "messages"),
    ({"model": MODEL, "messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    ({"model": MODEL, "messages": MESSAGES, "temperature": 3}, 400, "invalid_value", "temperature"),
    ({"model": MODEL, "messages": MESSAGES, "temperature": "hot"}, 400, "invalid_value", "temperature"),
    ({"model": MODEL, "messages": MESSAGES, "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
    ({"model": MODEL, "messages": MESSAGES, "max_tokens": 10**40}, 400, "invalid_value", "max_tokens"),
    ({"model": MODEL, "messages": MESSAGES, "n": 2}, 400, "invalid_value", "n"),
    ({"model": MODEL, "messages": MESSAGES, "temprature": 1}, 400, "unknown_parameter", "temprature"),
    ({"model": MODEL, "messages": MESSAGES, "api_base": "http://127.0.0.1"}, 400, "unknown_parameter", None),
    ({"model": MODEL, "messages": MESSAGES, "vector_store_ids": []}, 400, "invalid_value", "vector_store_ids"),
    ({"model": MODEL, "messages": MESSAGES, "vector_store_ids": ["vs_none"]}, 404, "not_found", None),
    ({"model": "gpt-none", "messages": MESSAGES}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), CHAT_BODIES, ids=range(len(CHAT_BODIES)))
def test_chat_bodies(http: httpx.Client, body: dict[str, Any], status: int, code: str, param: str | None) -> None:
    assert_error(http.post(CHAT, json=body), status, code, param)


OTHER_REQUESTS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("POST", "/v1/responses", {"json": {"model": "gpt-none"}}, 404, "model_not_found"),
    ("POST", "/v1/responses", {"json": {"model": MODEL, "input": 5}}, 400, "invalid_value"),
    ("POST", "/v1/responses", {"json": {"model": MODEL, "input": [{"role": "x"}]}}, 400, "invalid_value"),
    ("POST", "/v1/responses", {"json": {"model": MODEL, "input": "x", "conversation": "conv_0"}}, 404, "not_found"),
    (
        "POST",
        "/v1/responses",
        {"json": {"model": MODEL, "input": "x", "previous_response_id": "resp_0"}},
        404,
        "not_found",
    ),
    ("GET", "/v1/responses/resp_0", {}, 404, "not_found"),
    ("GET", "/v1/conversations/conv_0", {}, 404, "not_found"),
    ("GET", "/v1/conversations/conv_0/items?limit=0", {}, 400, "invalid_value"),
    ("GET", "/v1/conversations/conv_0/items?limit=abc", {}, 400, "invalid_value"),
    ("POST", "/v1/conversations", {"json": {"metadata": {str(n): "x" for n in range(17)}}}, 400, "invalid_value"),
    ("POST", "/v1/embeddings", {"json": {"model": "all-minilm-l6-v2", "input": []}}, 400, "invalid_value"),
    ("POST", "/v1/embeddings", {"json": {"model": "all-minilm-l6-v2", "input": [1, 2]}}, 400, "invalid_value"),
    ("POST", "/v1/embeddings", {"json": {"model": "none", "input": "x"}}, 404, "model_not_found"),
    ("GET", "/v1/files/file-0", {}, 404, "not_found"),
    ("DELETE", "/v1/files/file-0", {}, 404, "not_found"),
    ("GET", "/v1/files?after=file-0", {}, 400, "invalid_cursor"),
    ("GET", "/v1/files?limit=-1", {}, 400, "invalid_value"),
    ("POST", "/v1/files", {"data": {"purpose": "assistants"}}, 415, "unsupported_media_type"),
    ("POST", "/v1/files", {"files": {"purpose": (None, "assistants")}}, 400, "missing_required_parameter"),
    (
        "POST",
        "/v1/files",
        {"data": {"purpose": "assistants"}, "files": {"file": ("a.txt", b"")}},
        400,
        "empty_file",
    ),
    (
        "POST",
        "/v1/files",
        {"content": b"no multipart", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
        "invalid_value",
    ),
    ("GET", "/v1/vector_stores/vs_0", {}, 404, "not_found"),
    ("POST", "/v1/vector_stores/vs_0/search", {"json": {"query": "x"}}, 404, "not_found"),
    ("POST", "/v1/vector_stores/vs_0/files", {"json": {"file_id": "file-0"}}, 404, "not_found"),
    (
        "POST",
        "/v1/batches",
        {"json": {"input_file_id": "file-0", "endpoint": "/v1/embeddings", "completion_window": "24h"}},
        404,
        "not_found",
    ),
    ("GET", "/v1/batches/batch_0", {}, 404, "not_found"),
    ("GET", "/v1/jobs/job_0", {}, 404, "not_found"),
    ("GET", "/v1/nothing", {}, 404, "unknown_url"),
    ("PUT", "/v1/models", {}, 405, "method_not_allowed"),
    ("POST", CHAT, {"content": b"x=1", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
    ("POST", CHAT, {"content": b" " * (5 << 20), "headers": JSON}, 413, "request_too_large"),
    ("GET", "/v1/models", {"headers": {"x-long": "a" * 20_000}}, 431, "headers_too_large"),
]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    OTHER_REQUESTS,
    ids=[f"{r[0]} {r[1]} {r[4]}" for r in OTHER_REQUESTS],
)
def test_other_requests(
    http: httpx.Client, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    assert_error(http.request(method, path, **options), status, code)


KEYS: list[tuple[bytes | None, str]] = [
    (None, "missing_api_key"),
    (b"Bearer nonsense", "invalid_api_key"),
    (b"Bearer dct_" + b"a" * 16 + b"_" + b"b" * 43, "invalid_api_key"),
    ("Bearer schlüssel".encode(), "invalid_api_key"),
    (b"Basic dXNlcjpwYXNz", "invalid_api_key"),
    (b"Bearer " + b"k" * 10_000, "invalid_api_key"),
]


@pytest.mark.parametrize(("key", "code"), KEYS, ids=range(len(KEYS)))
def test_keys(stack: Stack, key: bytes | None, code: str) -> None:
    headers = [] if key is None else [(b"authorization", key)]
    with httpx.Client(base_url=stack.url) as client:
        assert_error(client.get("/v1/models", headers=headers), 401, code)


def test_two_authorization_headers_are_one_too_many(stack: Stack) -> None:
    header = (b"authorization", f"Bearer {stack.api_key}".encode())
    with httpx.Client(base_url=stack.url) as client:
        assert_error(client.get("/v1/models", headers=[header, header]), 401, "invalid_api_key")


def test_only_health_answers_without_a_key(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 200
        for path in ("/v1/models", "/v1/files", f"/v1/jobs/{secrets.token_hex(4)}", "/v1/vector_stores"):
            assert_error(client.get(path), 401, "missing_api_key")
