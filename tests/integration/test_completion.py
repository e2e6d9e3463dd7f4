"""The completer against a model server that misbehaves in every way it can, on the loopback."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest

from libs.common import upstreams
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from services.chat.completion import UpstreamCompleter
from services.chat.ports import Delta, ModelsAwayError, Usage
from services.chat.settings import ChatSettings

pytestmark = pytest.mark.timeout(20)

_CANARY = "canary-of-the-upstream"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PROMPT = [{"role": "user", "content": "How many cranes?"}]

Play = Callable[["Upstream", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """Plays one play per request, the last one again and again."""

    def __init__(self, *plays: Play) -> None:
        self._plays = plays
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.waiting = asyncio.Event()
        self.left = asyncio.Event()
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def end(self) -> None:
        if self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                self.requests.append(orjson.loads(await reader.readexactly(length)))
                await self._plays[min(len(self.requests), len(self._plays)) - 1](self, reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def _serving(*plays: Play) -> AsyncIterator[Upstream]:
    upstream = Upstream(*plays)
    server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0)
    async with server:
        upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield upstream
        await upstream.end()


@asynccontextmanager
async def _completing(
    url: str, *, read_timeout_seconds: float = 10.0, fallbacks: str = ""
) -> AsyncIterator[UpstreamCompleter]:
    settings = ChatSettings(
        openai_base_url=url, model_read_timeout_seconds=read_timeout_seconds, chat_fallback_models=fallbacks
    )
    completer = UpstreamCompleter(settings)
    try:
        yield completer
    finally:
        await completer.aclose()


async def _read(completer: UpstreamCompleter, seen: list[Delta] | None = None) -> list[Delta]:
    deltas = [] if seen is None else seen
    async for delta in completer.stream("model", _PROMPT, {"temperature": 0.5}):
        deltas.append(delta)
    return deltas


def _chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""


def _data(chunk: object) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _text(text: str | None, **choice: Any) -> bytes:
    return _data({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]})


_DONE = b"data: [DONE]\n\n"
_STOP = _data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
_GOOD = (_text("Four"), _text(" cranes."), _STOP, _DONE)


def _sends(*pieces: bytes) -> Play:
    """A stream of these pieces, ended in order."""

    async def play(_upstream: Upstream, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD + b"".join(map(_chunked, pieces)) + b"0\r\n\r\n")
        await writer.drain()

    return play


def _breaks(*pieces: bytes, head: bytes = _HEAD) -> Play:
    """A stream that breaks off behind these pieces."""

    async def play(_upstream: Upstream, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"".join(map(_chunked, pieces)))
        await writer.drain()
        writer.close()

    return play


def _hangs(*pieces: bytes, head: bytes = _HEAD) -> Play:
    """A stream that falls silent behind these pieces, until the client has left."""

    async def play(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"".join(map(_chunked, pieces)))
        await writer.drain()
        upstream.waiting.set()
        await reader.read()
        upstream.left.set()
        writer.close()

    return play


def _refuses(status: int, param: object = None) -> Play:
    async def play(_upstream: Upstream, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = orjson.dumps({"error": {"message": _CANARY, "code": _CANARY, "type": _CANARY, "param": param}})
        writer.write(f"HTTP/1.1 {status} {_CANARY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return play


def _joined(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_an_ordinary_stream() -> None:
    role = _data({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}], "usage": None})
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
    pieces = [
        b": a comment\n\n", b"event: message\nid: 1\nretry: 5\n", role, _text("Four"), b": ping\r\n\r\n", _text(None),
        _text(" cr\u2028a\u0085nes é🙂.").replace(b"\n", b"\r\n"), _STOP.replace(b"data: ", b"data:"),
        _data({"choices": [], "usage": usage}), _data({"choices": None}), _data({}), _DONE,
    ]  # fmt: skip
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        deltas = await _read(completer)
        assert _joined(deltas) == "Four cr\u2028a\u0085nes é🙂."
        assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
        assert [delta.usage for delta in deltas if delta.usage] == [Usage(7, 5, 2)]
        assert upstream.requests == [
            {
                "model": "model",
                "messages": _PROMPT,
                "stream": True,
                "stream_options": {"include_usage": True},
                "temperature": 0.5,
            }
        ]


async def test_bytes_may_arrive_one_by_one() -> None:
    whole = _text("é🙂\u2028") + _STOP + _DONE
    pieces = [whole[place : place + 1] for place in range(len(whole))]
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        assert _joined(await _read(completer)) == "é🙂\u2028"


@pytest.mark.parametrize("last", [b"", _STOP.rstrip()])
async def test_an_answer_may_end_without_its_end_mark(last: bytes) -> None:
    pieces = (_text("Four"), last or _STOP)
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        deltas = await _read(completer)
        assert (_joined(deltas), deltas[-1].finish_reason) == ("Four", "stop")


async def test_a_server_that_stays_on_the_line_behind_its_end_mark_is_left() -> None:
    async with _serving(_hangs(*_GOOD)) as upstream, _completing(upstream.url) as completer:
        assert _joined(await _read(completer)) == "Four cranes."
        async with asyncio.timeout(5):
            await upstream.left.wait()


async def test_a_connection_is_used_again() -> None:
    async with _serving(_sends(*_GOOD)) as upstream, _completing(upstream.url) as completer:
        assert [_joined(await _read(completer)) for _ in range(3)] == ["Four cranes."] * 3
        assert (len(upstream.requests), upstream.connections) == (3, 1)


async def test_tool_calls_come_as_fragments() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "crane", "arguments": ""}}
    more = {"index": 0, "id": None, "function": {"arguments": "{}"}}
    pieces = [_text(None, delta={"tool_calls": [part]}) for part in (call, more)]
    pieces += [_text(None, delta={"tool_calls": None}, finish_reason="tool_calls"), _DONE]
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        deltas = await _read(completer)
    fragments = [fragment for delta in deltas for fragment in delta.tool_calls]
    assert fragments == [call, {"index": 0, "function": {"arguments": "{}"}}]
    assert deltas[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(("sent", "meant"), [("length", "length"), ("eos_token", "stop"), ("", None), (None, None)])
async def test_reasons_to_finish_are_the_sdks(sent: str | None, meant: str | None) -> None:
    pieces = (_text("a", finish_reason=sent), _STOP)
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        assert (await _read(completer))[0].finish_reason == meant


async def test_a_refusal_is_an_answer() -> None:
    pieces = (_text(None, delta={"refusal": "I cannot say."}), _STOP)
    async with _serving(_sends(*pieces)) as upstream, _completing(upstream.url) as completer:
        assert _joined(await _read(completer)) == "I cannot say."


async def _failure(
    *plays: Play, seen: list[Delta] | None = None, read_timeout_seconds: float = 10.0
) -> tuple[PlatformError, int]:
    """What a caller is told, and how many requests were made; the upstream's words are nowhere in it."""
    async with (
        _serving(*plays) as upstream,
        _completing(upstream.url, read_timeout_seconds=read_timeout_seconds) as completer,
    ):
        with pytest.raises(PlatformError) as caught:
            await _read(completer, seen)
        assert _CANARY not in "".join(traceback.format_exception(caught.value))
        assert "127.0.0.1" not in caught.value.message
        return caught.value, len(upstream.requests)


