"""Answers by others than the model asked for: another model's, or sentences of the passages where no model is there."""

from typing import Any

import orjson
import pytest

from libs.common import metrics
from libs.common.contracts.chat import Answer, AnswerRequest, ChatMessage, Shape
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.rag.embedder import Embedder
from libs.common.tasks.replies import DONE_BLOCK, Frame
from services.chat.extraction import EXTRACTIVE_MODEL, extracted
from services.chat.moderation import ModeratedCompleter, RuleModerator
from services.chat.pipeline import AnswerPipeline, renderer_of
from services.chat.ports import Completer, Delta, ModelsAwayError, Passage, Usage
from services.chat.recording import Recorder
from services.chat.rendering import Event
from services.gateway.streams import author_headers
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply
from tests.unit.chat.examples import RETRIEVAL, passage, question

_AWAY = ModelsAwayError(RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away.", retry_after_seconds=3))
_EXTRACT = "The harbour has 1 cranes. [1] The harbour has 2 cranes. [2]"


def _pipeline(completer: Completer, *passages: Passage) -> AnswerPipeline:
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    return AnswerPipeline(FakeRetriever(passages or [passage(1), passage(2)]), completer, unused)


def _question(
    shape: Shape = Shape.CHAT, text: str = "How many cranes has the harbour?", **changes: Any
) -> AnswerRequest:
    messages = (ChatMessage(role="user", content=text),)
    return question(shape, **{"retrieval": RETRIEVAL, "messages": messages, **changes})


def _text(body: dict[str, Any]) -> str:
    if body["object"] == "response":
        text = body["output"][-1]["content"][0]["text"]
    else:
        text = body["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def _events(reply: RecordingReply[Answer]) -> list[dict[str, Any]]:
    return [orjson.loads(block.partition(b"data: ")[2]) for block in reply.blocks if block != DONE_BLOCK]


@pytest.mark.parametrize("shape", [Shape.CHAT, Shape.RESPONSE])
async def test_without_a_model_the_passages_answer_and_it_is_said(shape: Shape) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(error=_AWAY)).answer(_question(shape), reply)
    assert reply.result is not None
    body = reply.result.body
    assert _text(body) == _EXTRACT
    assert (body["model"], body["degraded"]) == (EXTRACTIVE_MODEL, True)
    notes = orjson.dumps(body).decode()
    assert notes.count('"file_citation"') == 2
    last = _events(reply)[-1]
    assert (last.get("response") or last)["degraded"] is True


async def test_a_degraded_chat_stream_says_so_from_its_first_event_on() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(error=_AWAY)).answer(_question(), reply)
    events = _events(reply)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {(event["model"], event["degraded"]) for event in events} == {(EXTRACTIVE_MODEL, True)}
    assert (reply.model, reply.degraded) == (EXTRACTIVE_MODEL, True)


async def test_another_models_answer_names_it_and_is_not_degraded() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    before = metrics.REGISTRY.get_sample_value("docent_fallback_answers_total", {"model": "second"}) or 0
    pieces = (Delta("Four [1].", model="second"), Delta(finish_reason="stop", usage=Usage(7, 5), model="second"))
    await _pipeline(FakeCompleter(*pieces)).answer(_question(), reply)
    assert reply.result is not None
    assert {event["model"] for event in _events(reply)} == {"second"} == {reply.result.body["model"]}
    assert "degraded" not in reply.result.body
    assert (reply.model, reply.degraded) == ("second", False)
    assert metrics.REGISTRY.get_sample_value("docent_fallback_answers_total", {"model": "second"}) == before + 1


async def test_the_model_asked_for_is_named_where_it_answers() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(Delta("Four.", finish_reason="stop"))).answer(_question(), reply)
    assert reply.result is not None
    assert (reply.result.body["model"], reply.model, reply.degraded) == ("model", "model", False)


_JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "Who wrote Moby Dick?"},
        {"parameters": _JSON},
        {"parameters": {"tools": [{}], "tool_choice": "required"}},
        {"retrieval": None},
    ],
    ids=["no sentence answers", "JSON is wanted", "a tool call is wanted", "no passages"],
)
async def test_where_the_passages_cannot_answer_the_error_is_shown(changes: dict[str, Any]) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    with pytest.raises(RetryableError) as caught:
        await _pipeline(FakeCompleter(error=_AWAY)).answer(_question(**changes), reply)
    assert (caught.value.code, caught.value.retry_after_seconds) == (ErrorCode.LLM_UNAVAILABLE, 3)
    assert reply.blocks == []


_LATER = RetryableError(ErrorCode.LLM_UNAVAILABLE, "It broke off.")


@pytest.mark.parametrize(
    "completer",
    [
        FakeCompleter(Delta("Four"), error=_LATER),
        FakeCompleter(error=PermanentError(ErrorCode.LLM_AUTH, "No.")),
        FakeCompleter(error=RetryableError(ErrorCode.LLM_BAD_RESPONSE, "What?")),
    ],
    ids=["begun", "refused", "garbled"],
)
async def test_only_an_absent_model_is_stood_in_for(completer: FakeCompleter) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    with pytest.raises(PlatformError):
        await _pipeline(completer).answer(_question(), reply)


def _nobody_listens(_events: list[Event]) -> None:
    pass


async def test_jobs_rather_wait_for_a_model() -> None:
    request = _question(stream=False)
    with pytest.raises(ModelsAwayError):
        await _pipeline(FakeCompleter(error=_AWAY)).run(request, renderer_of(request), "tenant", _nobody_listens)


async def test_what_a_moderator_could_not_judge_is_not_answered_by_other_means() -> None:
    class AwayModerator(RuleModerator):
        async def moderate(self, texts: Any) -> Any:  # noqa: ARG002 - the port's
            raise _LATER

    for completer in (
        ModeratedCompleter(FakeCompleter(), AwayModerator(), answers=False),
        ModeratedCompleter(FakeCompleter(error=_AWAY), RuleModerator(), answers=True),
    ):
        reply: RecordingReply[Answer] = RecordingReply()
        with pytest.raises(RetryableError):
            await _pipeline(completer).answer(_question(), reply)
        assert reply.blocks == []


async def test_with_questions_moderated_alone_it_is_degraded_as_without() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    completer = ModeratedCompleter(FakeCompleter(error=_AWAY), RuleModerator(), answers=False)
    await _pipeline(completer).answer(_question(), reply)
    assert reply.result is not None
    assert reply.result.body["degraded"] is True


@pytest.mark.parametrize(
    ("completer", "kept"),
    [
        (FakeCompleter(Delta("Four.", finish_reason="stop")), True),
        (FakeCompleter(Delta("Four.", finish_reason="stop", model="second")), False),
        (FakeCompleter(error=_AWAY), False),
    ],
    ids=["asked", "another model", "degraded"],
)
async def test_only_the_asked_models_answer_is_kept_to_be_given_again(completer: FakeCompleter, kept: bool) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    recorder = Recorder(renderer_of(_question()))
    await _pipeline(completer).answer(_question(), reply, recorder)
    assert recorder.is_whole is kept


def test_a_documents_own_marks_are_no_citations_and_hidden_characters_stay_out() -> None:
    marked = passage(1, text="The harbour\u200b has four cranes [2]. It is old [12].")
    assert extracted(_question(), [marked]) == "The harbour has four cranes. [1]"


def test_frames_of_a_service_that_names_no_model_are_understood() -> None:
    frame = Frame.model_validate_json(b'{"kind": "events", "attempt": 1, "worker": "w", "sequence": 0, "count": 1}')
    assert (frame.model, frame.degraded) == ("", False)


@pytest.mark.parametrize("model", ["", "a b", "modèle", "x\r\nset-cookie: a=b", "x" * 257])
def test_a_name_that_cannot_stand_in_a_header_is_left_out(model: str) -> None:
    assert author_headers(model, degraded=True) == {"x-docent-degraded": "true"}
    assert author_headers("gpt-4o:mini/1", degraded=False) == {"x-docent-model": "gpt-4o:mini/1"}
