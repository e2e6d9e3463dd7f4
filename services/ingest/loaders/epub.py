"""EPUB: the chapters in the order of the spine, each read as HTML."""

import posixpath
from urllib.parse import unquote

from services.ingest.document import Document, LoadError
from services.ingest.loaders.archive import Archive
from services.ingest.loaders.html import walk
from services.ingest.loaders.markup import attribute, descendants, parse_xml
from services.ingest.loaders.outline import Outline
from services.ingest.sniffing import decode


def load(data: bytes) -> Document:
    """The text of a book.

    Raises:
        LoadError: damaged, encrypted or without a list of its chapters.
    """
    archive = Archive(data)
    container = archive.read("META-INF/container.xml")
    roots = descendants(parse_xml(container), "rootfile") if container else iter(())
    package = next((attribute(root, "full-path") for root in roots), "")
    content = archive.read(package)
    if content is None:
        raise LoadError("invalid_file", "The file is damaged: the book lacks the list of its chapters.")
    outline = Outline()
    book = parse_xml(content)
    items = {attribute(item, "id"): attribute(item, "href") for item in descendants(book, "item")}
    for reference in descendants(book, "itemref"):
        href = unquote(items.get(attribute(reference, "idref"), ""))
        chapter = archive.read(posixpath.normpath(posixpath.join(posixpath.dirname(package), href)))
        if chapter:
            walk(decode(chapter), outline)
    title = next((item.text or "" for item in descendants(book, "title")), "")
    return outline.document("application/epub+zip", title=title)
