"""What is kept of a chat completion's question, and the chunks that end its stream."""

from typing import Any

import pytest

from libs.common.contracts.chat import ChatMessage
from libs.common.contracts.completion_chunks import completion_chunk, last_chunks
from libs.common.contracts.stored_completions import stored_messages

BODY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "length", "message": {"content": "Four"}}],
    "usage": {"total_tokens": 3},
    "metadata": {"a": "b"},
}
HEAD = {"id": "chatcmpl-1", "created": 7, "model": "m", "object": "chat.completion.chunk"}
END = {"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_ends_with_the_reason_and_then_the_usage_if_wanted(include_usage: bool) -> None:
    end: dict[str, Any] = {**HEAD, "choices": [END]}
    usage: dict[str, Any] = {**HEAD, "choices": [], "usage": {"total_tokens": 3}}
    assert last_chunks(BODY, include_usage=include_usage) == [end, usage][: 1 + include_usage]


def test_chunks_say_that_an_answer_is_degraded_where_it_is() -> None:
    assert completion_chunk({**BODY, "degraded": True}, [])["degraded"] is True
    assert "degraded" not in completion_chunk(BODY, [])


def test_messages_are_kept_with_ids_and_what_they_carry() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="assistant", extra={"tool_calls": [call]}),
        ChatMessage(role="tool", content="4", extra={"tool_call_id": "call_1"}),
    ]
    assert stored_messages("chatcmpl-1", messages) == [
        {"id": "chatcmpl-1-0", "role": "system", "content": "Be brief.", "content_parts": None},
        {"id": "chatcmpl-1-1", "role": "assistant", "content": None, "content_parts": None, "tool_calls": [call]},
        {"id": "chatcmpl-1-2", "role": "tool", "content": "4", "content_parts": None, "tool_call_id": "call_1"},
    ]


def test_parts_are_kept_as_they_came_with_their_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    parts = ({"type": "text", "text": "What"}, picture, {"type": "text", "text": "is this?"})
    (both,) = stored_messages("c", [ChatMessage(role="user", content=parts)])
    assert (both["content"], both["content_parts"]) == ("What\nis this?", list(parts))
    (alone,) = stored_messages("c", [ChatMessage(role="user", content=(picture,))])
    assert (alone["content"], alone["content_parts"]) == (None, [picture])
