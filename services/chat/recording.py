"""An answer's course, remembered while it is rendered, so that it can be rendered once more for the cache."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from libs.common.cache.answers import CachedAnswer, Placeholders
from libs.common.contracts.chat import AnswerRequest
from services.chat.citations import Citation
from services.chat.ports import Passage, Usage
from services.chat.rendering import Author, Event, Renderer

# No text holds nineteen random digits by chance.
_LEAST_TIME: Final = 10**18


@dataclass(slots=True)
class _Course:
    """What a renderer was told, pieces of text put together."""

    steps: list[Callable[[Renderer], list[Event]]] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)

    def text(self, text: str) -> None:
        self._text.append(text)

    def then(self, step: Callable[[Renderer], list[Event]]) -> None:
        if self._text:
            text = "".join(self._text)
            self._text.clear()
            self.steps.append(lambda renderer: renderer.text(text))
        self.steps.append(step)


class Recorder:
    """A renderer that passes everything on to another and remembers it."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._course = _Course()
        self._query = ""
        self._query_placeholder = secrets.token_hex(16)
        self._finish_reason: str | None = None
        self._asked = renderer.author

    @property
    def author(self) -> Author:
        """See `Renderer`."""
        return self._renderer.author

    @author.setter
    def author(self, author: Author) -> None:
        self._renderer.author = author

    def begin(self) -> list[Event]:
        self._course.then(lambda renderer: renderer.begin())
        return self._renderer.begin()

    def searching(self) -> list[Event]:
        self._course.then(lambda renderer: renderer.searching())
        return self._renderer.searching()

    def found(self, queries: Sequence[str], passages: Sequence[Passage]) -> list[Event]:
        self._query = queries[0]
        self._course.then(lambda renderer: renderer.found([self._query_placeholder], passages))
        return self._renderer.found(queries, passages)

    def text(self, text: str) -> list[Event]:
        self._course.text(text)
        return self._renderer.text(text)

    def cite(self, citation: Citation) -> list[Event]:
        self._course.then(lambda renderer: renderer.cite(citation))
        return self._renderer.cite(citation)

    def tool_calls(self, fragments: Sequence[dict[str, Any]]) -> list[Event]:
        self._course.then(lambda renderer: renderer.tool_calls(fragments))
        return self._renderer.tool_calls(fragments)

    def end(self, finish_reason: str, usage: Usage) -> list[Event]:
        self._finish_reason = finish_reason
        self._course.then(lambda renderer: renderer.end(finish_reason, usage))
        return self._renderer.end(finish_reason, usage)

    def completed(self) -> list[Event]:
        self._course.then(lambda renderer: renderer.completed())
        return self._renderer.completed()

    def body(self) -> dict[str, Any]:
        return self._renderer.body()

    @property
    def is_whole(self) -> bool:
        """Whether the answer is the asked model's and came to its own end: not cut off or filtered, no tool call."""
        return self._finish_reason == "stop" and self.author == self._asked

    def cached(
        self,
        request: AnswerRequest,
        renderer_of: Callable[[AnswerRequest], Renderer],
        stream_of: Callable[[AnswerRequest, list[Event]], bytes],
    ) -> CachedAnswer:
        """The answer as it can be given again.

        Args:
            stream_of: the whole stream that these events make.
        """
        request_id = secrets.token_hex(16)
        created_at = _LEAST_TIME + secrets.randbelow(_LEAST_TIME)
        again = request.model_copy(update={"id": request_id, "created_at": created_at})
        renderer = renderer_of(again)
        events = [event for step in self._course.steps for event in step(renderer)]
        body = renderer.body()
        items = tuple(item["id"] for item in body.get("output", ()))
        placeholders = Placeholders(request_id, created_at, self._query_placeholder, items)
        return CachedAnswer(orjson.dumps(body), stream_of(again, events), placeholders, self._query, time.time())
