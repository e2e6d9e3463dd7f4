import asyncio
from typing import Any

import orjson
import pytest

from libs.common.contracts.chat import Answer, ChatMessage, SearchReply, SearchRequest, Shape, Turn
from libs.common.contracts.conversations import ABANDON_TURN, CLOSE_TURN, AbandonTurn, CloseTurn
from libs.common.errors import ErrorCode, PermanentError, RetryableError, not_found
from libs.common.rag.embedder import Embedder
from libs.common.tasks.replies import DONE_BLOCK
from services.chat.pipeline import NOT_IN_DOCUMENTS, AnswerPipeline
from services.chat.ports import Delta, ForAnswer, Usage
from services.chat.prompt import INSTRUCTIONS
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply
from tests.unit.chat.examples import RETRIEVAL, passage, question

_ANSWER = (
    Delta(),
    Delta("Four "),
    Delta("cranes ["),
    Delta("1] [9"),
    Delta("]."),
    Delta(finish_reason="stop"),
    Delta(usage=Usage(7, 5)),
)
_CONVERSATION = Turn(conversation_id="conv_1", token=3)


def _pipeline(completer: FakeCompleter, retriever: FakeRetriever | None = None) -> AnswerPipeline:
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    return AnswerPipeline(retriever or FakeRetriever([passage(1), passage(2)]), completer, unused)


def _events(reply: RecordingReply[Answer]) -> list[dict[str, Any]]:
    blocks = [block for block in reply.blocks if block != DONE_BLOCK]
    assert all(block.endswith(b"\n\n") and block.count(b"\n\n") == 1 for block in blocks)
    return [orjson.loads(block.partition(b"data: ")[2]) for block in blocks]


async def test_a_streamed_chat_answer() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    retriever, completer = FakeRetriever([passage(1)]), FakeCompleter(*_ANSWER)
    request = question(Shape.CHAT, retrieval=RETRIEVAL, include_usage=True)
    await _pipeline(completer, retriever).answer(request, reply)
    assert retriever.asked == [("tenant", ("How many cranes?",), RETRIEVAL)]
    assert [prompt[0]["content"].startswith(INSTRUCTIONS) for prompt in completer.prompts] == [True]
    assert reply.blocks[-1] == DONE_BLOCK
    events = _events(reply)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "Four cranes [1]."
    assert reply.result is not None
    body = reply.result.body
    assert body["choices"][0]["message"]["content"] == "Four cranes [1]."
    assert [note["number"] for note in body["choices"][0]["message"]["annotations"]] == [1]
    assert events[-1]["usage"] == body["usage"]


async def test_a_whole_answer_has_no_events() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(*_ANSWER)).answer(question(retrieval=RETRIEVAL, stream=False), reply)
    assert reply.blocks == []
    assert reply.result is not None
    assert reply.result.body["status"] == "completed"


async def test_a_streamed_response_ends_with_the_object_it_is_answered_by() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(*_ANSWER)).answer(question(retrieval=RETRIEVAL), reply)
    events = _events(reply)
    assert DONE_BLOCK not in reply.blocks
    assert reply.blocks[0].startswith(b"event: response.created\n")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert reply.result is not None
    assert events[-1]["response"] == reply.result.body
    assert (reply.passed_on, reply.posted) == (None, [])


async def test_without_retrieval_nothing_is_searched_and_brackets_stay() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    retriever, completer = FakeRetriever(), FakeCompleter(Delta("a[0]", finish_reason="stop"))
    await _pipeline(completer, retriever).answer(question(Shape.CHAT), reply)
    assert retriever.asked == []
    assert completer.prompts == [[{"role": "user", "content": "How many cranes?"}]]
    assert reply.result is not None
    assert reply.result.body["choices"][0]["message"]["content"] == "a[0]"


