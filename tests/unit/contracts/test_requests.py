"""Request bodies: what is accepted, what is refused and where, and what of it goes upstream."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.chat_requests import ChatCompletionBody
from libs.common.contracts.requests import HINTS, MAX_EMBEDDING_INPUTS, EmbeddingBody
from libs.common.contracts.response_requests import ResponseBody
from libs.common.contracts.validation import parse_json, validated
from libs.common.errors import ErrorCode, PermanentError

INVALID, MISSING, UNKNOWN = ErrorCode.INVALID_VALUE, ErrorCode.MISSING_FIELD, ErrorCode.UNKNOWN_FIELD
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
RESPONSE: dict[str, Any] = {"model": "m", "input": "Why?"}
EMBEDDING: dict[str, Any] = {"model": "m", "input": "Why?"}
ROUTING = ("api_base", "base_url", "api_key", "headers", "extra_headers", "extra_body", "organization", "timeout")
UPSTREAM = {
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "verbosity", "web_search_options", "n",
}  # fmt: skip
PASSED = {"name", "tool_calls", "tool_call_id", "refusal"}

# Numbers that orjson gives: of at most 64 bits, and never NaN.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CHAT_FIELDS = st.sampled_from(sorted({*ChatCompletionBody.model_fields, *ROUTING}))


def _chat(**changes: Any) -> AnswerRequest:
    return validated(ChatCompletionBody, {**CHAT, **changes}).to_answer()


def _response(**changes: Any) -> AnswerRequest:
    return validated(ResponseBody, {**RESPONSE, **changes}).to_answer("m")


def _message(**fields: Any) -> AnswerRequest:
    return _chat(messages=[{"role": "user", "content": "Why?", **fields}])


def _file_search(*store_ids: str, **options: Any) -> dict[str, Any]:
    return {"type": "file_search", "vector_store_ids": list(store_ids), **options}


def _accepted(body: dict[str, Any]) -> AnswerRequest | None:
    try:
        return validated(ChatCompletionBody, body).to_answer()
    except PermanentError:
        return None


def _fault(model: Any, body: dict[str, Any]) -> tuple[ErrorCode, str | None]:
    with pytest.raises(PermanentError) as refused:
        validated(model, body)
    return refused.value.code, refused.value.param


# Chat completions


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temprature": 1}, UNKNOWN, "temprature"),
        *[({field: "http://elsewhere"}, UNKNOWN, field) for field in ROUTING],
        ({"stream_options": {"usage": True}}, UNKNOWN, "stream_options.usage"),
        ({"ranking_options": {"hybrid_search": {"weight": 1}}}, UNKNOWN, "ranking_options.hybrid_search.weight"),
        ({"messages": []}, INVALID, "messages"),
        ({"messages": "Why?"}, INVALID, "messages"),
        ({"messages": [None]}, INVALID, "messages[0]"),
        ({"messages": [{"content": "Why?"}]}, MISSING, "messages[0].role"),
        ({"messages": [{"role": "critic", "content": "Why?"}]}, INVALID, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Why?"}]}, INVALID, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, INVALID, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["Why?"]}]}, INVALID, "messages[0].content"),
        ({"messages": CHAT["messages"] * 2049}, INVALID, "messages"),
        ({"model": ""}, INVALID, "model"),
        ({"model": "m" * 257}, INVALID, "model"),
        ({"model": None}, INVALID, "model"),
        ({"temperature": 2.01}, INVALID, "temperature"),
        ({"temperature": -0.01}, INVALID, "temperature"),
        ({"temperature": math.nan}, INVALID, "temperature"),
        ({"temperature": math.inf}, INVALID, "temperature"),
        ({"temperature": "hot"}, INVALID, "temperature"),
        ({"top_p": 1.01}, INVALID, "top_p"),
        ({"top_p": math.nan}, INVALID, "top_p"),
        ({"presence_penalty": -2.01}, INVALID, "presence_penalty"),
        ({"frequency_penalty": math.nan}, INVALID, "frequency_penalty"),
        ({"max_tokens": -1}, INVALID, "max_tokens"),
        ({"max_tokens": 10**30}, INVALID, "max_tokens"),
        ({"max_completion_tokens": 1.5}, INVALID, "max_completion_tokens"),
        ({"top_logprobs": 21}, INVALID, "top_logprobs"),
        ({"n": 2}, INVALID, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, INVALID, "stop"),
        ({"stop": [1]}, INVALID, "stop"),
        ({"tools": {}}, INVALID, "tools"),
        ({"tools": ["look"]}, INVALID, "tools[0]"),
        ({"tools": [None]}, INVALID, "tools[0]"),
        ({"tool_choice": 7}, INVALID, "tool_choice"),
        ({"response_format": "json"}, INVALID, "response_format"),
        ({"response_format": {"type": "json_schema"}}, INVALID, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, MISSING, "response_format.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": []}}},
            INVALID,
            "response_format.schema",
        ),
        ({"modalities": ["audio"]}, INVALID, "modalities[0]"),
        ({"audio": "wav"}, INVALID, "audio"),
        ({"functions": [{"description": "x"}]}, MISSING, "functions[0].name"),
        ({"functions": [{"name": "look", "url": "x"}]}, UNKNOWN, "functions[0].url"),
        ({"function_call": {"name": ""}}, INVALID, "function_call"),
        ({"moderation": {"model": "m", "policy": {"output": {"mode": "block"}}}}, INVALID, "moderation.policy.output"),
        ({"moderation": {}}, MISSING, "moderation.model"),
        ({"prediction": "x"}, INVALID, "prediction"),
        ({"service_tier": "x" * 33}, INVALID, "service_tier"),
        ({"metadata": {"a": 1}}, INVALID, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, INVALID, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, INVALID, "metadata"),
        ({"user": "x" * 513}, INVALID, "user"),
        ({"vector_store_ids": []}, INVALID, "vector_store_ids"),
        ({"vector_store_ids": ["a"] * 17}, INVALID, "vector_store_ids"),
        ({"vector_store_ids": [""]}, INVALID, "vector_store_ids[0]"),
        ({"max_num_results": 0}, INVALID, "max_num_results"),
        ({"max_num_results": 51}, INVALID, "max_num_results"),
        ({"ranking_options": {"score_threshold": 1.01}}, INVALID, "ranking_options.score_threshold"),
    ],
)
def test_a_bad_chat_body_is_refused_at_its_fault(change: dict[str, Any], code: ErrorCode, param: str) -> None:
    fault, found_param = _fault(ChatCompletionBody, {**CHAT, **change})
    assert fault is code
    # A union's fault is named by its field; the place within it depends on the branch that came nearest.
    assert (found_param or "").startswith(param)


@pytest.mark.parametrize("field", ["model", "messages"])
def test_what_a_chat_body_lacks_is_named(field: str) -> None:
    lacking = {name: value for name, value in CHAT.items() if name != field}
    assert _fault(ChatCompletionBody, lacking) == (MISSING, field)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 1},
        {"presence_penalty": -2},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"web_search_options": {"search_context_size": "low"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
        {"max_tokens": 10_000_000},
        {"seed": -(2**63)},
        {"stop": "."},
        {"stop": ["a", "b", "c", "d"]},
        {"n": 1},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_options_at_their_bounds_go_upstream_as_they_were_given(change: dict[str, Any]) -> None:
    assert _chat(**change).parameters == change


def test_only_what_the_upstream_obeys_is_among_the_parameters() -> None:
    kept_here: dict[str, Any] = {"store": False, "metadata": {"a": "b"}, "stream": True, "audio": {"format": "wav"}}
    kept_here |= {"modalities": ["text"], "moderation": {"model": "m", "policy": {"input": {"mode": "score"}}}}
    retrieval = {"vector_store_ids": ["vs_1"], "max_num_results": 3, "ranking_options": {"score_threshold": 0.5}}
    answer = _chat(**kept_here, **retrieval, stream_options={"include_usage": True})
    assert (answer.parameters, answer.hints) == ({}, {})
    assert (answer.stream, answer.include_usage) == (True, True)
    assert answer.retrieval is not None
    assert (answer.retrieval.max_num_results, answer.retrieval.score_threshold) == (3, 0.5)


HINTED: dict[str, Any] = {
    "user": "u",
    "service_tier": "flex",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}


def test_what_changes_nothing_of_an_answer_is_told_apart() -> None:
    prediction = {"type": "content", "content": "x"}
    assert _chat(**HINTED, prediction=prediction, seed=1).hints == {**HINTED, "prediction": prediction}
    assert _response(**HINTED).hints == HINTED
    assert _response(**HINTED).parameters == {}


def test_functions_go_upstream_as_tools() -> None:
    function = {"name": "look", "parameters": {"type": "object"}}
    answer = _chat(functions=[function], function_call={"name": "look"})
    assert answer.calls_functions
    assert answer.parameters == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }
    assert _chat(functions=[function], function_call="none").parameters["tool_choice"] == "none"
    assert not _chat(tools=[{"type": "function", "function": function}]).calls_functions


def test_calls_of_functions_and_what_they_gave_are_told_as_tools() -> None:
    call = {"name": "look", "arguments": "{}"}
    asked, called, gave = _chat(
        messages=[
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "look", "content": "Rain."},
        ]
    ).messages
    assert (asked.role, asked.extra) == ("user", {})
    (tool_call,) = called.extra["tool_calls"]
    assert tool_call["function"] == call
    assert (gave.role, gave.content, gave.extra) == ("tool", "Rain.", {"tool_call_id": tool_call["id"]})


def test_a_mirrored_call_of_ours_can_be_sent_back() -> None:
    call = {"name": "look", "arguments": "{}"}
    tool_call = {"id": "call_9", "type": "function", "function": call}
    ours = {"role": "assistant", "content": None, "tool_calls": [tool_call], "function_call": call}
    called, gave = _chat(messages=[ours, {"role": "function", "name": "look", "content": "Rain."}]).messages
    assert called.extra == {"tool_calls": [tool_call]}
    assert gave.extra == {"tool_call_id": "call_9"}


def test_a_completion_is_stored_only_on_demand() -> None:
    assert _chat().turn is None
    stored = _chat(store=True, metadata={"a": "b"})
    assert stored.turn is not None
    assert stored.echo == {"metadata": {"a": "b"}}


def test_without_stream_options_no_usage_is_asked_for() -> None:
    assert not _chat(stream=True).include_usage
    assert not _chat(stream=True, stream_options={"include_obfuscation": True}).include_usage


def test_a_batch_overrides_the_stream_of_its_bodies() -> None:
    assert not validated(ChatCompletionBody, {**CHAT, "stream": True}).to_answer(stream=False).stream
    assert not validated(ResponseBody, {**RESPONSE, "stream": True}).to_answer("m", stream=False).stream


def test_fields_of_tools_and_names_go_upstream_and_no_others() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    passed: dict[str, Any] = {
        "name": "ada",
        "tool_calls": [call],
        "tool_call_id": "call_1",
        "refusal": "No.",
    }
    dropped = dict.fromkeys(ROUTING, "http://elsewhere") | {"audio": {"id": "a"}, "annotations": [], "x": 1}
    assert _message(**passed, **dropped).messages[0].extra == passed


def test_a_message_of_ours_can_be_sent_back_whole() -> None:
    ours = {"role": "assistant", "content": "Because.", "refusal": None, "annotations": [{"type": "file_citation"}]}
    (message,) = _chat(messages=[ours]).messages
    assert (message.role, message.content, message.extra) == ("assistant", "Because.", {})


@given(CHAT_FIELDS, JSON, st.dictionaries(st.sampled_from(["audio", "name", "tool_calls", *ROUTING]), JSON))
def test_whatever_comes_is_refused_or_travels_with_known_parameters_only(
    field: str, value: object, extra: dict[str, Any]
) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "Why?", **extra}], field: value}
    answer = _accepted(body)
    if answer is None:
        return
    assert set(answer.parameters) <= UPSTREAM
    assert set(answer.hints) <= set(HINTS)
    assert all(set(message.extra) <= PASSED for message in answer.messages)
    assert AnswerRequest.model_validate_json(answer.model_dump_json()).messages == answer.messages


# Responses


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"inputs": "Why?"}, UNKNOWN, "inputs"),
        *[({field: "http://elsewhere"}, UNKNOWN, field) for field in ROUTING],
        ({"input": None}, INVALID, "input"),
        ({"input": {"role": "user"}}, INVALID, "input"),
        ({"input": [7]}, INVALID, "input"),
        ({"instructions": 7}, INVALID, "instructions"),
        ({"conversation": {"id": ""}}, INVALID, "conversation"),
        ({"conversation": {}}, INVALID, "conversation"),
        ({"conversation": 7}, INVALID, "conversation"),
        ({"previous_response_id": ""}, INVALID, "previous_response_id"),
        ({"previous_response_id": "r" * 129}, INVALID, "previous_response_id"),
        ({"tools": None}, INVALID, "tools"),
        ({"tools": [7]}, INVALID, "tools[0]"),
        ({"tools": [{"type": "file_search"}]}, MISSING, "tools.vector_store_ids"),
        ({"tools": [_file_search()]}, INVALID, "tools.vector_store_ids"),
        ({"tools": [_file_search("vs_1", headers={})]}, UNKNOWN, "tools.headers"),
        ({"tools": [_file_search("vs_1", max_num_results=51)]}, INVALID, "tools.max_num_results"),
        ({"include": "file_search_call.results"}, INVALID, "include"),
        ({"text": "json"}, INVALID, "text"),
        ({"max_output_tokens": 0}, INVALID, "max_output_tokens"),
        ({"max_tool_calls": -1}, INVALID, "max_tool_calls"),
        ({"model": ""}, INVALID, "model"),
        ({"prompt": {"id": "pmpt_1"}}, INVALID, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, INVALID, "context_management"),
        ({"moderation": {"model": "m", "policy": {"input": {"mode": "block"}}}}, INVALID, "moderation.policy.input"),
        ({"background_options": {"window": "soon"}}, UNKNOWN, "background_options.window"),
        ({"reasoning": {"effort": 7}}, INVALID, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, MISSING, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": "x"}}}, INVALID, "text.format.schema"),
        ({"max_output_tokens": 10**30}, INVALID, "max_output_tokens"),
        ({"truncation": "middle"}, INVALID, "truncation"),
        ({"temperature": math.nan}, INVALID, "temperature"),
    ],
)
def test_a_bad_response_body_is_refused_at_its_fault(change: dict[str, Any], code: ErrorCode, param: str) -> None:
    model_fault, found_param = _fault(ResponseBody, {**RESPONSE, **change})
    assert model_fault is code
    # A union's fault is named by its field; the place within it depends on the branch that came nearest.
    assert (found_param or "").startswith(param)


def test_a_conversation_is_named_by_string_or_object() -> None:
    for conversation in ("conv_1", {"id": "conv_1"}):
        turn = _response(conversation=conversation).turn
        assert turn is not None
        assert turn.conversation_id == "conv_1"


def test_an_answer_is_stored_unless_that_is_declined() -> None:
    stored = _response().turn
    assert stored is not None
    assert [item["content"][0]["text"] for item in stored.input_items] == ["Why?"]
    assert _response(store=False).turn is None
    # A conversation has its turn closed in any case.
    assert _response(store=False, conversation="conv_1").turn is not None


def test_instructions_come_first_and_history_is_left_to_others() -> None:
    answer = _response(instructions="Be brief.", previous_response_id="resp_0")
    assert [(message.role, message.content) for message in answer.messages] == [
        ("developer", "Be brief."),
        ("user", "Why?"),
    ]


def test_file_searches_are_merged_each_store_once() -> None:
    searches = [_file_search("vs_1", "vs_2", max_num_results=3), _file_search("vs_2", "vs_3", max_num_results=9)]
    retrieval = _response(tools=searches).retrieval
    assert retrieval is not None
    assert (retrieval.vector_store_ids, retrieval.max_num_results) == (("vs_1", "vs_2", "vs_3"), 3)


def test_without_a_file_search_nothing_is_retrieved() -> None:
    assert _response(tools=[{"type": "function", "name": "look"}]).retrieval is None


def test_of_tools_only_functions_go_upstream_by_their_known_fields() -> None:
    function = {"type": "function", "name": "look", "parameters": {}, "strict": True, "base_url": "http://elsewhere"}
    answer = _response(tools=[function, _file_search("vs_1")], tool_choice="required", max_output_tokens=5)
    upstream = {"type": "function", "function": {"name": "look", "parameters": {}, "strict": True}}
    assert answer.parameters == {"max_completion_tokens": 5, "tools": [upstream], "tool_choice": "required"}


def test_tools_that_are_not_offered_are_refused() -> None:
    hosted = {"type": "mcp", "server_url": "http://elsewhere", "headers": {"authorization": "x"}}
    with pytest.raises(PermanentError) as refused:
        _response(tools=[hosted])
    assert refused.value.param == "tools"


def test_a_function_choice_goes_upstream_in_the_chat_shape() -> None:
    answer = _response(tools=[{"type": "function", "name": "look"}], tool_choice={"type": "function", "name": "look"})
    assert answer.parameters["tool_choice"] == {"type": "function", "function": {"name": "look"}}


def test_a_choice_among_no_functions_stays_here() -> None:
    assert _response(tools=[_file_search("vs_1")], tool_choice="required").parameters == {}


def test_a_text_format_becomes_the_upstreams_response_format() -> None:
    schema = {"type": "json_schema", "name": "fact", "schema": {"type": "object"}, "headers": {}}
    assert _response(text={"format": {"type": "json_object"}}).parameters == {
        "response_format": {"type": "json_object"}
    }
    assert _response(text={"format": schema}).parameters == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "fact", "schema": {"type": "object"}},
        }
    }


@pytest.mark.parametrize("text_format", ["text", 7, ["json_object"]])
def test_a_text_format_that_is_no_object_is_refused(text_format: object) -> None:
    with pytest.raises(PermanentError):
        _response(text={"format": text_format})


def test_a_response_without_input_asks_nothing() -> None:
    (message,) = validated(ResponseBody, {}).to_answer("first").messages
    assert (message.role, message.content) == ("user", "")


def test_effort_and_verbosity_go_upstream() -> None:
    answer = _response(reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"})
    assert answer.parameters == {"reasoning_effort": "low", "verbosity": "low"}
    assert answer.echo["reasoning"] == {"effort": "low", "summary": "auto"}


def test_results_of_searches_are_included_on_demand() -> None:
    assert _response(include=["file_search_call.results"]).include_results
    assert not _response(include=["reasoning.encrypted_content"]).include_results


# Embeddings


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": None}, "input"),
        ({"input": {"text": "Why?"}}, "input"),
        ({"input": ["x"] * (MAX_EMBEDDING_INPUTS + 1)}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 10**30}, "dimensions"),
        ({"user": "x" * 513}, "user"),
    ],
)
def test_a_bad_embedding_body_is_refused_at_its_fault(change: dict[str, Any], param: str) -> None:
    code, found_param = _fault(EmbeddingBody, {**EMBEDDING, **change})
    assert code is INVALID
    assert (found_param or "").startswith(param)


@pytest.mark.parametrize("field", ROUTING)
def test_an_embedding_body_names_no_upstream(field: str) -> None:
    assert _fault(EmbeddingBody, {**EMBEDDING, field: "http://elsewhere"}) == (UNKNOWN, field)


@given(st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_texts_to_embed_stay_in_order(texts: str | list[str]) -> None:
    request = validated(EmbeddingBody, {**EMBEDDING, "input": texts}).to_embed()
    assert request.texts == ((texts,) if isinstance(texts, str) else tuple(texts))


def test_as_many_texts_as_allowed_are_taken() -> None:
    body = {**EMBEDDING, "input": ["x"] * MAX_EMBEDDING_INPUTS}
    assert len(validated(EmbeddingBody, body).to_embed().texts) == MAX_EMBEDDING_INPUTS


# JSON itself


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"temperature": NaN}', INVALID),
        (b'{"temperature": Infinity}', INVALID),
        (b'{"model": "\\ud800"}', ErrorCode.INVALID_UNICODE),
        (b'{"model": "\xff"}', ErrorCode.INVALID_UNICODE),
        (b'{"model": "\\u0000"}', ErrorCode.INVALID_UNICODE),
        (b'{"\\u0000": 1}', ErrorCode.INVALID_UNICODE),
        (b"[" * 65 + b"]" * 65, INVALID),
        (b"[" * 5000 + b"]" * 5000, INVALID),
        (b'{"temperature": 1e999}', INVALID),
        (b'{"temperature": NaN', ErrorCode.INVALID_JSON),
        (b"", ErrorCode.INVALID_JSON),
    ],
)
def test_json_that_no_body_may_hold_is_refused(raw: bytes, code: ErrorCode) -> None:
    with pytest.raises(PermanentError) as refused:
        parse_json(raw)
    assert refused.value.code is code
