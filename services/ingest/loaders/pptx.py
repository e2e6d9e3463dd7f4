"""PPTX: slide by slide (a slide is a page), the title as heading, then shapes, tables and notes."""

import posixpath
import re
from typing import TYPE_CHECKING

from services.ingest.document import Document
from services.ingest.loaders.archive import Archive
from services.ingest.loaders.docx import core_title
from services.ingest.loaders.markup import attribute, descendants, local_name, parse_xml
from services.ingest.loaders.outline import Outline

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def load(data: bytes) -> Document:
    """The text of a presentation.

    Raises:
        LoadError: damaged or encrypted.
    """
    archive = Archive(data)
    outline = Outline()
    slides = _slides(archive)
    for number, name in enumerate(slides, start=1):
        _add_slide(outline, parse_xml(archive.read(name) or b""), number)
        notes = next((part for part in relations(archive, name).values() if "/notesSlides/" in part), None)
        if notes and (content := archive.read(notes)):
            for shape in descendants(parse_xml(content), "sp"):
                if _placeholder(shape) == "body":
                    outline.add(_paragraphs(shape), page=number)
    media_type = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    return outline.document(media_type, title=core_title(archive), page_count=len(slides))


def relations(archive: Archive, part: str) -> dict[str, str]:
    """Targets of an Office part's relations by id: names of entries, or addresses outside the file."""
    folder, name = posixpath.split(part)
    content = archive.read(f"{folder}/_rels/{name}.rels")
    targets: dict[str, str] = {}
    for relation in parse_xml(content) if content else ():
        target = attribute(relation, "Target")
        if attribute(relation, "TargetMode") != "External":
            target = posixpath.normpath(posixpath.join("/" + folder, target)).lstrip("/")
        targets[attribute(relation, "Id")] = target
    return targets


def _slides(archive: Archive) -> list[str]:
    """Names of the slides in the order they are shown."""
    main = archive.read("ppt/presentation.xml")
    targets = relations(archive, "ppt/presentation.xml")
    listed = [targets.get(_relation_id(item), "") for item in descendants(parse_xml(main), "sldId")] if main else []
    found = [name for name in listed if name in archive.names]
    return found or sorted(name for name in archive.names if re.fullmatch(r"ppt/slides/slide\d+\.xml", name))


def _relation_id(element: "Element") -> str:
    """The namespaced `r:id`, beside which a slide has a plain `id`."""
    return next((value for key, value in element.attrib.items() if key.endswith("}id")), "")


def _add_slide(outline: Outline, slide: "Element", number: int) -> None:
    for shape in slide.iter():
        name = local_name(shape)
        if name == "sp":
            text = _paragraphs(shape)
            if _placeholder(shape) in ("title", "ctrTitle"):
                outline.heading(text, 1, number)
            else:
                outline.add(text, page=number)
        elif name == "tbl":
            rows = (" | ".join(filter(None, map(_cell, descendants(row, "tc")))) for row in descendants(shape, "tr"))
            outline.add("\n".join(rows), "table", number)


def _placeholder(shape: "Element") -> str:
    mark = next(descendants(shape, "ph"), None)
    return attribute(mark, "type") if mark is not None else ""


def _cell(cell: "Element") -> str:
    return " ".join(_paragraphs(cell).split())


def _paragraphs(shape: "Element") -> str:
    lines = []
    for paragraph in descendants(shape, "p"):
        runs = (
            "\n" if local_name(run) == "br" else run.text or ""
            for run in paragraph.iter()
            if local_name(run) in ("t", "br")
        )
        lines.append("".join(runs))
    return "\n".join(lines)
