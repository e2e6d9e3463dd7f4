"""Collects blocks in reading order and remembers which headings stand above them."""

import re
from dataclasses import replace
from typing import Final

from services.ingest.document import Block, BlockKind, Document

# Control characters that no store or prompt wants (tab and newline stay), and halves of surrogate pairs.
_UNWANTED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\u00ad\ufeff\ufffe\uffff\ud800-\udfff]+")
_LINE_BREAKS: Final = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TRAILING_SPACE: Final = re.compile(r"(?<=\S)[ \t]+(?=\n)")
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n\s*")
_HEADING_CHARACTERS: Final = 160


def clean(text: str) -> str:
    """`text` with plain line breaks and without characters that cannot be stored; soft hyphens vanish."""
    text = _LINE_BREAKS.sub("\n", text)
    return _UNWANTED.sub(lambda found: "" if found[0][0] in "\u00ad\ufeff" else " ", text)


def squeeze(text: str) -> str:
    """`text` on one line with single spaces."""
    return " ".join(text.split())


class Outline:
    """Builds a document block by block."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.title = ""
        self._headings: list[tuple[int, str]] = []

    def heading(self, text: str, level: int, page: int | None = None) -> None:
        """Adds a heading; it ends every heading of the same or a deeper level (1 is the outermost)."""
        text = squeeze(clean(text))
        if not text:
            return
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        self.blocks.append(Block(text, "heading", page, self._path))
        self._headings.append((level, text[:_HEADING_CHARACTERS]))
        self.title = self.title or text

    def add(self, text: str, kind: BlockKind = "paragraph", page: int | None = None) -> None:
        """Adds a block below the present headings; blank text adds nothing."""
        text = clean(text).strip("\n").rstrip()
        if kind != "code":
            text = _BLANK_LINES.sub("\n", _TRAILING_SPACE.sub("", text)).strip()
        if text.strip():
            self.blocks.append(Block(text, kind, page, self._path))

    def include(self, document: Document) -> None:
        """Adds another document's blocks below the present headings; its pages are not this one's."""
        path = self._path
        self.blocks += [replace(block, page=None, heading_path=path + block.heading_path) for block in document.blocks]

    def document(
        self, media_type: str, *, title: str = "", page_count: int | None = None, picture_pages: tuple[int, ...] = ()
    ) -> Document:
        """The finished document; without a `title` of its own the first heading is taken."""
        name = squeeze(clean(title)) or self.title
        return Document.of(
            self.blocks, media_type=media_type, title=name, page_count=page_count, picture_pages=picture_pages
        )

    @property
    def _path(self) -> tuple[str, ...]:
        return tuple(text for _, text in self._headings)
