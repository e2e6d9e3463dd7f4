"""Which answers are kept, and that they are the same when they are given again."""

from typing import Any

import orjson
import pytest

from libs.common.cache.answers import CachedAnswer
from libs.common.contracts.chat import Answer, AnswerRequest, CacheLeave, Shape
from libs.common.errors import ErrorCode, RetryableError
from libs.common.rag.embedder import Embedder
from services.chat.caching import CachingAnswers
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Delta, Usage
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply
from tests.unit.chat.examples import RETRIEVAL, passage, question

_ANSWER = (
    Delta("Four "),
    Delta("cranes [1"),
    Delta("], and "),
    Delta("a "),
    Delta("pier [2]."),
    Delta(finish_reason="stop", usage=Usage(7, 5)),
)
LEAVE = CacheLeave(exact="digest", revisions={"vs_one": 1})


class FakeCache:
    """Keeps answers by their exact digest, and gives `nearest` to every question."""

    def __init__(self, nearest: CachedAnswer | None = None) -> None:
        self.kept: dict[tuple[str, str], CachedAnswer] = {}
        self.nearest = nearest

    async def alike(self, tenant_id: str, request: AnswerRequest) -> CachedAnswer | None:  # noqa: ARG002 - the port's
        return self.nearest

    async def keep(self, tenant_id: str, request: AnswerRequest, answer: CachedAnswer) -> None:
        assert request.cache is not None
        self.kept[tenant_id, request.cache.exact] = answer


def answers(cache: FakeCache, *deltas: Delta, error: Exception | None = None) -> CachingAnswers:
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    retriever = FakeRetriever([passage(1), passage(2)])
    return CachingAnswers(AnswerPipeline(retriever, FakeCompleter(*deltas, error=error), unused), cache)


def text_of(shape: Shape, stream: bytes) -> tuple[str, list[dict[str, Any]]]:
    """The text and the annotations that a client makes of a stream."""
    data = [line[6:] for line in stream.splitlines() if line.startswith(b"data: ") and line != b"data: [DONE]"]
    events = [orjson.loads(each) for each in data]
    if shape is Shape.RESPONSE:
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        return text, [event["annotation"] for event in events if event["type"].endswith("annotation.added")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return text, [each for delta in deltas for each in delta.get("annotations", ())]


async def cached(shape: Shape, **changes: Any) -> tuple[CachedAnswer, RecordingReply[Answer]]:
    cache, reply = FakeCache(), RecordingReply[Answer]()
    request = question(shape, cache=LEAVE, retrieval=RETRIEVAL, **changes)
    await answers(cache, *_ANSWER).answer(request, reply)
    return cache.kept["tenant", "digest"], reply


@pytest.mark.parametrize("shape", [Shape.CHAT, Shape.RESPONSE])
@pytest.mark.parametrize("asked_as_stream", [True, False])
async def test_an_answer_is_the_same_again_in_either_form(shape: Shape, asked_as_stream: bool) -> None:
    kept, first = await cached(shape, stream=asked_as_stream, include_usage=True)
    assert first.result is not None
    again = question(shape, stream=False, retrieval=RETRIEVAL, id="another", created_at=5)
    body = orjson.loads(kept.content(again))
    body_before = first.result.body
    assert body["id"] == "another"
    for mine in (body, body_before):
        mine["id"] = mine["created" if shape is Shape.CHAT else "created_at"] = None
        for item in mine.get("output", ()):
            item["id"] = None
    assert body == body_before
    stream = kept.content(again.model_copy(update={"stream": True}))
    message = body["choices"][0]["message"] if shape is Shape.CHAT else body["output"][-1]["content"][0]
    assert text_of(shape, stream) == (message.get("content") or message.get("text"), message["annotations"])
    assert len(message["annotations"]) == 2
    assert stream.endswith(b"data: [DONE]\n\n") == (shape is Shape.CHAT)
    if asked_as_stream:
        assert text_of(shape, b"".join(first.blocks)) == text_of(shape, stream)


async def test_a_response_s_events_are_numbered_and_hold_no_placeholder() -> None:
    kept, _ = await cached(Shape.RESPONSE, stream=True)
    stream = kept.content(question(stream=True, id="resp_again", created_at=5))
    events = [orjson.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    final = events[-1]["response"]
    assert (final["id"], final["created_at"]) == ("resp_again", 5)
    assert final["output"][0]["queries"] == ["How many cranes?"]
    held = (kept.placeholders.id, str(kept.placeholders.created_at), kept.placeholders.query, *kept.placeholders.items)
    assert [each for each in held if each.encode() in stream] == []


@pytest.mark.parametrize(
    "deltas",
    [
        (Delta("Four"), Delta(finish_reason="length")),
        (Delta("Four"), Delta(finish_reason="content_filter")),
        (Delta(tool_calls=({"index": 0, "id": "call_1"},)), Delta(finish_reason="tool_calls")),
    ],
    ids=["cut off", "filtered", "a call for a tool"],
)
async def test_what_is_no_whole_answer_is_not_kept(deltas: tuple[Delta, ...]) -> None:
    cache, reply = FakeCache(), RecordingReply[Answer]()
    await answers(cache, *deltas).answer(question(cache=LEAVE), reply)
    assert reply.ended
    assert cache.kept == {}


@pytest.mark.parametrize("by", [Delta(model="fallback"), Delta(model="extract", degraded=True)])
async def test_an_answer_by_another_model_or_by_none_is_not_kept(by: Delta) -> None:
    cache, reply = FakeCache(), RecordingReply[Answer]()
    await answers(cache, by, *_ANSWER).answer(question(Shape.CHAT, cache=LEAVE, retrieval=RETRIEVAL), reply)
    assert reply.ended
    assert cache.kept == {}


async def test_a_failed_answer_is_not_kept() -> None:
    cache = FakeCache()
    failure = RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away.")
    with pytest.raises(RetryableError):
        await answers(cache, *_ANSWER[:2], error=failure).answer(question(cache=LEAVE), RecordingReply())
    assert cache.kept == {}


async def test_without_leave_nothing_is_kept_or_looked_for() -> None:
    kept, _ = await cached(Shape.CHAT)
    cache, reply = FakeCache(nearest=kept), RecordingReply[Answer]()
    await answers(cache, Delta("New.", finish_reason="stop")).answer(question(Shape.CHAT, stream=False), reply)
    assert reply.result is not None
    assert reply.result.body["choices"][0]["message"]["content"] == "New."
    assert cache.kept == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_to_a_question_that_is_alike_is_given_in_its_own_words(stream: bool) -> None:
    kept, _ = await cached(Shape.RESPONSE)
    reply = RecordingReply[Answer]()
    messages = ({"role": "user", "content": "What number of cranes?"},)
    request = AnswerRequest.model_validate(
        question(cache=LEAVE, retrieval=RETRIEVAL, stream=stream).model_dump() | {"messages": messages}
    )
    await answers(FakeCache(nearest=kept), error=RuntimeError("the model was asked")).answer(request, reply)
    assert reply.from_cache
    given = b"".join(reply.blocks) if stream else orjson.dumps(reply.result.body if reply.result else None)
    assert b"What number of cranes?" in given
    assert b"How many cranes?" not in given
    assert b"Four cranes [1], and a pier [2]." in given
