"""Questions put anew from their history: what the model's server is asked, and what becomes of its failures."""

import asyncio
from typing import Any

import pytest

from libs.common.contracts.chat import Answer, AnswerRequest, ChatMessage
from libs.common.rag.embedder import Embedder
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Usage
from services.chat.rewriting import Rewriter
from tests.fakes import FakeRetriever, RecordingReply
from tests.integration.test_completion import (
    _DONE,
    _STOP,
    Play,
    Upstream,
    _completing,
    _data,
    _sends,
    _serving,
    _text,
)
from tests.unit.chat.examples import RETRIEVAL, passage, question

pytestmark = pytest.mark.timeout(20)

HISTORY = (
    ChatMessage(role="developer", content="Be brief."),
    ChatMessage(role="user", content="Who runs the harbour?"),
    ChatMessage(role="assistant", content="The harbour master."),
)
LAST = ChatMessage(role="user", content="When does she begin?")
ANEW = "When does the harbour master begin?"
USAGE = _data({"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 8}})
GOOD = _sends(_text(ANEW[:9]), _text(ANEW[9:] + "\n"), _STOP, USAGE, _DONE)


def asking(*messages: ChatMessage, **changes: Any) -> AnswerRequest:
    return question(messages=messages, **changes)


async def _hangs(_upstream: Upstream, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def standalone(request: AnswerRequest, *plays: Play, seconds: float = 10.0) -> tuple[str, Usage, Upstream]:
    async with _serving(*plays) as upstream, _completing(upstream.url) as completer:
        text, usage = await Rewriter(completer, seconds=seconds).standalone(request)
    return text, usage, upstream


async def test_the_model_is_asked_once_and_in_short() -> None:
    text, usage, upstream = await standalone(asking(*HISTORY, LAST), GOOD)
    assert (text, usage) == (ANEW, Usage(40, 8))
    [sent] = upstream.requests
    assert (sent["model"], sent["temperature"], sent["max_completion_tokens"]) == ("model", 0, 100)
    record = sent["messages"][1]["content"]
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert record.index("Who runs the harbour?") < record.index("The harbour master.") < record.index(LAST.content)
    assert "Be brief." not in record


@pytest.mark.parametrize(
    "request_",
    [asking(LAST), asking(HISTORY[0], LAST), asking(*HISTORY, LAST, model="docent-extractive")],
    ids=["alone", "instructed", "extractive"],
)
async def test_without_a_history_or_a_model_nobody_is_asked(request_: AnswerRequest) -> None:
    text, usage, upstream = await standalone(request_, GOOD)
    assert (text, usage, upstream.requests) == (LAST.content, Usage(), [])


@pytest.mark.parametrize(
    "play",
    [
        _sends(_text("When does the"), _data({"choices": [{"delta": {}, "finish_reason": "length"}]}), _DONE),
        _sends(_text(" \n"), _STOP, _DONE),
        _sends(_text("When")),
        _sends(b"data: {\n\n"),
    ],
    ids=["cut off", "empty", "unfinished", "unreadable"],
)
async def test_what_is_no_question_is_not_searched_for(play: Play) -> None:
    assert (await standalone(asking(*HISTORY, LAST), play))[0] == LAST.content


async def test_a_model_that_takes_too_long_is_not_waited_for() -> None:
    assert (await standalone(asking(*HISTORY, LAST), _hangs, seconds=0.05))[0] == LAST.content


async def test_the_answer_is_searched_for_by_it_and_counts_its_tokens() -> None:
    retriever = FakeRetriever([passage(1)])
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    reply: RecordingReply[Answer] = RecordingReply()
    answer = _sends(_text("At six [1]."), _STOP, USAGE, _DONE)
    async with _serving(GOOD, answer) as upstream, _completing(upstream.url) as completer:
        pipeline = AnswerPipeline(retriever, completer, unused, rewriter=Rewriter(completer))
        await pipeline.answer(asking(*HISTORY, LAST, retrieval=RETRIEVAL, stream=False), reply)
    assert [queries for _, queries, _ in retriever.asked] == [(ANEW,)]
    assert upstream.requests[1]["messages"][-1]["content"] == LAST.content
    assert reply.result is not None
    search, message = reply.result.body["output"]
    assert search["queries"] == [ANEW]
    assert message["content"][0]["text"] == "At six [1]."
    assert reply.result.body["usage"]["input_tokens"] == 80
    assert reply.result.body["usage"]["output_tokens"] == 16
