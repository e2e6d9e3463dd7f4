"""DOCX, read from its XML: headings by style, lists, tables, text boxes, notes, comments, headers and footers."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from services.ingest.document import Document, LoadError
from services.ingest.loaders.archive import Archive
from services.ingest.loaders.markup import attribute, child, descendants, local_name, parse_xml
from services.ingest.loaders.outline import Outline

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_HEADING: Final = re.compile(r"heading (\d)", re.IGNORECASE)
_MARGINS: Final = re.compile(r"word/(?:header|footer|footnotes|endnotes|comments)\d*\.xml")
# Fallback repeats what AlternateContent's Choice says; the others are not text of the document.
_SKIPPED: Final = frozenset({"Fallback", "instrText", "delText", "moveFrom", "pPr", "rPr"})
_SIGNS: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def load(data: bytes) -> Document:
    """The document in a Word file.

    Raises:
        LoadError: damaged, encrypted or without a main part.
    """
    archive = Archive(data)
    body = archive.read("word/document.xml")
    if body is None:
        raise LoadError("invalid_file", "The file is damaged: it lacks the document's main part.")
    outline = Outline()
    styles = archive.read("word/styles.xml")
    levels = _heading_levels(parse_xml(styles)) if styles else {}
    _add_blocks(outline, parse_xml(body), levels)
    seen: set[str] = set()
    for name in sorted(filter(_MARGINS.fullmatch, archive.names)):
        for text in map(_text, descendants(parse_xml(archive.read(name) or b""), "p")):
            if text not in seen:  # the same header stands in many parts
                outline.add(text)
            seen.add(text)
    return outline.document(
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document", title=core_title(archive)
    )


def core_title(archive: Archive) -> str:
    """The title in an Office file's properties, or an empty string."""
    core = archive.read("docProps/core.xml")
    title = child(parse_xml(core), "title") if core else None
    return (title.text or "") if title is not None else ""


def _heading_levels(styles: "Element") -> dict[str, int]:
    """Heading level by style id; a style takes over its base's level."""
    levels: dict[str, int] = {}
    bases: dict[str, str] = {}
    for style in descendants(styles, "style"):
        name, base = child(style, "name"), child(style, "basedOn")
        identifier = attribute(style, "styleId")
        label = attribute(name, "val") if name is not None else ""
        if match := _HEADING.match(label):
            levels[identifier] = int(match[1])
        elif label.lower() == "title":
            levels[identifier] = 1
        elif base is not None:
            bases[identifier] = attribute(base, "val")
    for identifier, base_identifier in bases.items():
        if base_identifier in levels:
            levels[identifier] = levels[base_identifier]
    return levels


def _add_blocks(outline: Outline, body: "Element", levels: dict[str, int]) -> None:
    items: list[str] = []
    for element in _top_level(body):
        paragraph = local_name(element) == "p"
        if paragraph and child(element, "pPr", "numPr") is not None and not _level(element, levels):
            items.append(_list_item(element))
            continue
        outline.add("\n".join(items), "list")
        items.clear()
        if not paragraph:
            outline.add(_table(element), "table")
        elif level := _level(element, levels):
            outline.heading(_text(element), level)
        else:
            outline.add(_text(element))
    outline.add("\n".join(items), "list")


def _top_level(body: "Element") -> Iterator["Element"]:
    """Paragraphs and tables in order, those inside content controls and revisions too, but not those inside others."""
    pending = [body]
    while pending:
        element = pending.pop()
        if local_name(element) in ("p", "tbl"):
            yield element
        elif local_name(element) not in _SKIPPED:
            pending.extend(reversed(list(element)))


def _level(paragraph: "Element", levels: dict[str, int]) -> int:
    style = child(paragraph, "pPr", "pStyle")
    return levels.get(attribute(style, "val"), 0) if style is not None else 0


def _list_item(paragraph: "Element") -> str:
    indent = child(paragraph, "pPr", "numPr", "ilvl")
    depth = attribute(indent, "val") if indent is not None else ""
    text = _text(paragraph).strip()
    return "  " * min(int(depth) if depth.isdigit() else 0, 9) + "- " + text if text else ""


def _table(table: "Element") -> str:
    rows = []
    for row in descendants(table, "tr"):
        cells = (" ".join(_text(cell).split()) for cell in row if local_name(cell) in ("tc", "sdt"))
        rows.append(" | ".join(cell for cell in cells if cell))
    return "\n".join(row for row in rows if row)


def _text(element: "Element") -> str:
    """The visible text below `element`; paragraphs inside it (cells, text boxes) end with a line break."""
    parts: list[str] = []
    pending: list[Element | str] = [element]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        name = local_name(item)
        if name == "t":
            parts.append(item.text or "")
        elif name in _SIGNS:
            parts.append(_SIGNS[name])
        elif name not in _SKIPPED:
            if name == "p" and item is not element:
                parts.append("\n")
                pending.append("\n")
            pending.extend(reversed(list(item)))
    return "".join(parts)
