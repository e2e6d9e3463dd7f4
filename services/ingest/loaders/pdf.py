"""PDF: text page by page in reading order, joined back into paragraphs; headings come from the bookmarks."""

import re
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Final

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no type information

from services.ingest.document import Block, Document, LoadError
from services.ingest.loaders.outline import Outline, squeeze

_ENCRYPTED: Final = 4  # FPDF_ERR_PASSWORD
_MAX_BOOKMARKS: Final = 5_000
_MAX_PAGES: Final = 10_000
_STAMP_CHARACTERS: Final = 100
_LOOKED_AT_OBJECTS: Final = 500
_LIGATURES: Final = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
# PDFium marks a hyphen at a line's end as U+FFFE or U+0002; other producers leave the plain sign.
_HYPHENATED: Final = re.compile(r"(?:[\ufffe\x02](?:\r?\n)?|(?<=[^\W\d_])-\r?\n(?=[^\W\d_A-Z]))")
_BULLET: Final = re.compile(r"(?:[-•·–*▪●○]|\(?\d{1,3}[.)]|\[\d+\])\s")  # noqa: RUF001 - the signs themselves are meant
_ENDS: Final = (".", "!", "?", ":", "。", "！", "？", '."', ".”")  # noqa: RUF001 - the signs themselves are meant


def load(data: bytes) -> Document:
    """The text of a PDF; a block's page is the one it starts on.

    Raises:
        LoadError: encrypted or damaged.
    """
    outline = Outline()
    pictures: list[int] = []
    try:
        with closing(pdfium.PdfDocument(data)) as pdf:
            page_count = len(pdf)
            headings = _bookmarks(pdf)
            for number, text, is_picture in _pages(pdf):
                _add_page(outline, number, text, headings.get(number, {}))
                if is_picture:
                    pictures.append(number)
            title = str(pdf.get_metadata_value("Title"))
    except pdfium.PdfiumError as error:
        raise _refusal(error) from error
    return outline.document("application/pdf", title=title, page_count=page_count, picture_pages=tuple(pictures))


def page_blocks(number: int, lines: str) -> list[Block]:
    """The blocks of a page whose lines were recognised; a blank line parts paragraphs."""
    outline = Outline()
    _add_page(outline, number, lines, {})
    return outline.blocks


def _refusal(error: Exception) -> LoadError:
    if getattr(error, "err_code", None) == _ENCRYPTED or "password" in str(error).lower():
        return LoadError("invalid_file", "The PDF is encrypted with a password. Remove it and upload the file again.")
    return LoadError(
        "invalid_file", "The PDF is damaged and cannot be opened. Save or export it again and upload that."
    )


def _pages(pdf: "pdfium.PdfDocument") -> Iterator[tuple[int, str, bool]]:
    """Number and text of every page that can be read, and whether it is a picture.

    One broken page does not lose the rest.
    """
    misses = 0
    for index in range(min(len(pdf), _MAX_PAGES)):
        try:
            with closing(pdf[index]) as page, closing(page.get_textpage()) as text_page:
                text = str(text_page.get_text_range())
                yield index + 1, text, _is_picture(page, len("".join(text.split())))
        except pdfium.PdfiumError:
            misses += 1
            if misses > 100 and misses > index // 2:  # a page count that is only a claim
                return


def _is_picture(page: "pdfium.PdfPage", characters: int) -> bool:
    """Whether a page shows something but hardly text: a scan, perhaps with a stamp or a page number laid over it."""
    if characters > _STAMP_CHARACTERS:
        return False
    shown = list(islice(page.get_objects(max_depth=3), _LOOKED_AT_OBJECTS))
    if not characters:
        return bool(shown)
    width, height = page.get_size()
    covered = 0.0
    for picture in shown:
        if picture.type == pdfium.raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = picture.get_bounds()
            covered += max(0.0, min(right, width) - max(left, 0)) * max(0.0, min(top, height) - max(bottom, 0))
    return bool(covered > width * height / 2)


def _bookmarks(pdf: "pdfium.PdfDocument") -> dict[int, dict[str, int]]:
    """By page: the titles of its bookmarks, without case and spaces, and their levels from 1."""
    found: dict[int, dict[str, int]] = {}
    for count, mark in enumerate(pdf.get_toc(max_depth=6)):
        target = mark.get_dest()
        page = target.get_index() if target is not None else None
        if page is not None:
            found.setdefault(page + 1, {})[_key(mark.get_title())] = mark.level + 1
        if count >= _MAX_BOOKMARKS:
            break
    return found


def _key(text: str) -> str:
    return "".join(text.split()).casefold()


def _add_page(outline: Outline, number: int, text: str, headings: dict[str, int]) -> None:
    text = _HYPHENATED.sub("", text).translate(_LIGATURES)
    lines = [squeeze(line) for line in text.splitlines()]
    full = _full_line_characters(lines)
    paragraph = ""
    ended, joint = True, ""
    for line in lines:
        level = headings.get(_key(line)) if line else None
        if not line or ended or level or _BULLET.match(line):
            outline.add(paragraph, page=number)
            paragraph, joint = "", ""
        if level:
            outline.heading(line, level, number)
            ended = True
            continue
        paragraph += joint + line
        joint = " " if len(line) > full else "\n"
        ended = len(line) <= full and line.endswith(_ENDS)
    outline.add(paragraph, page=number)


def _full_line_characters(lines: list[str]) -> int:
    """A line longer than this was broken by the margin and not by its author."""
    lengths = sorted(len(line) for line in lines if line)
    return lengths[len(lengths) * 9 // 10] * 7 // 10 if lengths else 0
