"""Answers as OpenAI objects, read by the official SDK's own types and stream helper."""

from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from libs.common.contracts.chat import AnswerRequest, Shape, Turn
from services.chat.chat_rendering import ChatRenderer
from services.chat.citations import Citation
from services.chat.ports import Usage
from services.chat.rendering import Event, Renderer, ToolCalls
from services.chat.response_rendering import ResponseRenderer
from tests.unit.chat.examples import passage, question

_STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_USAGE = Usage(input_tokens=7, output_tokens=5, cached_tokens=2)
_FRAGMENTS: list[dict[str, Any]] = [
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "tide", "arguments": ""}},
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "crane", "arguments": '{"n'}},
    {"index": 0, "function": {"arguments": '": 4}'}},
    {"index": 1, "function": {"arguments": "{}"}},
]


def _course(
    renderer: Renderer,
    *,
    texts: Sequence[str] = ("Four cranes ", "[1]", "."),
    search: bool = True,
    calls: bool = False,
    finish_reason: str = "stop",
) -> list[Event]:
    """Everything an answer can meet, in the pipeline's order."""
    events = renderer.begin()
    if search:
        events += renderer.searching()
        events += renderer.found(["How many cranes?"], [passage(1), passage(2)])
    for text in texts:
        events += renderer.text(text)
        if text == "[1]":
            events += renderer.cite(Citation(1, 12, passage(1)))
    if calls:
        for fragment in _FRAGMENTS:
            events += renderer.tool_calls([fragment])
    return events + renderer.end(finish_reason, _USAGE) + renderer.completed()


def _without_annotations(body: dict[str, Any]) -> dict[str, Any]:
    # The SDK knows web citations alone in chat completions; it passes ours through without validation.
    copy: dict[str, Any] = orjson.loads(orjson.dumps(body))
    for choice in copy["choices"]:
        choice.get("message", {}).pop("annotations", None)
    return copy


def _chunks(events: Sequence[Event]) -> list[ChatCompletionChunk]:
    assert all(name is None for name, _ in events)
    return [ChatCompletionChunk.model_validate_json(orjson.dumps(data), strict=True) for _, data in events]


def _completion(body: dict[str, Any]) -> ChatCompletion:
    return ChatCompletion.model_validate_json(orjson.dumps(_without_annotations(body)), strict=True)


def test_a_chat_answer_in_chunks_and_whole() -> None:
    renderer = ChatRenderer(question(Shape.CHAT, include_usage=True))
    events = _course(renderer)
    *chunks, last = _chunks(events)
    assert chunks[0].choices[0].delta.role == "assistant"
    completion = _completion(renderer.body())
    assert completion.choices[0].message.content == "Four cranes [1]."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Four cranes [1]."
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {(chunk.id, chunk.created, chunk.model) for chunk in [*chunks, last]} == {
        (completion.id, completion.created, completion.model)
    }
    assert last.choices == []
    assert last.usage == completion.usage
    assert last.usage is not None
    assert last.usage.total_tokens == 12
    annotations = [found for _, data in events for choice in data["choices"] for found in _annotations(choice)]
    assert annotations == renderer.body()["choices"][0]["message"]["annotations"]
    assert [annotation["index"] for annotation in annotations] == [12]


