"""Scans, as the tests need them: documents whose pages are pictures."""

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no type information


def scanned(source: Path, *, pages: Sequence[int] | None = None, dots_per_inch: int = 150) -> bytes:
    """A PDF with the pages of another one as pictures; `pages` count from 1, all of them unless given."""
    saved = io.BytesIO()
    with closing(pdfium.PdfDocument(source)) as text, closing(pdfium.PdfDocument.new()) as scan:
        for number in pages or range(1, len(text) + 1):
            page = text[number - 1]
            width, height = page.get_size()
            image = pdfium.PdfImage.new(scan)
            image.set_bitmap(page.render(scale=dots_per_inch / 72, grayscale=True))
            image.set_matrix(pdfium.PdfMatrix().scale(width, height))
            sheet = scan.new_page(width, height)
            sheet.insert_obj(image)
            sheet.gen_content()
        scan.save(saved)
    return saved.getvalue()
