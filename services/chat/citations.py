"""From markers in the model's text to citations that were checked.

A model cites passage n as `[n]`. Markers of passages it was given become citations; any other number of up to three
digits is dropped, so that no reader ever sees a citation that points nowhere.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.chat.ports import Passage

_MARKER: Final = re.compile(r" ?\[(\d{1,3})\]")
# What may still grow into a marker when more text arrives: at most " [123".
_UNFINISHED: Final = re.compile(r"(?: ?\[\d{0,3}| )\Z")
# What would close to a marker with the text behind a dropped one, as in "[[9]1]".
_OPEN: Final = re.compile(r"\[\d{0,3}\Z")


@dataclass(frozen=True, slots=True)
class Citation:
    """A checked citation. `index` is the marker's character offset in the answer's text."""

    number: int
    index: int
    passage: Passage

    def annotation(self) -> dict[str, Any]:
        """OpenAI's file citation, with where exactly the passage stands as extension fields."""
        return {
            "type": "file_citation",
            "index": self.index,
            "file_id": self.passage.file_id,
            "filename": self.passage.filename,
            "vector_store_id": self.passage.vector_store_id,
            "number": self.number,
            "page": self.passage.page,
            "start": self.passage.start,
            "end": self.passage.end,
            "text": self.passage.text,
        }


class CitationFilter:
    """Reads a streamed answer and lets checked citations through.

    Args:
        passages: those given to the model; the first has number 1. Without any, text passes untouched.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._held = ""
        self._length = 0
        self._tail = ""

    def feed(self, text: str) -> Iterator[str | Citation]:
        """What of the answer can be shown now: text and citations, in order."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text) if self._passages else None
        cut = unfinished.start() if unfinished else len(text)
        self._held = text[cut:]
        yield from self._show(text[:cut])

    def finish(self) -> Iterator[str | Citation]:
        """What was held back, once the answer has ended."""
        held, self._held = self._held, ""
        yield from self._show(held)

    def _show(self, text: str) -> Iterator[str | Citation]:
        if not self._passages:
            yield from self._text(text)
            return
        position = 0
        for marker in _MARKER.finditer(text):
            yield from self._text(text[position : marker.start()])
            position = marker.end()
            number = int(marker[1])
            if 1 <= number <= len(self._passages):
                lead = marker[0].index("[")
                yield from self._text(marker[0])
                yield Citation(number, self._length - len(marker[0]) + lead, self._passages[number - 1])
            elif _OPEN.search(self._tail):
                yield from self._text(" ")
        yield from self._text(text[position:])

    def _text(self, text: str) -> Iterator[str]:
        if text:
            self._length += len(text)
            self._tail = (self._tail + text)[-4:]
            yield text
