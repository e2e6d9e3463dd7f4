"""XML read safely: no entities expanded, no network, no DTD."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lxml import etree  # type: ignore[import-untyped] # lxml ships no type information

from services.ingest.document import LoadError

if TYPE_CHECKING:
    # lxml's elements keep ElementTree's interface, which is typed.
    from xml.etree.ElementTree import Element


def parse_xml(data: bytes) -> "Element":
    """The root element of `data`.

    Raises:
        LoadError: not well-formed, or nested beyond what libxml2 allows.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root: Element = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise LoadError("invalid_file", "The file is damaged: its XML cannot be read.") from error
    return root


def local_name(element: "Element") -> str:
    """The tag without its namespace; entity references, left unexpanded, are called `&`."""
    tag: object = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else "&"


def attribute(element: "Element", name: str) -> str:
    """The attribute with this local name, in whichever namespace, or an empty string."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def descendants(element: "Element", name: str) -> Iterator["Element"]:
    """Every descendant with this local name, in document order."""
    return (found for found in element.iter() if local_name(found) == name)


def child(element: "Element", *names: str) -> "Element | None":
    """The element reached by following the local names down from `element`, first match at each step."""
    for name in names:
        found = next((item for item in element if local_name(item) == name), None)
        if found is None:
            return None
        element = found
    return element
