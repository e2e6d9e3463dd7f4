"""An answer as OpenAI's chat completion: one object, or a stream of server-sent events."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import uuid4

import orjson

from libs.local.model_server.embeddings import MiniLM
from libs.local.model_server.extractive import answer
from libs.local.model_server.prompts import read_prompt
from libs.local.model_server.wire import ChatRequest

# A word with the space before it; a run without spaces, as in Chinese, goes out in pieces.
_DELTA: Final = re.compile(r"\s*\S{1,24}|\s+")
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer with its token counts."""

    model: str
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def usage(self) -> dict[str, int]:
        """Token counts under OpenAI's names."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


def complete(request: ChatRequest, tokenizer: MiniLM) -> Completion:
    """Answer the request, cut at its stop texts and token limit."""
    messages = [message.flattened() for message in request.messages]
    text = _before_stops(answer(read_prompt(messages)), request.stop or [])
    ends = tokenizer.token_ends(text)
    limit = request.limit_tokens
    cut = limit is not None and len(ends) > limit
    if cut:
        ends = ends[:limit]
        text = text[: ends[-1]]
    prompt_tokens = sum(tokenizer.count_tokens(message.text) for message in messages)
    return Completion(request.model, text, "length" if cut else "stop", prompt_tokens, len(ends))


def as_object(completion: Completion) -> bytes:
    """JSON of a `chat.completion`."""
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}
    return orjson.dumps(_head(completion, "chat.completion") | {"choices": [choice], "usage": completion.usage})


def as_events(completion: Completion, *, include_usage: bool) -> Iterator[bytes]:
    """Server-sent `chat.completion.chunk` events: the role, words, the finish reason, counts if asked, the end."""
    head = _head(completion, "chat.completion.chunk") | ({"usage": None} if include_usage else {})
    deltas = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"content": piece} for piece in _DELTA.findall(completion.text)]
    for delta in deltas:
        yield _event(head | {"choices": _choices(delta, None)})
    yield _event(head | {"choices": _choices({}, completion.finish_reason)})
    if include_usage:
        yield _event(head | {"choices": [], "usage": completion.usage})
    yield _DONE


def _before_stops(text: str, stops: Sequence[str]) -> str:
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _head(completion: Completion, kind: str) -> dict[str, object]:
    return {
        "id": completion.id,
        "object": kind,
        "created": completion.created,
        "model": completion.model,
        "system_fingerprint": None,
        "service_tier": None,
    }


def _choices(delta: dict[str, str | None], finish_reason: str | None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


def _event(data: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
