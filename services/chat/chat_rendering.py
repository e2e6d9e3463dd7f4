"""An answer as a chat completion: chunks while it grows, one object at its end."""

from collections.abc import Sequence
from typing import Any

from libs.common.contracts.chat import AnswerRequest
from services.chat.citations import Citation
from services.chat.ports import Passage, Usage
from services.chat.rendering import Event, ToolCalls


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
        self._unsent: list[Event] = []
        self._finish_reason = "stop"
        self._usage = Usage()

    def begin(self) -> list[Event]:
        self._unsent = [self._chunk({"role": "assistant", "content": "", "refusal": None})]
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
        return [*self._take_unsent(), self._chunk({"tool_calls": list(fragments)})]

    def end(self, finish_reason: str, usage: Usage) -> list[Event]:
        self._finish_reason = finish_reason
        self._usage = usage
        events = [*self._take_unsent(), self._chunk({}, finish_reason)]
        if self._request.include_usage:
            events.append((None, self._object("chat.completion.chunk", []) | {"usage": self._usage_body()}))
        return events

    def completed(self) -> list[Event]:
        return []

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
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason, "logprobs": None}
        return self._object("chat.completion", [choice]) | {"usage": self._usage_body()}

    def _take_unsent(self) -> list[Event]:
        unsent, self._unsent = self._unsent, []
        return unsent

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return None, self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._request.id,
            "object": kind,
            "created": self._request.created_at,
            "model": self._request.model,
            "choices": choices,
        }

    def _usage_body(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
