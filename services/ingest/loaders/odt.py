"""ODT: headings by outline level, paragraphs, lists and tables."""

from typing import TYPE_CHECKING

from services.ingest.document import Document, LoadError
from services.ingest.loaders.archive import Archive
from services.ingest.loaders.markup import attribute, descendants, local_name, parse_xml
from services.ingest.loaders.outline import Outline

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def load(data: bytes) -> Document:
    """The text of an OpenDocument text file.

    Raises:
        LoadError: damaged, encrypted or without content.
    """
    content = Archive(data).read("content.xml")
    if content is None:
        raise LoadError("invalid_file", "The file is damaged: it lacks the document's content.")
    outline = Outline()
    pending = [parse_xml(content)]
    while pending:
        element = pending.pop()
        name = local_name(element)
        if name == "h":
            level = attribute(element, "outline-level")
            outline.heading(_text(element), int(level) if level.isdigit() else 1)
        elif name == "p":
            outline.add(_text(element))
        elif name == "list":
            outline.add(
                "\n".join("- " + text for text in map(_text, descendants(element, "p")) if text.strip()), "list"
            )
        elif name == "table":
            outline.add("\n".join(map(_row, descendants(element, "table-row"))), "table")
        elif name != "tracked-changes":
            pending.extend(reversed(list(element)))
    return outline.document("application/vnd.oasis.opendocument.text")


def _row(row: "Element") -> str:
    cells = (" ".join(_text(cell).split()) for cell in descendants(row, "table-cell"))
    return " | ".join(cell for cell in cells if cell)


def _text(element: "Element") -> str:
    parts = []
    for part in element.iter():
        name = local_name(part)
        parts.append(
            {"tab": "\t", "line-break": "\n", "s": " "}.get(name, "") + (part.text or "" if name != "&" else "")
        )
        if part is not element:
            parts.append(part.tail or "")
    return "".join(parts)
