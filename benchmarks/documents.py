"""Files to be made searchable: as many as asked for, no two alike, and the same in every run."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Final

_VOCABULARY: Final = 6000
_SENTENCE_WORDS: Final = (8, 22)
_PARAGRAPH_SENTENCES: Final = (3, 7)
_TEXT_BYTES: Final = 5000
_PDF_PAGES: Final = 14
_PAGE_LINES: Final = 46
_LINE_WORDS: Final = 10
_SYLLABLES: Final = tuple(
    onset + vowel + "nrs"[number % 3] for number, (onset, vowel) in enumerate(product("bdfgklmnprstvz", "aeiou"))
)


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file with a word that no other file has."""

    name: str
    content: bytes
    mark: str


def text_files(count: int, seed: int) -> Iterator[SampleFile]:
    """Plain text, Markdown and HTML in turn, of some 5 KB each."""
    writers = (("txt", _plain), ("md", _markdown), ("html", _html))
    for number in range(count):
        writer = _Writer(seed, number)
        suffix, render = writers[number % len(writers)]
        yield SampleFile(f"text-{seed}-{number}.{suffix}", render(writer).encode(), writer.mark)


def pdf_files(count: int, seed: int) -> Iterator[SampleFile]:
    """PDFs of 14 pages, 6,400 words and some 60 chunks."""
    for number in range(count):
        writer = _Writer(seed, 1_000_000 + number)
        yield SampleFile(f"pages-{seed}-{number}.pdf", _pdf(writer), writer.mark)


class _Writer:
    """Sentences of made-up words, a few of them frequent and most of them rare, as in any language."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = Random(f"{seed}/{number}")
        self.mark = f"mark{seed}x{number}"

    def words(self, count: int) -> list[str]:
        return [_word(int(_VOCABULARY ** self._random.random())) for _ in range(count)]

    def sentence(self) -> str:
        return " ".join(self.words(self._random.randint(*_SENTENCE_WORDS))).capitalize() + "."

    def paragraphs(self, size_bytes: int) -> Iterator[str]:
        written = 0
        while written < size_bytes:
            sentences = [self.sentence() for _ in range(self._random.randint(*_PARAGRAPH_SENTENCES))]
            if written == 0:
                sentences.append(f"This one is about {self.mark}.")
            paragraph = " ".join(sentences)
            written += len(paragraph)
            yield paragraph

    def title(self) -> str:
        return " ".join(self.words(4)).capitalize()


def _word(rank: int) -> str:
    """The word of this rank; frequent words are short."""
    syllables = [_SYLLABLES[rank % len(_SYLLABLES)]]
    while rank := rank // len(_SYLLABLES):
        syllables.append(_SYLLABLES[rank % len(_SYLLABLES)])
    return "".join(syllables)


def _plain(writer: _Writer) -> str:
    return "\n\n".join(writer.paragraphs(_TEXT_BYTES))


def _markdown(writer: _Writer) -> str:
    blocks = [f"# {writer.title()}"]
    for number, paragraph in enumerate(writer.paragraphs(_TEXT_BYTES)):
        if number % 3 == 0:
            blocks.append(f"## {writer.title()}")
        blocks.append(paragraph)
    return "\n\n".join(blocks)


def _html(writer: _Writer) -> str:
    blocks = [f"<h1>{writer.title()}</h1>"]
    for number, paragraph in enumerate(writer.paragraphs(_TEXT_BYTES)):
        if number % 3 == 0:
            blocks.append(f"<h2>{writer.title()}</h2>")
        blocks.append(f"<p>{paragraph}</p>")
    return f"<!doctype html><html><head><title>{writer.title()}</title></head><body>{''.join(blocks)}</body></html>"


def _pdf(writer: _Writer) -> bytes:
    """A PDF of text in Helvetica: the least that a reader takes (ISO 32000-1, 7.5)."""
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(_PDF_PAGES))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {_PDF_PAGES} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for page in range(_PDF_PAGES):
        content = zlib.compress(_page(writer, first=page == 0).encode())
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            + f"/Contents {5 + 2 * page} 0 R >>".encode()
        )
        head = f"<< /Length {len(content)} /Filter /FlateDecode >>\nstream\n".encode()
        objects.append(head + content + b"\nendstream")
    return _pdf_file(objects)


def _page(writer: _Writer, *, first: bool) -> str:
    words = ([f"About {writer.mark}."] if first else []) + " ".join(
        writer.sentence() for _ in range(_PAGE_LINES * _LINE_WORDS // 15)
    ).split()
    lines = [" ".join(words[start : start + _LINE_WORDS]) for start in range(0, len(words), _LINE_WORDS)]
    shown = "".join(f"({line}) Tj T*\n" for line in lines)
    return f"BT /F1 11 Tf 16 TL 50 790 Td\n{shown}ET"


def _pdf_file(objects: list[bytes]) -> bytes:
    file = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(file))
    return bytes(file + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer)
