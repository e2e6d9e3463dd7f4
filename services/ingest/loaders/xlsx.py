"""XLSX: sheet by sheet (a sheet is a page), rows as "header: value" lines; only cells that exist are looked at."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from services.ingest.document import Document
from services.ingest.loaders.archive import Archive
from services.ingest.loaders.delimited import add_rows
from services.ingest.loaders.docx import core_title
from services.ingest.loaders.markup import attribute, child, descendants, parse_xml
from services.ingest.loaders.outline import Outline, squeeze
from services.ingest.loaders.pptx import relations

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_DATE_FORMATS: Final = frozenset({*range(14, 23), *range(45, 48)})  # built-in number formats, ECMA-376 18.8.30
_DATE_CODE: Final = re.compile(r"(?<![\\\"])[dyhs]")
_NOT_CODE: Final = re.compile(r'"[^"]*"|\[[^\]]*\]')
_EPOCH: Final = datetime(1899, 12, 30)  # noqa: DTZ001 - a spreadsheet's days carry no time zone
_MAX_COLUMNS: Final = 200


def load(data: bytes) -> Document:
    """The text of a workbook.

    Raises:
        LoadError: damaged or encrypted.
    """
    archive = Archive(data)
    outline = Outline()
    shared = archive.read("xl/sharedStrings.xml")
    strings = [_all_text(item) for item in descendants(parse_xml(shared), "si")] if shared else []
    styles = archive.read("xl/styles.xml")
    reader = _Cells(strings, _date_styles(parse_xml(styles)) if styles else frozenset())
    workbook = archive.read("xl/workbook.xml")
    targets = relations(archive, "xl/workbook.xml")
    sheets = list(descendants(parse_xml(workbook), "sheet")) if workbook else []
    for number, sheet in enumerate(sheets, start=1):
        name = targets.get(attribute(sheet, "id"), "")
        if content := archive.read(name):
            rows = list(reader.rows(parse_xml(content)))
            if rows:
                outline.heading(attribute(sheet, "name"), 1, number)
                add_rows(outline, rows, number)
        links = {target for target in relations(archive, name).values() if ":" in target or "\\" in target}
        outline.add("\n".join(sorted(links)), "list", number)
    media_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    return outline.document(media_type, title=core_title(archive), page_count=len(sheets))


def _all_text(element: "Element") -> str:
    return "".join(part.text or "" for part in descendants(element, "t"))


def _date_styles(styles: "Element") -> frozenset[int]:
    """Positions of the cell styles that show a number as a date."""
    dates = set(_DATE_FORMATS)
    for style in descendants(styles, "numFmt"):
        code = _NOT_CODE.sub("", attribute(style, "formatCode"))
        if _DATE_CODE.search(code.lower()) and attribute(style, "numFmtId").isdigit():
            dates.add(int(attribute(style, "numFmtId")))
    formats = child(styles, "cellXfs")
    used = [attribute(item, "numFmtId") for item in formats] if formats is not None else []
    return frozenset(position for position, number in enumerate(used) if number.isdigit() and int(number) in dates)


class _Cells:
    def __init__(self, strings: list[str], date_styles: frozenset[int]) -> None:
        self._strings = strings
        self._date_styles = date_styles

    def rows(self, sheet: "Element") -> Iterator[list[str]]:
        """Rows with any text; a cell stands at its column, up to a limit beyond which it only keeps its order."""
        for row in descendants(sheet, "row"):
            cells: list[str] = []
            for cell in descendants(row, "c"):
                column = _column(attribute(cell, "r"))
                if len(cells) < column < _MAX_COLUMNS:
                    cells.extend([""] * (column - len(cells)))
                cells.append(squeeze(self._value(cell)))
            if any(cells):
                yield cells

    def _value(self, cell: "Element") -> str:
        kind = attribute(cell, "t")
        if kind == "inlineStr":
            return _all_text(cell)
        value = child(cell, "v")
        text = (value.text or "") if value is not None else ""
        if kind == "s":
            return self._strings[int(text)] if text.isdigit() and int(text) < len(self._strings) else ""
        style = attribute(cell, "s")
        if kind in ("", "n") and style.isdigit() and int(style) in self._date_styles:
            return _date(text)
        return text


def _column(reference: str) -> int:
    """Position from 0 of a cell named like `AB12`; 0 where the file leaves the name out."""
    position = 0
    for letter in reference:
        if not letter.isalpha():
            break
        position = position * 26 + ord(letter.upper()) - ord("A") + 1
    return max(position - 1, 0)


def _date(text: str) -> str:
    """A serial day number as an ISO date, with the time where there is one."""
    try:
        moment = _EPOCH + timedelta(days=float(text))
    except (ValueError, OverflowError):
        return text
    return moment.date().isoformat() if float(text).is_integer() else moment.isoformat(" ", "seconds")
