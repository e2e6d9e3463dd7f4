"""In which order a person reads the lines found on a page, by where they stand.

The page is cut where nothing is printed, across and down by turns (the recursive XY cut: Nagy and Seth, 1984), but down
only between columns of running text, so that the rows of tables and forms stay together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

# In heights of a line: what parts columns, and what parts paragraphs.
_GUTTER: Final = 0.8
_PARAGRAPH_GAP: Final = 0.7
# Below this a column is one of a table's or a form's.
_COLUMN_LINES: Final = 4
_COLUMN_CHARACTERS: Final = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, or a part of one, and its place in dots from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float
    text: str

    @property
    def height(self) -> float:
        """How tall it is, in dots."""
        return self.bottom - self.top


def in_reading_order(lines: Sequence[Line]) -> str:
    """The lines' texts; what stands beside one another is one line, and a blank line parts paragraphs."""
    if not lines:
        return ""
    height = median(line.height for line in lines)
    return "\n\n".join(_paragraph(part) for part in _cut(list(lines), height))


def _cut(lines: list[Line], height: float) -> list[list[Line]]:
    """The paragraphs, in order."""
    columns = _parted(lines, lambda line: (line.left, line.right), _GUTTER * height)
    if columns and all(_is_column(column) for column in columns):
        return [part for column in columns for part in _cut(column, height)]
    bands = _parted(lines, lambda line: (line.top, line.bottom), _PARAGRAPH_GAP * height)
    return [part for band in bands for part in _cut(band, height)] if bands else [lines]


def _parted(
    lines: list[Line], extent: Callable[[Line], tuple[float, float]], least: float
) -> tuple[list[Line], list[Line]] | None:
    """The lines before and behind the widest gap, or None where no gap is as wide as `least`."""
    ordered = sorted(lines, key=extent)
    widest, place, end = 0.0, 0, extent(ordered[0])[1]
    for index, line in enumerate(ordered[1:], start=1):
        start, line_end = extent(line)
        if start - end > widest:
            widest, place = start - end, index
        end = max(end, line_end)
    return (ordered[:place], ordered[place:]) if place and widest >= least else None


def _is_column(lines: list[Line]) -> bool:
    return len(lines) >= _COLUMN_LINES and median(len(line.text) for line in lines) >= _COLUMN_CHARACTERS


def _paragraph(lines: list[Line]) -> str:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.top + line.bottom) / 2):
        if rows and _is_beside(rows[-1][-1], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return "\n".join(" ".join(line.text for line in sorted(row, key=lambda line: line.left)) for row in rows)


def _is_beside(line: Line, other: Line) -> bool:
    return abs((line.top + line.bottom) - (other.top + other.bottom)) < min(line.height, other.height)