_GARBAGE: dict[str, bytes] = {
    "no JSON": f"data: {_CANARY}\n\n".encode(),
    "half of JSON": b'data: {"choices": [\n\n',
    "no UTF-8": b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',
    "half a character": b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n',
    "a number": _data(5),
    "a list": _data([_CANARY]),
    "null": _data(None),
    "an empty event": b"data:\n\n",
    "choices of text": _data({"choices": _CANARY}),
    "choices of null": _data({"choices": [None]}),
    "a delta of text": _data({"choices": [{"delta": _CANARY}]}),
    "content of a number": _data({"choices": [{"delta": {"content": 5}}]}),
    "tool calls of text": _data({"choices": [{"delta": {"tool_calls": [_CANARY]}}]}),
    "a tool call out of bounds": _data({"choices": [{"delta": {"tool_calls": [{"index": 1 << 60}]}}]}),
    "usage of text": _data({"usage": _CANARY}),
    "usage below zero": _data({"usage": {"prompt_tokens": -1}}),
    "an error": _data({"error": {"message": _CANARY, "type": "server_error", "code": 500}}),
    "an error of text": b"event: error\n" + _data({"error": _CANARY}),
    "a line without end": b"data: " + b"x" * ((1 << 20) + 1),
}


@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE.keys())
async def test_garbage_in_a_stream_is_an_error(garbage: bytes) -> None:
    seen: list[Delta] = []
    error, requests = await _failure(_sends(_text("Four"), garbage, *_GOOD), seen=seen)
    assert (type(error), error.code, requests) == (RetryableError, ErrorCode.LLM_BAD_RESPONSE, 1)
    assert _joined(seen) == "Four"


