"""An answer as a chat completion: chunks while it grows, one object at its end."""

from collections.abc import Sequence
from typing import Any

from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.completion_chunks import completion_chunk, last_chunks
from services.chat.citations import Citation
from services.chat.ports import Passage, Usage
from services.chat.rendering import Author, Event, ToolCalls


class ChatRenderer:
    """Renders `chat.completion` and its chunks.

    The first chunk, which only names the role, goes out with the second: once a client has seen anything, a request
    whose worker dies cannot be begun again unseen.
    """

    def __init__(self, request: AnswerRequest) -> None:
        self._request = request
        self._text: list[str] = []
        self._annotations: list[dict[str, Any]] = []
        self._tool_calls = ToolCalls()
        self._calls_functions = request.calls_functions
        self._begun = False
        self.author = Author(request.model)
        self._finish_reason = "stop"
        self._usage = Usage()

    def begin(self) -> list[Event]:
        return []

    def searching(self) -> list[Event]:
        return []

    def found(self, queries: Sequence[str], passages: Sequence[Passage]) -> list[Event]:  # noqa: ARG002 - the port's
        return []

    def text(self, text: str) -> list[Event]:
        self._text.append(text)
        return [*self._take_unsent(), self._chunk({"content": text})]

    def cite(self, citation: Citation) -> list[Event]:
        annotation = citation.annotation()
        self._annotations.append(annotation)
        return [*self._take_unsent(), self._chunk({"annotations": [annotation]})]

    def tool_calls(self, fragments: Sequence[dict[str, Any]]) -> list[Event]:
        for fragment in fragments:
            self._tool_calls.add(fragment)
        delta: dict[str, Any] = {"tool_calls": list(fragments)}
        if self._calls_functions and (of_first := _function_call(fragments)):
            delta["function_call"] = of_first
        return [*self._take_unsent(), self._chunk(delta)]

    def end(self, finish_reason: str, usage: Usage) -> list[Event]:
        called = self._calls_functions and finish_reason == "tool_calls"
        self._finish_reason = "function_call" if called else finish_reason
        self._usage = usage
        return self._take_unsent()

    def completed(self) -> list[Event]:
        chunks = last_chunks(self.body(), include_usage=self._request.include_usage)
        return [(None, chunk) for chunk in chunks]

    def body(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._text) or None,
            "refusal": None,
            "annotations": self._annotations,
        }
        if calls := self._tool_calls.all():
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in calls
            ]
            if self._calls_functions:
                message["function_call"] = message["tool_calls"][0]["function"]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason, "logprobs": None}
        completion = self._head() | {"object": "chat.completion", "choices": [choice], "usage": self._usage_body()}
        return completion | self._request.echo

    def _take_unsent(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        return [self._chunk({"role": "assistant", "content": "", "refusal": None})]

    def _chunk(self, delta: dict[str, Any]) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        return None, completion_chunk(self._head(), [choice])

    def _head(self) -> dict[str, Any]:
        return {"id": self._request.id, "created": self._request.created_at, **self.author.fields()}

    def _usage_body(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }


def _function_call(fragments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What fragments say of the first call: all that a client knows of which asked for functions, not tools."""
    of_first: dict[str, Any] = {}
    for fragment in fragments:
        if fragment.get("index", 0) == 0:
            of_first |= fragment.get("function") or {}
    return of_first
