"""What both shapes of an answer share: the renderer's interface and how passages are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.chat.citations import Citation
from services.chat.ports import Passage, Usage

# A server-sent event: its name (None: data only) and its data.
Event = tuple[str | None, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Author:
    """Who answers: a model, or none, where the answer is `degraded` to sentences of the passages."""

    model: str
    degraded: bool = False

    def fields(self) -> dict[str, Any]:
        """What the object says of it."""
        return {"model": self.model} | ({"degraded": True} if self.degraded else {})


class Renderer(Protocol):
    """Turns an answer's course into OpenAI events, and its end into the finished object.

    Attributes:
        author: the model asked for, until another one is set before the first text.
    """

    author: Author

    def begin(self) -> list[Event]: ...

    def searching(self) -> list[Event]: ...

    def found(self, queries: Sequence[str], passages: Sequence[Passage]) -> list[Event]: ...

    def text(self, text: str) -> list[Event]: ...

    def cite(self, citation: Citation) -> list[Event]: ...

    def tool_calls(self, fragments: Sequence[dict[str, Any]]) -> list[Event]: ...

    def end(self, finish_reason: str, usage: Usage) -> list[Event]: ...

    def completed(self) -> list[Event]:
        """The last events, sent only once the answer is safe."""
        ...

    def body(self) -> dict[str, Any]:
        """The finished object; valid after `end`."""
        ...


class ToolCalls:
    """Merges the streamed fragments of tool calls."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, fragment: dict[str, Any]) -> int:
        """Take one fragment; returns the index of the call it belongs to."""
        index = int(fragment.get("index", 0))
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        function = fragment.get("function") or {}
        call["id"] = fragment.get("id") or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""
        return index

    def all(self) -> list[dict[str, Any]]:
        """The calls in order, each with id, name and arguments."""
        return [call for _, call in sorted(self._calls.items())]
