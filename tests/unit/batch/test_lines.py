"""The input of a batch: lines cut out of a stream, and what is refused in them."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts import batch_lines
from libs.common.contracts.chat import BatchItem
from services.batch.lines import MAX_LINE_BYTES, Checker, Line, Offer, Problem, split

_OFFER = Offer(lambda name: name == "docent-extractive", "all-minilm-l6-v2", 384)
_CHAT = {"model": "docent-extractive", "messages": [{"role": "user", "content": "Where is the harbour?"}]}


async def _chunks(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


async def _split(data: bytes, cuts: list[int], max_bytes: int = MAX_LINE_BYTES) -> list[Line]:
    return [line async for line in split(_chunks(data, cuts), max_bytes)]


@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"\r\n", b" ", b"bcd", b"0123456789"])), st.lists(st.integers(0)))
async def test_lines_do_not_depend_on_how_the_stream_is_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    expected = [
        Line(number, None if len(raw) > 8 else raw.strip())
        for number, raw in enumerate(data.split(b"\n"), start=1)
        if len(raw) > 8 or raw.strip()
    ]
    assert await _split(data, cuts, max_bytes=8) == expected


async def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_lines() -> None:
    assert await _split(b"\xef\xbb\xbf{}\r\n{}\r\n", [1]) == [Line(1, b"{}"), Line(2, b"{}")]


async def test_lines_around_one_that_is_too_long_are_kept() -> None:
    lines = await _split(b"a\n" + b"x" * 100 + b"\nb", [10, 50, 90], max_bytes=10)
    assert lines == [Line(1, b"a"), Line(2, None), Line(3, b"b")]


def _checker(endpoint: str = "/v1/chat/completions") -> Checker:
    return Checker("batch_1", endpoint, _OFFER)


def _line(body: object = _CHAT, **changes: object) -> bytes:
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes
    return orjson.dumps({name: value for name, value in line.items() if value is not ...})


def _nested(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def _problem(content: bytes | None, endpoint: str = "/v1/chat/completions") -> Problem:
    problem = _checker(endpoint).check(Line(7, content))
    assert isinstance(problem, Problem)
    assert problem.line == 7
    return problem


def test_a_valid_line_becomes_an_item() -> None:
    item = _checker().check(Line(1, _line()))
    assert isinstance(item, BatchItem)
    assert (item.position, item.custom_id) == (0, "one")
    assert item.request_id == batch_lines.request_id("batch_1", 0)
    assert item.embed is None
    assert item.answer is not None
    assert item.answer.messages[0].content == "Where is the harbour?"
    assert item.answer.stream is False


def test_positions_count_the_valid_lines() -> None:
    checker = _checker()
    items = [checker.check(Line(number, _line(custom_id=str(number)))) for number in (1, 4, 5)]
    assert [item.position for item in items if isinstance(item, BatchItem)] == [0, 1, 2]
    assert checker.count == 3


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (None, "line_too_long", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"text"', "invalid_json", None),
        (b"nonsense", "invalid_json", None),
        (_line().replace(b'"one"', b"NaN"), "invalid_value", None),
        (_line().replace(b'"one"', b"-Infinity"), "invalid_value", None),
        (_line().replace(b'"one"', b"1e999"), "invalid_value", None),
        (_line().replace(b"harbour", b"\\ud800"), "invalid_unicode", None),
        (_line().replace(b"harbour", b"\xff"), "invalid_unicode", None),
        (_line().replace(b"harbour", b"\\u0000"), "invalid_unicode", None),
        (_line(body=...), "missing_required_parameter", "body"),
        (_line(custom_id=...), "missing_required_parameter", "custom_id"),
        (_line(custom_id=""), "invalid_value", "custom_id"),
        (_line(custom_id="x" * 513), "invalid_value", "custom_id"),
        (_line(custom_id=5), "invalid_value", "custom_id"),
        (_line(method="GET"), "invalid_value", "method"),
        (_line(method=...), "missing_required_parameter", "method"),
        (_line(url="/v1/embeddings"), "invalid_url", "url"),
        (_line(url=...), "missing_required_parameter", "url"),
        (_line(body="text"), "invalid_value", "body"),
        (_line(priority=1), "unknown_parameter", "priority"),
        (_line(_CHAT | {"stream": True}), "invalid_value", "body.stream"),
        (_line(_CHAT | {"store": True}), "invalid_value", "body.store"),
        (_line(_CHAT | {"model": "other"}), "model_not_found", "body.model"),
        (_line(_CHAT | {"temperature": 3}), "invalid_value", "body.temperature"),
        (_line(_CHAT | {"tempreature": 1}), "unknown_parameter", "body.tempreature"),
        (_line(_CHAT | {"messages": []}), "invalid_value", "body.messages"),
        (_line(_CHAT | {"messages": [{"role": "king"}]}), "invalid_value", "body.messages[0].role"),
        (_line({"model": "docent-extractive"}), "missing_required_parameter", "body.messages"),
        (_line(_CHAT | {"messages": [[]]}), "invalid_value", "body.messages[0]"),
        (_line(_CHAT | {"metadata": _nested(70)}), "invalid_value", None),
    ],
)
def test_faults_of_a_chat_line(content: bytes | None, code: str, param: str | None) -> None:
    problem = _problem(content)
    assert (problem.code, problem.param) == (code, param)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "all-minilm-l6-v2", "input": ""}, "invalid_value", "body.input"),
        ({"model": "all-minilm-l6-v2", "input": [1, 2]}, "invalid_value", "body.input"),
        ({"model": "all-minilm-l6-v2", "input": "a", "stream": True}, "unknown_parameter", "body.stream"),
        ({"model": "all-minilm-l6-v2", "input": "a", "dimensions": 7}, "invalid_value", "body.dimensions"),
        (
            {"model": "all-minilm-l6-v2", "input": "a", "encoding_format": "base64"},
            "invalid_value",
            "body.encoding_format",
        ),
        ({"model": "docent-extractive", "input": "a"}, "model_not_found", "body.model"),
    ],
)
def test_faults_of_an_embedding_line(body: dict[str, Any], code: str, param: str) -> None:
    problem = _problem(_line(body, url="/v1/embeddings"), "/v1/embeddings")
    assert (problem.code, problem.param) == (code, param)


@pytest.mark.parametrize("field", ["stream", "background", "conversation", "previous_response_id"])
def test_a_response_of_a_batch_stands_alone(field: str) -> None:
    value = True if field in ("stream", "background") else "conv_1"
    body = {"model": "docent-extractive", "input": "hello", field: value}
    problem = _problem(_line(body, url="/v1/responses"), "/v1/responses")
    assert (problem.code, problem.param) == ("invalid_value", f"body.{field}")


def test_embedding_and_response_lines_become_items() -> None:
    embedding = _line({"model": "all-minilm-l6-v2", "input": ["a", "b"]}, url="/v1/embeddings")
    item = _checker("/v1/embeddings").check(Line(1, embedding))
    assert isinstance(item, BatchItem)
    assert item.embed is not None
    assert item.embed.texts == ("a", "b")
    response = _line({"model": "docent-extractive", "input": "hello"}, url="/v1/responses")
    item = _checker("/v1/responses").check(Line(1, response))
    assert isinstance(item, BatchItem)
    assert item.answer is not None
    assert item.answer.turn is None


def test_a_custom_id_may_come_once() -> None:
    checker = _checker()
    assert isinstance(checker.check(Line(1, _line())), BatchItem)
    problem = checker.check(Line(2, _line()))
    assert isinstance(problem, Problem)
    assert (problem.code, problem.line, problem.param) == ("duplicate_custom_id", 2, "custom_id")


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(content: bytes) -> None:
    assert isinstance(_checker().check(Line(1, content)), Problem)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("messages", "model", "tools", "filters", "stop"), _JSON)))
def test_no_body_makes_it_fail(body: dict[str, Any]) -> None:
    try:
        content = _line(body)
    except TypeError:  # an integer beyond 64 bits, or a lone surrogate, that this writer refuses
        return
    assert isinstance(_checker().check(Line(1, content)), Problem | BatchItem)
