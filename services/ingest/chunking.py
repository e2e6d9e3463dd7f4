"""Cuts a document into chunks: whole sentences, exact offsets, nothing lost.

The text is first cut into units (sentences, headings, whole tables and pieces of code that fit), then neighbouring
units are packed. Every step is linear in the length of the text.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from services.ingest.document import Block, Chunk, Document

_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
_CJK_RUN: Final = re.compile(f"[{_CJK}]+")
# One sign that ends a sentence, its closing quotes and brackets, then white space; CJK needs no space. Bounded, so that
# a long run of dots cannot make the search quadratic.
_SENTENCE_END: Final = re.compile(
    r"""[.!?…]["'”’»)\]]{0,3}(?=\s)|[。！？][」』”’）】]{0,3}"""  # noqa: RUF001 - the signs themselves are meant
)
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(\[])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|Nos|Fig|Figs|Eq|Sec|Ch|vol|pp?|cf|ca|vs|e\.g|i\.e|z\.B|bzw|al|approx)\.$"
)
_ABBREVIATION_CHARACTERS: Final = 9
_SHORT_SENTENCE_CHARACTERS: Final = 40
_CHARACTERS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class ChunkingStrategy:
    """How large chunks are.

    Args:
        max_tokens: no chunk holds more, as the sum over its sentences with the white space after them.
        overlap_tokens: whole sentences of up to this many tokens are repeated from one chunk to the next; at most half
            of `max_tokens`.
        words: between how many words a chunk should have, where it is to end with a paragraph or heading if it can;
            None packs up to `max_tokens`.
    """

    max_tokens: int
    overlap_tokens: int = 0
    words: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.overlap_tokens * 2 <= self.max_tokens:
            raise ValueError("max_tokens must be positive and overlap_tokens at most half of it")


