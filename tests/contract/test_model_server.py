"""The official SDK against the local model server: shapes, values, streams and errors as OpenAI's."""

import base64
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

ROOT = Path(__file__).parents[2]
EMBEDDING_MODEL = "all-minilm-l6-v2"
CHAT_MODEL = "docent-extractive"
PASSAGES = """Answer from the passages.
<passage-3f9a2c1b number="1" file="handbook.pdf" page="4">
Every employee has 28 days of paid leave a year. The canteen is on the second floor.
</passage-3f9a2c1b>
<passage-3f9a2c1b number="2">
Refunds are paid within 14 days of the return.
</passage-3f9a2c1b>"""
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": PASSAGES},
    {"role": "user", "content": [{"type": "text", "text": "How many days of paid leave do employees have?"}]},
]
ANSWER = "Every employee has 28 days of paid leave a year. [1]"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "libs.local.model_server", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            assert httpx.get(f"{address}/healthz").status_code == 200
        except httpx.ConnectError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the server did not start")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as opened:
        yield opened


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {EMBEDDING_MODEL, CHAT_MODEL}
    assert client.models.retrieve(CHAT_MODEL).object == "model"


def test_like_sentences_lie_closer_than_unlike_ones(client: OpenAI) -> None:
    texts = ["The cat sits on the mat.", "A cat is resting on a rug.", "Interest rates rose by half a point."]
    reply = client.embeddings.create(model=EMBEDDING_MODEL, input=texts)
    mat, rug, rates = (item.embedding for item in reply.data)
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert [len(vector) for vector in (mat, rug, rates)] == [384] * 3
    assert cosine(mat, mat) == pytest.approx(1, abs=1e-5)
    assert cosine(mat, rug) > cosine(mat, rates) + 0.3
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 3 * 6


def test_base64_holds_the_floats(url: str) -> None:
    body: dict[str, object] = {"model": EMBEDDING_MODEL, "input": "How long is the notice period?"}
    floats, packed = (
        httpx.post(f"{url}/v1/embeddings", json=body | {"encoding_format": form}).json()["data"][0]["embedding"]
        for form in ("float", "base64")
    )
    assert list(struct.unpack("<384f", base64.b64decode(packed))) == floats


def test_a_list_keeps_its_order_and_texts_past_256_tokens_are_cut(client: OpenAI) -> None:
    texts = ["word " * length for length in (400, 3, 254, 40, 7, 1, 90)]
    together = client.embeddings.create(model=EMBEDDING_MODEL, input=texts)
    for text, item in zip(texts, together.data, strict=True):
        alone = client.embeddings.create(model=EMBEDDING_MODEL, input=text)
        assert cosine(alone.data[0].embedding, item.embedding) == pytest.approx(1, abs=1e-5)
    assert together.usage.total_tokens == 256 + 5 + 256 + 42 + 9 + 3 + 92


def test_a_completion_cites_its_passage_and_counts_tokens(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, temperature=0.2)
    choice = completion.choices[0]
    assert (completion.object, completion.model) == ("chat.completion", CHAT_MODEL)
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert completion.usage is not None
    # Twelve words, a number and a stop, and a bracketed number.
    assert completion.usage.completion_tokens == 14
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 14


async def test_a_stream_carries_the_same_answer_word_by_word(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as opened:
        stream = await opened.chat.completions.create(
            model=CHAT_MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    contents = [part.choices[0].delta.content for part in parts]
    assert "".join(content or "" for content in contents) == ANSWER
    assert " employee" in contents
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(part.usage is None for part in parts)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 14


def test_a_stream_ends_with_done_and_without_counts_unless_asked(url: str) -> None:
    reply = httpx.post(f"{url}/v1/chat/completions", json={"model": CHAT_MODEL, "messages": MESSAGES, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.endswith("data: [DONE]\n\n")
    assert "usage" not in reply.text


def test_completions_end_at_stop_texts_and_token_limits(client: OpenAI) -> None:
    stopped = client.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, stop=["leave", " paid"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        "Every employee has 28 days of",
        "stop",
    )
    cut = client.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, max_completion_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Every employee has", "length")
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 3


@pytest.mark.parametrize("model", ["gpt-unknown", CHAT_MODEL])
def test_an_unknown_model_is_not_found(client: OpenAI, model: str) -> None:
    with pytest.raises(NotFoundError) as refusal:
        client.embeddings.create(model=model, input="text")
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")
    with pytest.raises(NotFoundError):
        client.models.retrieve("gpt-unknown")


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("embeddings", b"{", 400, "invalid_json", None),
        ("embeddings", b"[]", 400, "invalid_value", None),
        ("embeddings", b'{"model": "all-minilm-l6-v2"}', 400, "missing_required_parameter", "input"),
        ("embeddings", b'{"model": "all-minilm-l6-v2", "input": [1, 2]}', 400, "invalid_value", "input"),
        ("embeddings", b'{"model": "all-minilm-l6-v2", "input": [[1]]}', 400, "invalid_value", "input"),
        ("embeddings", b'{"model": "all-minilm-l6-v2", "input": ["a", ""]}', 400, "invalid_value", "input[1]"),
        ("embeddings", b'{"model": "all-minilm-l6-v2", "input": []}', 400, "invalid_value", "input"),
        ("chat/completions", b'{"model": "docent-extractive", "messages": []}', 400, "invalid_value", "messages"),
        ("nowhere", b"{}", 404, "unknown_url", None),
        ("models", b"{}", 405, "method_not_allowed", None),
    ],
)
def test_errors_have_all_four_keys(url: str, path: str, body: bytes, status: int, code: str, param: str | None) -> None:
    reply = httpx.post(f"{url}/v1/{path}", content=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert error == {"message": error["message"], "type": "invalid_request_error", "param": param, "code": code}
    assert error["message"]


@pytest.mark.parametrize("dimensions", [256, 0])
def test_other_dimensions_are_refused(client: OpenAI, dimensions: int) -> None:
    with pytest.raises(BadRequestError, match="384"):
        client.embeddings.create(model=EMBEDDING_MODEL, input="text", dimensions=dimensions)
    assert client.embeddings.create(model=EMBEDDING_MODEL, input="text", dimensions=384).data


def test_what_an_extractive_model_cannot_do_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, n=2)
    assert refusal.value.param == "n"
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model=CHAT_MODEL, messages=MESSAGES, response_format={"type": "json_object"})
    assert refusal.value.param == "response_format.type"
    image: ChatCompletionMessageParam = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
    }
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model=CHAT_MODEL, messages=[image])
    assert refusal.value.param == "messages[0].content[0].type"
