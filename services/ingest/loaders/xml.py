"""XML of any vocabulary: elements with text as "name: text" lines or paragraphs; entities stay unexpanded."""

from typing import TYPE_CHECKING

from services.ingest.document import Document
from services.ingest.loaders.markup import local_name, parse_xml
from services.ingest.loaders.outline import Outline, squeeze

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def load(data: bytes) -> Document:
    """The text of an XML file.

    Raises:
        LoadError: not well-formed.
    """
    outline = Outline()
    pending = [parse_xml(data)]
    fields: list[str] = []
    while pending:
        element = pending.pop()
        if not len(element):
            _add_field(fields, element)
        elif _is_mixed(element):
            fields.append(squeeze(" ".join(element.itertext())))
        else:
            outline.add("\n".join(fields), "table")
            fields.clear()
            pending.extend(reversed(list(element)))
    outline.add("\n".join(fields), "table")
    return outline.document("application/xml")


def _add_field(fields: list[str], element: "Element") -> None:
    value = squeeze(element.text or "")
    if value:
        fields.append(f"{local_name(element)}: {value}")


def _is_mixed(element: "Element") -> bool:
    """Whether text stands between the element's children, as in a paragraph with emphasis."""
    return bool((element.text or "").strip()) or any((item.tail or "").strip() for item in element)
