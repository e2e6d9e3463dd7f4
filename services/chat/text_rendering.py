"""An answer as one choice of a legacy completion."""

from collections.abc import Sequence
from typing import Any

from libs.common.contracts.completions import CompletionRequest
from services.chat.citations import Citation
from services.chat.ports import Passage, Usage
from services.chat.rendering import Author, Event


class TextRenderer:
    """Renders the choice `index` of a `text_completion`. Its echo goes out with the first text, as if it were one."""

    def __init__(self, request: CompletionRequest, index: int) -> None:
        self._request = request
        self._index = index
        self._unsent = request.prompts[index] if request.echo else ""
        self._text: list[str] = []
        self._finish_reason = "stop"
        self.usage = Usage()
        self.author = Author(request.model)  # not shown: each choice may have another

    def begin(self) -> list[Event]:
        return []

    def searching(self) -> list[Event]:
        return []

    def found(self, queries: Sequence[str], passages: Sequence[Passage]) -> list[Event]:  # noqa: ARG002 - the port's
        return []

    def text(self, text: str) -> list[Event]:
        return [self._chunk(self._shown(text))]

    def cite(self, citation: Citation) -> list[Event]:  # noqa: ARG002 - plain text has no place for it
        return []

    def tool_calls(self, fragments: Sequence[dict[str, Any]]) -> list[Event]:  # noqa: ARG002 - as above
        return []

    def end(self, finish_reason: str, usage: Usage) -> list[Event]:
        self._finish_reason = finish_reason if finish_reason in ("length", "content_filter") else "stop"
        self.usage = usage
        return [self._chunk(self._shown(""), self._finish_reason)]

    def completed(self) -> list[Event]:
        return []

    def body(self) -> dict[str, Any]:
        """The finished choice."""
        return self._choice("".join(self._text), self._finish_reason)

    def _shown(self, text: str) -> str:
        text, self._unsent = self._unsent + text, ""
        self._text.append(text)
        return text

    def _chunk(self, text: str, finish_reason: str | None = None) -> Event:
        return None, text_completion(self._request, [self._choice(text, finish_reason)])

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def text_completion(
    request: CompletionRequest, choices: Sequence[dict[str, Any]], usage: Usage | None = None
) -> dict[str, Any]:
    """The object, whole or one chunk of a stream."""
    counted = {} if usage is None else {"usage": _usage_body(usage)}
    return {
        "id": request.id,
        "object": "text_completion",
        "created": request.created_at,
        "model": request.model,
        "choices": list(choices),
        **counted,
    }


def _usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