@pytest.mark.parametrize(
    "pieces", [(), (_DONE,), (_text("Four"),), (_text("Four"), _DONE), (_text("Four"), b'data: {"cho')]
)
async def test_an_answer_without_an_end_is_an_error(pieces: tuple[bytes, ...]) -> None:
    error, requests = await _failure(_sends(*pieces))
    assert (error.code, requests) == (ErrorCode.LLM_BAD_RESPONSE, 1)


async def test_an_answer_that_is_no_stream_is_an_error() -> None:
    error, requests = await _failure(_sends(b'{"choices": [{"message": {"content": "Four"}}]}'))
    assert (error.code, requests) == (ErrorCode.LLM_BAD_RESPONSE, 1)


@pytest.mark.parametrize("pieces", [(_text("Four"),), (_text("Four"), b'data: {"cho')])
async def test_a_stream_cut_in_the_middle_is_an_error_and_not_tried_again(pieces: tuple[bytes, ...]) -> None:
    seen: list[Delta] = []
    error, requests = await _failure(_breaks(*pieces), seen=seen)
    assert (error.code, requests, _joined(seen)) == (ErrorCode.LLM_UNAVAILABLE, 1, "Four")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ErrorCode.INVALID_VALUE),
        (401, ErrorCode.LLM_AUTH),
        (403, ErrorCode.LLM_AUTH),
        (404, ErrorCode.MODEL_NOT_FOUND),
        (413, ErrorCode.INVALID_VALUE),
        (422, ErrorCode.INVALID_VALUE),
    ],
)
async def test_a_refusal_that_will_not_change_is_not_tried_again(status: int, code: ErrorCode) -> None:
    error, requests = await _failure(_refuses(status))
    assert (type(error), error.code, requests) == (PermanentError, code, 1)


@pytest.mark.parametrize(
    ("param", "blamed"),
    [
        ("response_format", "what it got as 'response_format'"),
        ("messages[0].content", "what it got as 'messages[0].content'"),
        *((param, "the request's content or options") for param in (None, 7, f"{_CANARY} /x", "a" * 65)),
    ],
)
async def test_a_refusal_names_the_parameter_and_no_other_text(param: object, blamed: str) -> None:
    error, _ = await _failure(_refuses(400, param))
    assert error.message == f"The model's server refused {blamed}."


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_a_failure_before_the_first_byte_is_tried_once_more(status: int) -> None:
    error, requests = await _failure(_refuses(status))
    assert (type(error), error.code, requests) == (ModelsAwayError, ErrorCode.LLM_UNAVAILABLE, 2)


@pytest.mark.parametrize("first", [_refuses(500), _refuses(429), _breaks(), _breaks(head=b"")])
async def test_the_second_try_may_succeed(first: Play) -> None:
    async with _serving(first, _sends(*_GOOD)) as upstream, _completing(upstream.url) as completer:
        assert _joined(await _read(completer)) == "Four cranes."
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("play", [_breaks(), _breaks(head=b""), _breaks(head=f"{_CANARY}\r\n\r\n".encode())])
async def test_a_hang_up_is_no_timeout(play: Play) -> None:
    error, requests = await _failure(play)
    assert (error.code, requests) == (ErrorCode.LLM_UNAVAILABLE, 2)


async def test_nobody_listens() -> None:
    async with _serving() as upstream:
        url = upstream.url
    async with _completing(url) as completer:
        with pytest.raises(RetryableError) as caught:
            await _read(completer)
    assert caught.value.code is ErrorCode.LLM_UNAVAILABLE