AUTO: Final = ChunkingStrategy(max_tokens=400, words=(60, 120))


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` has: one for four characters, one for each Chinese, Japanese or Korean one.

    An estimate that needs no tokenizer: within some 15 % for English prose, low for code and rare scripts.
    """
    wide = _wide_characters(text)
    return wide + (len(text) - wide + _CHARACTERS_PER_TOKEN - 1) // _CHARACTERS_PER_TOKEN


def _wide_characters(text: str) -> int:
    return 0 if text.isascii() else sum(map(len, _CJK_RUN.findall(text)))


def _words(text: str) -> int:
    """Words between white space; in CJK text, which has none, two characters are taken for a word."""
    if text.isascii():
        return len(text.split())
    return len(_CJK_RUN.sub(" ", text).split()) + (_wide_characters(text) + 1) // 2


@dataclass(frozen=True, slots=True)
class _Unit:
    """A stretch of the document that is not cut: trimmed, but its tokens count the white space around it too."""

    start: int
    end: int
    tokens: int
    words: int
    block: int
    heading: bool


def chunk(
    document: Document, strategy: ChunkingStrategy = AUTO, count_tokens: Callable[[str], int] = estimate_tokens
) -> list[Chunk]:
    """The chunks of `document`, in order; together they hold every character that is not white space."""
    units = list(_units(document, strategy, count_tokens))
    return [
        _chunk(document, units[first:last], position) for position, (first, last) in enumerate(_pack(units, strategy))
    ]


def _chunk(document: Document, units: list[_Unit], position: int) -> Chunk:
    start, end = units[0].start, units[-1].end
    body = next((unit for unit in units if not unit.heading), units[0])
    return Chunk(
        position=position,
        text=document.text[start:end],
        start=start,
        end=end,
        page=document.blocks[units[0].block].page,
        heading_path=document.blocks[body.block].heading_path,
        token_count=sum(unit.tokens for unit in units),
    )


def _pack(units: list[_Unit], strategy: ChunkingStrategy) -> Iterator[tuple[int, int]]:
    """Ranges of units, each a chunk; ranges overlap where the strategy asks for it."""
    first = fresh = 0  # where the chunk starts, and where what no chunk holds yet starts
    tokens = words = 0
    for here, unit in enumerate(units):
        while here > fresh and _closes(units, fresh, here, tokens, words, strategy):
            last = _without_trailing_headings(units, fresh, here)
            yield first, last
            first, fresh = _overlap_start(units, first, last, here, strategy), last
            tokens = sum(item.tokens for item in units[first:here])
            words = sum(item.words for item in units[first:here])
        tokens += unit.tokens
        words += unit.words
    if fresh < len(units):
        yield first, len(units)


def _closes(units: list[_Unit], fresh: int, here: int, tokens: int, words: int, strategy: ChunkingStrategy) -> bool:
    """Whether the chunk ends before the unit `here`."""
    unit, previous = units[here], units[here - 1]
    if tokens + unit.tokens > strategy.max_tokens:
        return True
    if strategy.words is None or _all_headings(units, fresh, here):
        return False  # headings lead to the text below them, however long that is
    fewest, most = strategy.words
    if words + unit.words > most and words > 0:
        return True
    if unit.heading and not previous.heading:
        return words * 2 >= fewest
    return unit.block != previous.block and words >= fewest


def _all_headings(units: list[_Unit], first: int, last: int) -> bool:
    return units[last - 1].heading and _without_trailing_headings(units, first, last) == last


def _without_trailing_headings(units: list[_Unit], first: int, last: int) -> int:
    """`last`, moved before the headings that would end the chunk, unless it holds nothing else."""
    end = last
    while end > first and units[end - 1].heading:
        end -= 1
    return end if end > first else last


def _overlap_start(units: list[_Unit], first: int, last: int, here: int, strategy: ChunkingStrategy) -> int:
    """Where the next chunk starts: as many whole units back as the overlap and the unit to come leave room for."""
    carried = sum(unit.tokens for unit in units[last : here + 1])
    room = min(strategy.overlap_tokens, strategy.max_tokens - carried)
    start = last
    while start - 1 > first and units[start - 1].tokens <= room:
        start -= 1
        room -= units[start].tokens
    return start


def _units(document: Document, strategy: ChunkingStrategy, count_tokens: Callable[[str], int]) -> Iterator[_Unit]:
    text = document.text
    ends = (*document.offsets[1:], len(text))
    for number, (block, start, end) in enumerate(zip(document.blocks, document.offsets, ends, strict=True)):
        for low, high in _spans(block, start, end, strategy.max_tokens, count_tokens):
            for piece, tokens in _fitting(text, low, high, strategy.max_tokens, count_tokens):
                words = _words(text[piece.start : piece.stop])
                yield _Unit(piece.start, piece.stop, tokens, words, number, block.kind == "heading")


def _spans(
    block: Block, start: int, end: int, max_tokens: int, count_tokens: Callable[[str], int]
) -> Iterator[tuple[int, int]]:
    """Where the block's sentences lie, without gaps up to `end`, where the next block starts.

    Headings, and tables and code that fit, stay whole; other kinds than paragraphs go line by line.
    """
    text = block.text
    if block.kind != "heading" and (block.kind not in ("table", "code") or count_tokens(text) > max_tokens):
        ends = _sentence_ends(text) if block.kind == "paragraph" else _line_ends(text)
        offset, last = start, len(text.rstrip())
        for stop in ends:
            if stop >= last:
                break  # what follows is white space, which must count with this sentence
            yield start, offset + stop
            start = offset + stop
    yield start, end


def _line_ends(text: str) -> Iterator[int]:
    return (found.end() for found in re.finditer(r"\n", text))


def _sentence_ends(text: str) -> Iterator[int]:
    """Where sentences end; very short ones are taken together, so that `. . . .` does not make a million units."""
    start = pending = 0
    for found in _SENTENCE_END.finditer(text):
        end = found.end()
        if text[found.start()] == "." and (
            _ABBREVIATION.search(text[max(0, end - _ABBREVIATION_CHARACTERS) : end])
            or text[end + 1 : end + 2].islower()
        ):
            continue
        if pending > start and end - start > _SHORT_SENTENCE_CHARACTERS:
            yield pending
            start = pending
        pending = end
    if pending > start:
        yield pending


def _fitting(
    text: str, start: int, end: int, max_tokens: int, count_tokens: Callable[[str], int]
) -> Iterator[tuple[slice, int]]:
    """`text[start:end]` as trimmed slices with their tokens: one if it fits, else cut at lines, words, characters."""
    if not text[start:end].strip():
        return
    tokens = count_tokens(text[start:end])
    window = end - start if tokens <= max_tokens else max(1, (end - start) * max_tokens // tokens)
    size = window
    while start < end:
        stop = _cut(text, start, end, size)
        tokens = count_tokens(text[start:stop])
        if tokens > max_tokens and stop - start > 1:
            size = max(1, (stop - start) // 2)
            continue
        piece = text[start:stop]
        if piece.strip():
            yield slice(start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())), tokens
        start, size = stop, window


def _cut(text: str, start: int, end: int, size: int) -> int:
    """The best place to cut within `size` characters: after a line, else after a word, else right there."""
    limit = start + size
    if limit >= end:
        return end
    for sign in ("\n", " "):
        found = text.rfind(sign, start + size // 2, limit)
        if found > start:
            return found + 1
    return limit
