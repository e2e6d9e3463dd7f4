from typing import Any

import orjson
import pytest

from libs.common.contracts.chat import Answer
from libs.common.contracts.completions import CompletionBody, CompletionRequest
from libs.common.contracts.validation import validated
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.embedder import Embedder
from libs.common.tasks.replies import DONE_BLOCK
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Delta, Usage
from services.chat.text_completion import TextCompletions
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply

ANSWER = (Delta("Four "), Delta("cranes."), Delta(finish_reason="length"), Delta(usage=Usage(7, 5)))


def request(**fields: Any) -> CompletionRequest:
    body = {"model": "model", "prompt": "How many?", **fields}
    return validated(CompletionBody, body).to_completion()


async def completed(completer: FakeCompleter, asked: CompletionRequest) -> RecordingReply[Answer]:
    reply: RecordingReply[Answer] = RecordingReply()
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    await TextCompletions(AnswerPipeline(FakeRetriever(), completer, unused)).complete(asked, reply)
    return reply


def body_of(reply: RecordingReply[Answer]) -> dict[str, Any]:
    assert reply.result is not None
    return reply.result.body


async def test_a_choice_for_each_prompt_and_number() -> None:
    reply = await completed(FakeCompleter(*ANSWER), request(prompt=["a", "b"], n=2, echo=True))
    body = body_of(reply)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == [f"{prompt}Four cranes." for prompt in "aabb"]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"]["prompt_tokens"] == 28
    assert body["usage"]["total_tokens"] == 48
    assert reply.blocks == []


async def test_streamed_chunks_add_up_to_the_whole() -> None:
    asked = request(prompt=["a", "b"], echo=True, stream=True, stream_options={"include_usage": True})
    reply = await completed(FakeCompleter(*ANSWER), asked)
    assert reply.blocks[-1] == DONE_BLOCK
    chunks = [orjson.loads(block.partition(b"data: ")[2]) for block in reply.blocks[:-1]]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["aFour cranes.", "bFour cranes."]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == body_of(reply)["usage"]


async def test_a_suffix_is_told_to_the_model() -> None:
    completer = FakeCompleter(*ANSWER)
    await completed(completer, request(suffix="The end."))
    (prompt,) = completer.prompts
    assert [message["role"] for message in prompt] == ["developer", "user"]
    assert prompt[0]["content"].endswith("The end.")
    assert prompt[1]["content"] == "How many?"


async def test_one_failed_choice_fails_the_completion() -> None:
    failing = FakeCompleter(Delta("Four "), error=RetryableError(ErrorCode.LLM_UNAVAILABLE, "away"))
    with pytest.raises(RetryableError) as raised:
        await completed(failing, request(n=2))
    assert raised.value.code is ErrorCode.LLM_UNAVAILABLE


def test_parameters_go_on_to_the_upstream() -> None:
    asked = request(temperature=0.5, stop="\n", seed=3, max_tokens=40, user="u")
    assert asked.parameters == {"temperature": 0.5, "stop": "\n", "seed": 3, "max_tokens": 40, "user": "u"}
    assert request().parameters == {"max_tokens": 16}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"n": 33}, "n"),
        ({"prompt": ["a"] * 17, "n": 2}, None),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_what_is_not_offered_is_refused(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(PermanentError) as raised:
        request(**fields)
    assert raised.value.code is ErrorCode.INVALID_VALUE
    assert (raised.value.param or "").partition("[")[0] == (param or "")
