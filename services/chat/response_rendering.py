"""An answer as a response: typed events with sequence numbers while it grows, one object at its end."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.response_objects import response_object
from services.chat.citations import Citation
from services.chat.ports import Passage, Usage
from services.chat.rendering import Author, Event, ToolCalls

_NAMESPACE: Final = uuid.UUID("5b1d7c1e-0b0f-4f5e-9a53-3f4e0f5f7a10")


class ResponseRenderer:
    """Renders `response` and its events. An event's sequence number is the count of events before it."""

    def __init__(self, request: AnswerRequest) -> None:
        self._request = request
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._message: dict[str, Any] | None = None
        self._text: list[str] = []
        self._annotations: list[dict[str, Any]] = []
        self._tool_calls = ToolCalls()
        self._status = "in_progress"
        self._incomplete: dict[str, str] | None = None
        self._usage: Usage | None = None
        self.author = Author(request.model)

    def begin(self) -> list[Event]:
        return [
            self._event("response.created", response=self.body()),
            self._event("response.in_progress", response=self.body()),
        ]

    def searching(self) -> list[Event]:
        item: dict[str, Any] = {
            "type": "file_search_call",
            "id": self._item_id("fs"),
            "status": "in_progress",
            "queries": [],
            "results": None,
        }
        place = self._open(item)
        return [
            self._event("response.output_item.added", item=dict(item), output_index=place["output_index"]),
            self._event("response.file_search_call.in_progress", **place),
            self._event("response.file_search_call.searching", **place),
        ]

    def found(self, queries: Sequence[str], passages: Sequence[Passage]) -> list[Event]:
        item = self._output[-1]
        item |= {"status": "completed", "queries": list(queries)}
        if self._request.include_results:
            item["results"] = [_result(passage) for passage in passages]
        place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        return [
            self._event("response.file_search_call.completed", **place),
            self._event("response.output_item.done", item=dict(item), output_index=place["output_index"]),
        ]

    def text(self, text: str) -> list[Event]:
        events = self._begin_message()
        self._text.append(text)
        return [*events, self._event("response.output_text.delta", delta=text, logprobs=[], **self._part_place())]

    def cite(self, citation: Citation) -> list[Event]:
        annotation = citation.annotation()
        self._annotations.append(annotation)
        index = len(self._annotations) - 1
        return [
            self._event(
                "response.output_text.annotation.added",
                annotation=annotation,
                annotation_index=index,
                **self._part_place(),
            )
        ]

    def tool_calls(self, fragments: Sequence[dict[str, Any]]) -> list[Event]:
        # Arguments are of no use before they are whole: the calls are shown as finished items by `end`.
        for fragment in fragments:
            self._tool_calls.add(fragment)
        return []

    def end(self, finish_reason: str, usage: Usage) -> list[Event]:
        self._usage = usage
        self._status = "incomplete" if finish_reason in ("length", "content_filter") else "completed"
        if self._status == "incomplete":
            reason = "max_output_tokens" if finish_reason == "length" else "content_filter"
            self._incomplete = {"reason": reason}
        calls = self._tool_calls.all()
        events = [] if calls and self._message is None else self._begin_message()
        if self._message is not None:
            events += self._end_message()
        for call in calls:
            events += self._call_events(call)
        return events

    def completed(self) -> list[Event]:
        return [self._event(f"response.{self._status}", response=self.body())]

    def body(self) -> dict[str, Any]:
        body = response_object(
            self._request,
            self._status,
            output=self._output,
            incomplete=self._incomplete,
            usage=usage_body(self._usage),
        )
        return body | self.author.fields()

    def _begin_message(self) -> list[Event]:
        if self._message is not None:
            return []
        self._message = {
            "type": "message",
            "id": self._item_id("msg"),
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        place = self._open(self._message)
        return [
            self._event("response.output_item.added", item=dict(self._message), output_index=place["output_index"]),
            self._event("response.content_part.added", part=_part("", []), **self._part_place()),
        ]

    def _end_message(self) -> list[Event]:
        message = self._output[self._message_index()]
        part = _part("".join(self._text), self._annotations)
        message |= {"status": self._status, "content": [part]}
        return [
            self._event("response.output_text.done", text=part["text"], logprobs=[], **self._part_place()),
            self._event("response.content_part.done", part=part, **self._part_place()),
            self._event("response.output_item.done", item=dict(message), output_index=self._message_index()),
        ]

    def _call_events(self, call: dict[str, Any]) -> list[Event]:
        item = {
            "type": "function_call",
            "id": self._item_id("fc"),
            "call_id": call["id"],
            "name": call["name"],
            "arguments": call["arguments"],
            "status": self._status,
        }
        place = self._open(item)
        opened = {**item, "arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", item=opened, output_index=place["output_index"]),
            self._event("response.function_call_arguments.delta", delta=call["arguments"], **place),
            self._event(
                "response.function_call_arguments.done", name=call["name"], arguments=call["arguments"], **place
            ),
            self._event("response.output_item.done", item=item, output_index=place["output_index"]),
        ]

    def _open(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        return {"item_id": item["id"], "output_index": len(self._output) - 1}

    def _item_id(self, prefix: str) -> str:
        # By place, not by chance: an answer that is made again after a death is the same, item for item.
        return f"{prefix}_{uuid.uuid5(_NAMESPACE, f'{self._request.id}/{len(self._output)}').hex}"

    def _message_index(self) -> int:
        return next(index for index, item in enumerate(self._output) if item is self._message)

    def _part_place(self) -> dict[str, Any]:
        message_id = self._message["id"] if self._message else ""
        return {"item_id": message_id, "output_index": self._message_index(), "content_index": 0}

    def _event(self, kind: str, /, **fields: Any) -> Event:  # noqa: ANN401 - OpenAI's events have no common fields
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return kind, event


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}


def _result(passage: Passage) -> dict[str, Any]:
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "score": passage.score,
        "text": passage.text,
        "attributes": passage.attributes or {},
        "vector_store_id": passage.vector_store_id,
    }


def usage_body(usage: Usage | None) -> dict[str, Any] | None:
    """OpenAI's usage of a response."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