@pytest.mark.parametrize("play", [_hangs(head=b""), _hangs(), _hangs(b": ping\n\n")])
async def test_silence_before_the_first_token_is_a_timeout(play: Play) -> None:
    error, requests = await _failure(play, read_timeout_seconds=0.2)
    assert (type(error), error.code, requests) == (ModelsAwayError, ErrorCode.LLM_TIMEOUT, 1)


async def test_silence_between_tokens_is_a_timeout_and_not_tried_again() -> None:
    seen: list[Delta] = []
    error, requests = await _failure(_hangs(_text("Four")), seen=seen, read_timeout_seconds=0.2)
    assert (error.code, requests, _joined(seen)) == (ErrorCode.LLM_TIMEOUT, 1, "Four")


@pytest.mark.parametrize("play", [_hangs(head=b""), _hangs(), _hangs(_text("Four"))])
async def test_a_cancelled_answer_closes_its_connection(play: Play) -> None:
    async with _serving(play) as upstream, _completing(upstream.url) as completer:
        reading = asyncio.create_task(_read(completer))
        await upstream.waiting.wait()
        await asyncio.sleep(0.05)  # the client reads what was sent
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(5):
            await upstream.left.wait()
        assert len(upstream.requests) == 1


def _by_model(plays: dict[str, Play]) -> Play:
    """What each model does."""

    async def play(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await plays[upstream.requests[-1]["model"]](upstream, reader, writer)

    return play


_FALLBACKS = "model=second,third;*=model,other"


@pytest.mark.parametrize("away", [_refuses(500), _refuses(429), _breaks(), _hangs(head=b"")])
async def test_a_model_that_is_away_is_stood_in_for_in_the_order_of_the_settings(away: Play) -> None:
    plays = {"model": away, "second": _refuses(503), "third": _sends(*_GOOD)}
    async with (
        _serving(_by_model(plays)) as upstream,
        _completing(upstream.url, fallbacks=_FALLBACKS, read_timeout_seconds=0.3) as completer,
    ):
        deltas = await _read(completer)
        asked = [request["model"] for request in upstream.requests]
    assert _joined(deltas) == "Four cranes."
    assert {delta.model for delta in deltas} == {"third"}
    assert list(dict.fromkeys(asked)) == ["model", "second", "third"]
    assert (asked.count("second"), asked.count("third")) == (1, 1)


async def test_a_model_that_answers_is_not_named() -> None:
    async with _serving(_sends(*_GOOD)) as upstream, _completing(upstream.url, fallbacks=_FALLBACKS) as completer:
        assert {delta.model for delta in await _read(completer)} == {None}


async def test_where_all_are_away_the_client_is_told_of_the_model_it_asked_for() -> None:
    plays = {"model": _refuses(429), "second": _refuses(404), "third": _hangs(head=b"")}
    async with (
        _serving(_by_model(plays)) as upstream,
        _completing(upstream.url, fallbacks=_FALLBACKS, read_timeout_seconds=0.3) as completer,
    ):
        with pytest.raises(ModelsAwayError) as caught:
            await _read(completer)
    assert (caught.value.code, "limit" in caught.value.message) == (ErrorCode.LLM_UNAVAILABLE, True)


@pytest.mark.parametrize(
    "play", [_refuses(401), _refuses(400), _breaks(_text("Four")), _sends(_text("Four"), b"data: {nonsense\n\n")]
)
async def test_nobody_stands_in_for_a_model_that_refuses_or_has_begun(play: Play) -> None:
    async with _serving(play) as upstream, _completing(upstream.url, fallbacks=_FALLBACKS) as completer:
        with pytest.raises(PlatformError):
            await _read(completer)
        assert [request["model"] for request in upstream.requests] == ["model"]


async def test_a_model_that_keeps_failing_is_asked_no_more_while_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "RETRY_WINDOW_SECONDS", 0.0)
    plays = {"model": _refuses(500), "second": _sends(*_GOOD)}
    async with (
        _serving(_by_model(plays)) as upstream,
        _completing(upstream.url, fallbacks="model=second") as completer,
    ):
        for _ in range(50):
            assert _joined(await _read(completer)) == "Four cranes."
        asked = [request["model"] for request in upstream.requests]
    assert asked.count("second") == 50
    assert 10 <= asked.count("model") < 15
