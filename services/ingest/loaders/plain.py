"""Plain text and source code."""

import re
from typing import Final

from services.ingest.document import Document
from services.ingest.loaders.outline import Outline, clean
from services.ingest.sniffing import decode

_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n")


def load(data: bytes) -> Document:
    """Text in paragraphs, which blank lines separate."""
    outline = Outline()
    for paragraph in _BLANK_LINES.split(clean(decode(data))):
        outline.add(paragraph)
    return outline.document("text/plain")


def load_code(data: bytes) -> Document:
    """Source code, cut at blank lines into blocks that keep their indentation."""
    outline = Outline()
    for part in _BLANK_LINES.split(clean(decode(data))):
        outline.add(part, "code")
    return outline.document("text/plain")
