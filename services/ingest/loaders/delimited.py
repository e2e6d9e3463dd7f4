"""CSV and its relatives: every row as one line of "header: value", rows in blocks of some size."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Final

from services.ingest.document import Document
from services.ingest.loaders.outline import Outline, clean, squeeze
from services.ingest.sniffing import decode

_BLOCK_CHARACTERS: Final = 1_000
_DELIMITERS: Final = ",;\t|"


def load(data: bytes) -> Document:
    """The rows of a CSV file, whichever of `, ; tab |` separates its columns."""
    text = clean(decode(data))
    csv.field_size_limit(max(len(text), 1))
    outline = Outline()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    add_rows(outline, ([squeeze(cell) for cell in row] for row in reader))
    return outline.document("text/csv")


def add_rows(outline: Outline, rows: Iterable[list[str]], page: int | None = None) -> None:
    """Adds `rows` as table blocks; lines of one cell before the header stand as they are."""
    filled = (row for row in rows if any(row))
    lines: list[str] = []
    size = 0
    for line in _lines(filled):
        lines.append(line)
        size += len(line)
        if size >= _BLOCK_CHARACTERS:
            outline.add("\n".join(lines), "table", page)
            lines, size = [], 0
    outline.add("\n".join(lines), "table", page)


def _lines(rows: Iterator[list[str]]) -> Iterator[str]:
    header: list[str] = []
    for row in rows:
        if sum(map(bool, row)) > 1:
            header = row
            yield " | ".join(cell for cell in row if cell)
            break
        yield " ".join(row).strip()
    for row in rows:
        named = zip(header + [""] * (len(row) - len(header)), row, strict=False)
        yield "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)


def _delimiter(text: str) -> str:
    """The separator that most lines hold equally often, judged over the first ones."""
    lines = [line for line in text[:20_000].split("\n") if line.strip()][:50]
    best, best_score = ",", 0
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in lines]
        typical = max(set(counts), key=counts.count) if counts else 0
        score = typical * counts.count(typical)
        if score > best_score:
            best, best_score = delimiter, score
    return best
