"""Markdown: headings with their path, fenced code, tables and lists; inline marks stay as they were written."""

import re
from typing import Final

from services.ingest.document import BlockKind, Document
from services.ingest.loaders.outline import Outline, clean
from services.ingest.sniffing import decode

_HEADING: Final = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t#]*$")
_FENCE: Final = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
_UNDERLINE: Final = re.compile(r"(=+|-+)[ \t]*$")
_BULLET: Final = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")


def load(data: bytes) -> Document:
    """The document in a Markdown file."""
    reader = _Reader()
    for line in clean(decode(data)).split("\n"):
        reader.take(line)
    reader.flush()
    return reader.outline.document("text/markdown")


class _Reader:
    def __init__(self) -> None:
        self.outline = Outline()
        self._lines: list[str] = []
        self._kind: BlockKind = "paragraph"
        self._fence = ""

    def take(self, line: str) -> None:
        fence = _FENCE.match(line)
        if self._fence:
            if fence and fence[1].startswith(self._fence) and not line.strip("`~ \t"):
                self.flush()
            else:
                self._lines.append(line)
        elif fence:
            self.flush()
            self._fence, self._kind = fence[1], "code"
        elif heading := _HEADING.match(line):
            self.flush()
            self.outline.heading(heading[2], len(heading[1]))
        elif len(self._lines) == 1 and self._kind == "paragraph" and (mark := _UNDERLINE.match(line)):
            self.outline.heading(self._lines.pop(), 1 if mark[1][0] == "=" else 2)
        elif not line.strip():
            self.flush()
        else:
            self._append(line)

    def _append(self, line: str) -> None:
        kind: BlockKind = "table" if line.lstrip().startswith("|") else "list" if _BULLET.match(line) else self._kind
        if kind != self._kind:
            self.flush()
            self._kind = kind
        self._lines.append(line)

    def flush(self) -> None:
        self.outline.add("\n".join(self._lines), self._kind)
        self._lines.clear()
        self._kind, self._fence = "paragraph", ""
