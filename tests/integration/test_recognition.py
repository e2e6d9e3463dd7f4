"""Text in pictures of pages: a scan reads as the document it was made from, and bad pages cost only themselves."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no type information
import pytest

from services.ingest import recognition
from services.ingest.document import Document, LoadError
from services.ingest.loaders import load
from services.ingest.parsing import Parser
from services.ingest.readers import ParseLimits
from tests.scans import scanned

_HANDBOOK = Path(__file__).parents[2] / "samples/handbook.pdf"


@pytest.fixture(scope="module")
def scan() -> bytes:
    return scanned(_HANDBOOK, pages=(1, 2))


@pytest.fixture
def parser() -> Iterator[Parser]:
    with Parser(max_children=1, scanned_pages=10) as opened:
        yield opened


async def _parse(parser: Parser, data: bytes, **options: Any) -> Document:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return await parser.parse(file, "scan.pdf", **options)


def _words(document: Document) -> set[tuple[int | None, str]]:
    return {(block.page, word) for block in document.blocks for word in block.text.split() if len(word) > 3}


async def test_a_scan_reads_as_the_document_it_was_made_from(parser: Parser, scan: bytes) -> None:
    assert load(scan, "scan.pdf").blocks == ()
    seen: list[tuple[int, int]] = []

    async def page_read(done: int, total: int) -> None:
        seen.append((done, total))

    read = await _parse(parser, scan, page_read=page_read)
    original = load(_HANDBOOK.read_bytes(), "handbook.pdf")
    expected = {(page, word) for page, word in _words(original) if page in (1, 2)}
    assert len(expected & _words(read)) > 0.95 * len(expected)
    assert read.page_count == 2
    assert seen == [(1, 2), (2, 2)]


async def test_without_recognition_a_scan_says_what_is_missing(scan: bytes) -> None:
    with Parser(max_children=1) as parser:
        with pytest.raises(LoadError, match="looks scanned") as caught:
            await _parse(parser, scan)
        assert caught.value.code == "unsupported_file"


async def test_without_the_package_a_scan_says_what_is_missing(scan: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "find_spec", lambda _name: None)
    with Parser(max_children=1, scanned_pages=10) as parser, pytest.raises(LoadError, match="ask the operator"):
        await _parse(parser, scan)


async def test_more_scanned_pages_than_allowed_are_refused(scan: bytes) -> None:
    with Parser(max_children=1, scanned_pages=1) as parser, pytest.raises(LoadError, match="at most 1 are read"):
        await _parse(parser, scan)


async def test_pictures_without_text_are_refused(parser: Parser, tmp_path: Path) -> None:
    blank = tmp_path / "blank.pdf"
    with closing(pdfium.PdfDocument.new()) as pdf:
        pdf.new_page(300, 400)
        pdf.save(blank)
    with pytest.raises(LoadError, match="none was recognised"):
        await _parse(parser, scanned(blank))


async def test_a_page_that_breaks_off_does_not_lose_the_others(
    parser: Parser, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = parser._pictures.ask

    async def ask_with_little_time(file: Any, request: Any, limits: ParseLimits, owner: str) -> bytes:
        hurried = request["page"] == 1
        return await ask(file, request, ParseLimits(wall_seconds=0.05) if hurried else limits, owner)

    monkeypatch.setattr(parser._pictures, "ask", ask_with_little_time)
    read = await _parse(parser, scan)
    assert {block.page for block in read.blocks} == {2}
    monkeypatch.setattr("services.ingest.parsing._PAGE_LIMITS", ParseLimits(wall_seconds=0.05))
    with pytest.raises(LoadError, match="more time"):
        await _parse(parser, scan)
