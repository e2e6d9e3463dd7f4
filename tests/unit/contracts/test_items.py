"""Items: what clients may send becomes full items, and full items become prompt messages."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.conversations import ConversationItem
from openai.types.responses import ResponseInputItem
from pydantic import TypeAdapter

from libs.common.contracts.chat import ChatMessage
from libs.common.contracts.items import messages_of, new_item_id, normalise_items
from libs.common.errors import ErrorCode, PermanentError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["type", "role", "content", "id", "status", "text", "call_id", "name", "arguments", "output", "summary", "queries"]
)
WORDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "item_reference",
        "user",
        "assistant",
        "input_text",
    ]
)


# Whatever the right type may be, one of these has it and most do not.
VALUES: st.SearchStrategy[Any] = st.sampled_from([None, "x", "low", 7, {}, [], ["x"], [{}], [7]])
TEXT_PART = {"type": "input_text", "text": "Look"}
FULL: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello"},
    {"role": "developer", "content": [TEXT_PART]},
    {"role": "user", "content": [TEXT_PART, {"type": "input_image", "image_url": "https://a/b.png"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png", "detail": "original"}]},
    {"role": "user", "content": [{"type": "input_file", "file_id": "file-1", "detail": "high"}]},
    {"role": "user", "content": [{"type": "input_file", "file_data": "data:,x", "filename": "a.txt"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]},
    {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "42"},
    {"type": "function_call_output", "call_id": "call_1", "output": [TEXT_PART]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"},
    {"type": "file_search_call", "queries": ["x"], "results": [{"file_id": "file-1", "score": 0.5, "text": "x"}]},
]
CONVERSATION_ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
RESPONSE_INPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseInputItem)


def _numbered() -> Callable[[str], str]:
    numbers = count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


def _user(text: str, item_id: str = "msg_1") -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": item_id, "status": "completed", "role": "user", "content": content}


def _call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{number}", "name": "look", "arguments": "{}"}


def _output(number: int, output: object = "42") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": output}


def _fault(*items: dict[str, Any]) -> tuple[ErrorCode, str | None]:
    with pytest.raises(PermanentError) as refused:
        normalise_items(items)
    return refused.value.code, refused.value.param


def _outcome(raw: list[dict[str, Any]]) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    try:
        return None, normalise_items(raw)
    except PermanentError as refused:
        return refused.param or "nothing named", ()


def test_a_string_is_a_message_of_the_user() -> None:
    assert normalise_items("Hello", new_id=_numbered()) == (_user("Hello"),)


def test_easy_messages_become_full_items_with_or_without_their_type() -> None:
    easy = [{"role": "user", "content": "Hello"}, {"type": "message", "role": "user", "content": "Again"}]
    assert normalise_items(easy, new_id=_numbered()) == (_user("Hello"), _user("Again", "msg_2"))


def test_what_the_assistant_said_becomes_output_text() -> None:
    (item,) = normalise_items([{"role": "assistant", "content": "Hello"}])
    assert item["content"] == [{"type": "output_text", "text": "Hello", "annotations": []}]


def test_images_and_files_are_kept() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    file = {"type": "input_file", "file_id": "file-1"}
    (item,) = normalise_items([{"role": "user", "content": [image, file]}])
    assert item["content"] == [image, file]


def test_an_image_without_detail_gets_openais_default() -> None:
    (item,) = normalise_items([{"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png"}]}])
    assert item["content"][0]["detail"] == "auto"


def test_calls_and_their_outputs_get_their_prefixes() -> None:
    call, output = normalise_items([_call(1), _output(1)], new_id=_numbered())
    assert call == {**_call(1), "id": "fc_1", "status": "completed"}
    assert output == {**_output(1), "id": "fco_2", "status": "completed"}


def test_new_ids_are_a_prefix_and_32_hexadecimal_digits() -> None:
    prefix, _, digits = new_item_id("msg").partition("_")
    assert prefix == "msg"
    assert len(digits) == 32
    assert int(digits, 16) >= 0


def test_full_items_stay_as_they_are() -> None:
    once = normalise_items([{"role": "assistant", "content": "Hi"}, _call(1), _output(1)])
    assert normalise_items(once) == once


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"content": "Hello"}, ErrorCode.MISSING_FIELD, "role"),
        ({"role": "critic", "content": "Hello"}, ErrorCode.INVALID_VALUE, "role"),
        ({"role": ["user"], "content": "Hello"}, ErrorCode.INVALID_VALUE, "role"),
        ({"role": "user"}, ErrorCode.MISSING_FIELD, "content"),
        ({"role": "user", "content": []}, ErrorCode.INVALID_VALUE, "content"),
        ({"role": "user", "content": 7}, ErrorCode.INVALID_VALUE, "content"),
        ({"role": "user", "content": ["Hello"]}, ErrorCode.INVALID_VALUE, "content[0]"),
        ({"role": "user", "content": [{"text": "Hello"}]}, ErrorCode.MISSING_FIELD, "content[0].type"),
        ({"role": "user", "content": [{"type": {}}]}, ErrorCode.INVALID_VALUE, "content[0].type"),
        (
            {"role": "user", "content": [{"type": "output_text", "text": ""}]},
            ErrorCode.INVALID_VALUE,
            "content[0].type",
        ),
        ({"role": "user", "content": [{"type": "input_text"}]}, ErrorCode.MISSING_FIELD, "content[0].text"),
        ({"role": "user", "content": [{"type": "input_text", "text": 7}]}, ErrorCode.INVALID_VALUE, "content[0].text"),
        ({"role": "user", "content": [{"type": "input_image"}]}, ErrorCode.MISSING_FIELD, "content[0].image_url"),
        ({"role": "user", "content": [{"type": "input_file"}]}, ErrorCode.MISSING_FIELD, "content[0].file_id"),
        ({"role": "user", "content": [None]}, ErrorCode.INVALID_VALUE, "content[0]"),
        ({"role": "user", "content": [[]]}, ErrorCode.INVALID_VALUE, "content[0]"),
        ({"role": "user", "content": {}}, ErrorCode.INVALID_VALUE, "content"),
        ({"role": {}, "content": "Hello"}, ErrorCode.INVALID_VALUE, "role"),
        ({"type": [], "content": "Hello"}, ErrorCode.MISSING_FIELD, "role"),
        ({"type": {"a": 1}, "role": "user", "content": "Hello"}, ErrorCode.INVALID_VALUE, "type"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": {"url": "u"}}]},
            ErrorCode.INVALID_VALUE,
            "content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "u", "detail": "fine"}]},
            ErrorCode.INVALID_VALUE,
            "content[0].detail",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_id": "file-1", "filename": 7}]},
            ErrorCode.INVALID_VALUE,
            "content[0].filename",
        ),
        (
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": [7]}]},
            ErrorCode.INVALID_VALUE,
            "content[0].annotations",
        ),
        ({"type": "file_search_call", "queries": [7]}, ErrorCode.INVALID_VALUE, "queries"),
        ({"type": "file_search_call", "queries": [], "results": 7}, ErrorCode.INVALID_VALUE, "results"),
        ({"type": "reasoning", "summary": [7]}, ErrorCode.INVALID_VALUE, "summary"),
        ({"type": "reasoning", "summary": [], "encrypted_content": 7}, ErrorCode.INVALID_VALUE, "encrypted_content"),
        ({"role": "user", "content": "Hello", "id": 7}, ErrorCode.INVALID_VALUE, "id"),
        ({"role": "user", "content": "Hello", "id": "x" * 65}, ErrorCode.INVALID_VALUE, "id"),
        ({"role": "user", "content": "Hello", "status": "done"}, ErrorCode.INVALID_VALUE, "status"),
        ({"type": "item_reference", "id": "msg_1"}, ErrorCode.INVALID_VALUE, "type"),
        ({"type": ["message"], "role": "user", "content": "Hello"}, ErrorCode.INVALID_VALUE, "type"),
        ({**_call(1), "arguments": {}}, ErrorCode.INVALID_VALUE, "arguments"),
        ({"type": "function_call", "name": "look", "arguments": "{}"}, ErrorCode.MISSING_FIELD, "call_id"),
        ({"type": "function_call_output", "call_id": "call_1"}, ErrorCode.MISSING_FIELD, "output"),
        (_output(1, [{"type": "input_text"}]), ErrorCode.MISSING_FIELD, "output[0].text"),
        ({"type": "reasoning", "summary": "text"}, ErrorCode.INVALID_VALUE, "summary"),
    ],
)
def test_a_fault_is_named_by_its_place(item: dict[str, Any], code: ErrorCode, param: str) -> None:
    good = {"role": "user", "content": "Hello"}
    assert _fault(good, item) == (code, f"input[1].{param}")


@pytest.mark.parametrize("raw", FULL, ids=str)
def test_full_items_are_what_the_sdk_knows(raw: dict[str, Any]) -> None:
    (item,) = normalise_items([raw])
    CONVERSATION_ITEM.validate_python(item)
    RESPONSE_INPUT_ITEM.validate_python(item)


@given(
    st.sampled_from(["input_text", "input_image", "input_file", "output_text"]),
    st.dictionaries(
        st.sampled_from(["file_id", "file_data", "file_url", "filename", "detail", "image_url", "text"]), VALUES
    ),
)
def test_a_part_that_is_accepted_is_one_that_the_sdk_knows(kind: str, fields: dict[str, Any]) -> None:
    role = "assistant" if kind == "output_text" else "user"
    given_parts = [{**fields, "type": kind}]
    fault, items = _outcome([{"role": role, "content": given_parts}])
    assert fault is None or fault.startswith("input[0].content[0].")
    for item in items:
        CONVERSATION_ITEM.validate_python(item)


def test_ten_thousand_items_are_taken_each_under_an_id_of_its_own() -> None:
    items = normalise_items([{"role": "user", "content": "Hello"}] * 10_000)
    assert len({item["id"] for item in items}) == len(messages_of(items)) == 10_000


def test_two_items_with_one_id_are_refused() -> None:
    assert _fault(_user("Hello"), _user("Again")) == (ErrorCode.INVALID_VALUE, "input[1].id")


@given(st.lists(st.dictionaries(FIELDS, WORDS | JSON, max_size=6), max_size=3))
def test_whatever_comes_is_either_refused_or_becomes_a_prompt(raw: list[dict[str, Any]]) -> None:
    fault, items = _outcome(raw)
    if fault is not None:
        assert fault.startswith("input[")
        return
    assert len(items) == len(raw)
    assert len({item["id"] for item in items}) == len(items)
    assert len(messages_of(items)) <= len(items)


@given(st.text())
def test_text_reaches_the_prompt_unchanged(text: str) -> None:
    assert messages_of(normalise_items(text)) == (ChatMessage(role="user", content=text),)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "Two"}]
    assert messages_of(normalise_items([{"role": "user", "content": parts}])) == (
        ChatMessage(role="user", content="One\nTwo"),
    )


def test_other_parts_get_the_names_that_upstreams_know() -> None:
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "https://a/b.png"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
    ]
    (message,) = messages_of(normalise_items([{"role": "user", "content": parts}]))
    assert message.content == (
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "auto"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
    )


def test_calls_made_at_once_are_one_message_and_later_ones_another() -> None:
    raw = [_call(1), _call(2), _output(1), _output(2, [{"type": "input_text", "text": "43"}]), _call(3)]
    first, one, two, last = messages_of(normalise_items(raw))
    assert [call["id"] for call in first.extra["tool_calls"]] == ["call_1", "call_2"]
    assert first.extra["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert (one.role, one.content, one.extra) == ("tool", "42", {"tool_call_id": "call_1"})
    assert (two.content, two.extra) == ("43", {"tool_call_id": "call_2"})
    assert [call["id"] for call in last.extra["tool_calls"]] == ["call_3"]


def test_searches_and_reasoning_are_no_part_of_a_prompt() -> None:
    raw: list[dict[str, Any]] = [
        {"type": "reasoning", "summary": []},
        {"type": "file_search_call", "queries": ["x"], "results": None},
    ]
    assert messages_of(normalise_items(raw)) == ()