@pytest.mark.parametrize("asked", ["How many cranes?", " \n", ""])
@pytest.mark.parametrize("shape", [Shape.CHAT, Shape.RESPONSE])
async def test_without_passages_the_model_is_not_asked(shape: Shape, asked: str) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    completer, retriever = FakeCompleter(*_ANSWER), FakeRetriever([])
    messages = (ChatMessage(role="user", content=asked),)
    await _pipeline(completer, retriever).answer(question(shape, retrieval=RETRIEVAL, messages=messages), reply)
    assert completer.prompts == []
    assert len(retriever.asked) == bool(asked.strip())
    assert reply.result is not None
    assert NOT_IN_DOCUMENTS in orjson.dumps(reply.result.body).decode()
    assert any(NOT_IN_DOCUMENTS.encode() in block for block in reply.blocks)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stored_answer_is_passed_on_before_it_counts_as_completed(stream: bool) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    request = question(turn=_CONVERSATION, retrieval=RETRIEVAL, stream=stream)
    await _pipeline(FakeCompleter(*_ANSWER)).answer(request, reply)
    assert (reply.result, reply.posted) == (None, [])
    assert reply.passed_on is not None
    name, closing = reply.passed_on
    assert name == CLOSE_TURN.name
    assert isinstance(closing, CloseTurn)
    assert closing.request == request
    assert closing.response["status"] == "completed"
    events = _events(reply)
    assert closing.next_sequence == len(events)
    assert all(event["type"] != "response.completed" for event in events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


_FAILURES = [
    RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away."),
    PermanentError(ErrorCode.LLM_AUTH, "No."),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", _FAILURES, ids=lambda error: type(error).__name__)
async def test_a_failed_answer_frees_its_conversation(error: BaseException) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    completer = FakeCompleter(Delta("Four"), error=error)
    with pytest.raises(type(error)) as caught:
        await _pipeline(completer).answer(question(turn=_CONVERSATION), reply)
    assert caught.value is error
    assert reply.posted == [(ABANDON_TURN.name, AbandonTurn(conversation_id="conv_1", token=3))]
    assert (reply.ended, reply.passed_on) == (False, None)


async def test_a_failed_search_frees_the_conversation_too() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    retriever = FakeRetriever(error=not_found("vector store", "vs_one"))
    with pytest.raises(PermanentError):
        await _pipeline(FakeCompleter(), retriever).answer(question(turn=_CONVERSATION, retrieval=RETRIEVAL), reply)
    assert len(reply.posted) == 1


@pytest.mark.parametrize("error", _FAILURES, ids=lambda error: type(error).__name__)
async def test_a_broker_that_is_away_does_not_hide_what_failed(error: BaseException) -> None:
    away = RetryableError(ErrorCode.QUEUE_UNAVAILABLE, "The queue is away.")
    reply: RecordingReply[Answer] = RecordingReply(post_error=away)
    with pytest.raises(type(error)) as caught:
        await _pipeline(FakeCompleter(error=error)).answer(question(turn=_CONVERSATION), reply)
    assert caught.value is error


@pytest.mark.parametrize("turn", [None, Turn(), Turn(previous_response_id="resp_0")])
async def test_without_a_conversation_there_is_no_turn_to_free(turn: Turn | None) -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    with pytest.raises(RetryableError):
        await _pipeline(FakeCompleter(error=_FAILURES[0])).answer(question(turn=turn), reply)
    assert reply.posted == []


async def test_text_held_back_is_shown_at_the_end() -> None:
    reply: RecordingReply[Answer] = RecordingReply()
    completer = FakeCompleter(Delta("see ["), Delta("1", finish_reason="length"))
    await _pipeline(completer).answer(question(retrieval=RETRIEVAL), reply)
    assert reply.result is not None
    assert reply.result.body["output"][-1]["content"][0]["text"] == "see [1"
    assert reply.result.body["status"] == "incomplete"


async def test_a_search_gives_the_passages() -> None:
    reply: RecordingReply[SearchReply] = RecordingReply("other")
    retriever = FakeRetriever([passage(1), passage(2, attributes=None)])
    await _pipeline(FakeCompleter(), retriever).search(SearchRequest(queries=("a", "b"), retrieval=RETRIEVAL), reply)
    assert retriever.asked == [("other", ("a", "b"), RETRIEVAL)]
    assert reply.result is not None
    assert [(found.file_id, found.attributes, found.start) for found in reply.result.results] == [
        ("file-1", {"year": 2026.0}, 10),
        ("file-2", {}, 20),
    ]


@pytest.mark.parametrize(("earlier", "gated"), [((), True), (("How many ships?",), False)])
async def test_a_question_with_a_history_is_not_gated(earlier: tuple[str, ...], gated: bool) -> None:
    retriever = FakeRetriever()
    said = tuple(ChatMessage(role="user", content=text) for text in (*earlier, "And cranes?"))
    request = question(Shape.CHAT, messages=said, retrieval=RETRIEVAL)
    reply: RecordingReply[Answer] = RecordingReply()
    await _pipeline(FakeCompleter(), retriever).answer(request, reply)
    assert retriever.answers == [ForAnswer(gated=gated, passage_tokens=0)]
    assert reply.result is not None
    assert reply.result.body["choices"][0]["message"]["content"] == NOT_IN_DOCUMENTS
