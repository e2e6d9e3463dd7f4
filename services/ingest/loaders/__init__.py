"""From bytes to a document: one module for each family of files."""

from collections.abc import Callable
from typing import Final

from services.ingest.document import Document, LoadError
from services.ingest.loaders import (
    delimited,
    docx,
    eml,
    epub,
    html,
    json_paths,
    markdown,
    odt,
    pdf,
    plain,
    pptx,
    rtf,
    xlsx,
    xml,
)
from services.ingest.sniffing import FileKind, sniff

_LOADERS: Final[dict[FileKind, Callable[[bytes], Document]]] = {
    "pdf": pdf.load,
    "html": html.load,
    "markdown": markdown.load,
    "text": plain.load,
    "code": plain.load_code,
    "csv": delimited.load,
    "json": json_paths.load,
    "xml": xml.load,
    "docx": docx.load,
    "pptx": pptx.load,
    "xlsx": xlsx.load,
    "odt": odt.load,
    "epub": epub.load,
    "eml": lambda data: eml.load(data, _attached),
    "rtf": rtf.load,
}


def load(data: bytes, filename: str) -> Document:
    """The document in `data`; `filename` only decides between kinds of text that look alike.

    Raises:
        LoadError: of a kind that is not read, damaged, encrypted, or with neither text nor pages that are pictures.
    """
    document = _LOADERS[sniff(data, filename)](data)
    if not document.blocks and not document.picture_pages:
        raise LoadError("invalid_file", "The file holds no text. Check that it is the right one and not empty.")
    return document


def _attached(data: bytes, filename: str) -> Document:
    if sniff(data, filename) == "eml":
        raise LoadError(
            "unsupported_file", "A mail attached as a file is not read: mails in mails could go on for ever."
        )
    return load(data, filename)
