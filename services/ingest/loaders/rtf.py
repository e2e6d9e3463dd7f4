"""RTF: its text with code pages and Unicode escapes resolved, in paragraphs.

Control words are those of Microsoft's Rich Text Format specification 1.9.1.
"""

import re
from dataclasses import dataclass
from typing import Final

from services.ingest.document import Document
from services.ingest.loaders.outline import Outline

_TOKEN: Final = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})?[ ]?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|([^\\{}\r\n]+)"
)
_SKIPPED: Final = frozenset({
    "stylesheet", "colortbl", "info", "pict", "object", "header", "footer", "headerl", "headerr", "footerl",
    "footerr", "generator", "themedata", "colorschememapping", "datastore", "latentstyles", "listtable",
    "listoverridetable", "rsidtbl", "xmlnstbl", "fldinst", "bkmkstart", "bkmkend", "filetbl", "revtbl",
})  # fmt: skip
_SIGNS: Final = {
    "par": "\n\n", "sect": "\n\n", "page": "\n\n", "line": "\n", "row": "\n", "cell": " | ", "tab": "\t", "emdash": "—",
    "endash": "–", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”", "bullet": "•",  # noqa: RUF001 - typographic signs are the point
}  # fmt: skip
_SYMBOLS: Final = {"~": "\u00a0", "_": "-", "{": "{", "}": "}", "\\": "\\", "\n": "\n\n", "\r": "\n\n"}
# Font charset number to code page, from the specification's table of \fcharset.
_CHARSETS: Final = {
    0: 1252, 77: 10000, 128: 932, 129: 949, 134: 936, 136: 950, 161: 1253, 162: 1254, 163: 1258, 177: 1255, 178: 1256,
    186: 1257, 204: 1251, 222: 874, 238: 1250,
}  # fmt: skip
_MAX_DEPTH: Final = 1_000


@dataclass(slots=True)
class _Group:
    """What a pair of braces scopes."""

    skipped: bool = False
    font_table: bool = False
    encoding: str = "cp1252"
    fallback_bytes: int = 1


def load(data: bytes) -> Document:
    """The text of an RTF file; tables keep one row to a line."""
    reader = _Reader()
    for match in _TOKEN.finditer(data):
        reader.take(match)
    outline = Outline()
    for paragraph in reader.text().split("\n\n"):
        outline.add(paragraph)
    return outline.document("application/rtf")


class _Reader:
    def __init__(self) -> None:
        self._parts: list[str] = []
        self._bytes = bytearray()  # of the present code page; a character may need two escapes
        self._group = _Group()
        self._stack: list[_Group] = []
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._to_skip = 0
        self._default = "cp1252"

    def text(self) -> str:
        self._flush()
        joined = "".join(self._parts)
        return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # \u writes pairs apart

    def take(self, token: re.Match[bytes]) -> None:
        word, number, escaped, symbol, brace, plain = token.groups()
        if brace:
            self._scope(opens=brace == b"{")
        elif word:
            self._control(word.decode("ascii"), int(number) if number else None)
        elif escaped:
            self._raw(bytes.fromhex(escaped.decode("ascii")))
        elif plain:
            self._raw(plain)
        elif symbol == b"*":
            self._group.skipped = True
        elif symbol:
            self._emit(_SYMBOLS.get(symbol.decode("latin-1"), ""))

    def _scope(self, *, opens: bool) -> None:
        self._flush()
        self._to_skip = 0
        group = self._group
        if opens and len(self._stack) < _MAX_DEPTH:
            self._stack.append(group)
            self._group = _Group(group.skipped, group.font_table, group.encoding, group.fallback_bytes)
        elif not opens and self._stack:
            self._group = self._stack.pop()

    def _control(self, word: str, number: int | None) -> None:
        group = self._group
        if word in _SKIPPED:
            group.skipped = True
        elif word == "fonttbl":
            group.skipped = group.font_table = True
        elif word in _SIGNS:
            self._emit(_SIGNS[word])
        elif number is not None:
            self._numbered(word, number)

    def _numbered(self, word: str, number: int) -> None:
        group = self._group
        if word == "u":
            self._emit(chr(number % 0x10000))
            self._to_skip = group.fallback_bytes
        elif word == "uc":
            group.fallback_bytes = min(max(number, 0), 16)
        elif word == "ansicpg":
            self._default = group.encoding = _code_page(number)
        elif word == "f":
            self._flush()
            self._font = number
            group.encoding = self._fonts.get(number, self._default)
        elif word == "fcharset" and group.font_table and number > 1:
            self._fonts[self._font] = _code_page(_CHARSETS.get(number, 1252))

    def _raw(self, data: bytes) -> None:
        """Takes in bytes of the present code page, less those that only repeat a Unicode escape."""
        skipped = min(self._to_skip, len(data))
        self._to_skip -= skipped
        if not self._group.skipped:
            self._bytes += data[skipped:]

    def _emit(self, text: str) -> None:
        self._flush()
        if not self._group.skipped:
            self._parts.append(text)

    def _flush(self) -> None:
        if self._bytes:
            self._parts.append(self._bytes.decode(self._group.encoding, errors="replace"))
            self._bytes.clear()


def _code_page(number: int) -> str:
    name = "mac_roman" if number == 10000 else f"cp{number}"
    try:
        b"".decode(name)
    except LookupError:
        return "cp1252"
    return name