def _annotations(choice: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = choice["delta"].get("annotations", [])
    return found


def test_usage_is_sent_only_where_it_is_asked_for() -> None:
    assert all(chunk.usage is None for chunk in _chunks(_course(ChatRenderer(question(Shape.CHAT)))))


def test_tool_calls_of_a_chat_answer_are_streamed_and_merged() -> None:
    renderer = ChatRenderer(question(Shape.CHAT))
    chunks = _chunks(_course(renderer, texts=(), search=False, calls=True, finish_reason="tool_calls"))
    streamed = [call.index for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert streamed == [1, 0, 0, 1]
    choice = _completion(renderer.body()).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = [call.to_dict() for call in choice.message.tool_calls or []]
    assert calls == [
        {"id": "call_a", "type": "function", "function": {"name": "crane", "arguments": '{"n": 4}'}},
        {"id": "call_b", "type": "function", "function": {"name": "tide", "arguments": "{}"}},
    ]


def test_fragments_without_an_index_or_function_are_merged_too() -> None:
    calls = ToolCalls()
    assert calls.all() == []
    assert calls.add({"id": "a", "function": {"name": "f"}}) == 0
    assert calls.add({"function": {"arguments": "{"}}) == 0
    assert calls.add({"index": 0, "id": None, "function": None}) == 0
    assert calls.all() == [{"id": "a", "name": "f", "arguments": "{"}]


def _response_events(events: Sequence[Event]) -> list[Any]:
    assert [name for name, _ in events] == [data["type"] for _, data in events]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    return [_STREAM_EVENT.validate_json(orjson.dumps(data), strict=True) for _, data in events]


_COURSES: list[dict[str, Any]] = [
    {},
    {"search": False},
    {"texts": ()},
    {"calls": True},
    {"texts": (), "search": False, "calls": True, "finish_reason": "tool_calls"},
]


@pytest.mark.parametrize("include_results", [False, True])
@pytest.mark.parametrize("course", _COURSES)
def test_a_response_is_what_the_sdks_stream_helper_accumulates(course: dict[str, Any], include_results: bool) -> None:
    renderer = ResponseRenderer(question(include_results=include_results))
    events = _response_events(_course(renderer, **course))
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(event)
    final = Response.model_validate_json(orjson.dumps(renderer.body()), strict=True)
    assert events[-1].type == "response.completed"
    assert events[-1].response == final
    accumulated = state._completed_response
    assert accumulated is not None
    assert accumulated.output_text == final.output_text == "".join(course.get("texts", ("Four cranes [1].",)))
    assert [item.to_dict()["id"] for item in accumulated.output] == [item["id"] for item in renderer.body()["output"]]
    assert _accumulated(events) == [item.to_dict() for item in final.output]


def _accumulated(events: Sequence[Any]) -> list[dict[str, Any]]:
    """The output as the items' last events give it, each added and done once and in place."""
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    done = [event for event in events if event.type == "response.output_item.done"]
    assert added == [event.output_index for event in done] == list(range(len(done)))
    return [event.item.to_dict() for event in done]


def test_the_order_of_a_responses_events() -> None:
    events = _course(ResponseRenderer(question()), calls=True)
    assert [name for name, _ in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.annotation.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        *[
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
        * 2,
        "response.completed",
    ]


def _whole(request: AnswerRequest, **course: Any) -> dict[str, Any]:
    renderer = ResponseRenderer(request)
    _course(renderer, **course)
    return renderer.body()


def test_a_responses_output() -> None:
    search, message, *calls = _whole(question(), calls=True)["output"]
    assert (search["queries"], search["results"]) == (["How many cranes?"], None)
    [part] = message["content"]
    assert part["text"] == "Four cranes [1]."
    assert [note["file_id"] for note in part["annotations"]] == ["file-1"]
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_a", "crane", '{"n": 4}'),
        ("call_b", "tide", "{}"),
    ]
    assert {item["status"] for item in (search, message, *calls)} == {"completed"}
    assert len({item["id"] for item in (search, message, *calls)}) == 4


def test_search_results_are_shown_where_they_are_asked_for() -> None:
    results = _whole(question(include_results=True))["output"][0]["results"]
    assert results[0] == {
        "file_id": "file-1",
        "filename": "file 1.pdf",
        "score": 0.9,
        "text": "The harbour has 1 cranes.",
        "attributes": {"year": 2026.0},
        "vector_store_id": "vs_one",
    }
    assert len(results) == 2


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_cut_short_is_incomplete(finish_reason: str, reason: str) -> None:
    renderer = ResponseRenderer(question())
    events = _response_events(_course(renderer, calls=True, finish_reason=finish_reason))
    assert events[-1].type == "response.incomplete"
    final = Response.model_validate(renderer.body())
    assert events[-1].response == final
    assert final.status == "incomplete"
    assert final.incomplete_details is not None
    assert final.incomplete_details.reason == reason
    statuses = [cast("Any", item).status for item in final.output]
    assert statuses == ["completed", "incomplete", "incomplete", "incomplete"]


def test_a_response_repeats_its_request() -> None:
    echo = {"metadata": {"a": "b"}, "temperature": 0.5, "tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}
    turn = Turn(conversation_id="conv_1", previous_response_id="resp_0", token=3)
    body = _whole(question(echo=echo, turn=turn))
    Response.model_validate(body)
    assert {key: body[key] for key in echo} == echo
    assert (body["conversation"], body["previous_response_id"]) == ({"id": "conv_1"}, "resp_0")
    assert (body["store"], body["usage"]["total_tokens"]) == (True, 12)


def test_earlier_events_do_not_change_with_later_ones() -> None:
    renderer = ResponseRenderer(question(include_results=True))
    seen: list[tuple[Event, bytes]] = []
    for step in (
        renderer.begin,
        renderer.searching,
        lambda: renderer.found(["q"], [passage()]),
        lambda: renderer.text("[1]"),
        lambda: renderer.cite(Citation(1, 0, passage())),
        lambda: renderer.text(" more"),
        lambda: renderer.end("stop", _USAGE),
        renderer.completed,
    ):
        seen += [(event, orjson.dumps(event[1])) for event in step()]
    assert all(orjson.dumps(data) == before for (_, data), before in seen)
