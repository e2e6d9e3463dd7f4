"""From what was found to what is shown: nothing twice, and each passage with what stands around it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from libs.common.contracts.token_estimates import estimate_text_tokens
from services.chat.ports import Passage

# How far from a hit its neighbours are looked for: chunks have some 100 words, headings and list items far fewer.
REACH: Final = 2
_BETWEEN_WORDS: Final = re.compile(r"[\W_]+")

# A chunk's vector store, file, version, and position there.
Place = tuple[str, str, int, int]


def place_of(passage: Passage) -> Place:
    """Where a passage stands."""
    return passage.vector_store_id, passage.file_id, passage.version, passage.position


def distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Those that say something that no better one says.

    Copies of a document, in other formats too, have the same words in the same order, whatever the case, punctuation,
    spaces and hyphens. One word more or less is kept: it may be a "not", or another year.
    """
    said: list[str] = []
    for passage in passages:
        words = _BETWEEN_WORDS.sub("", passage.text.casefold())
        if not any(words in before for before in said):
            said.append(words)
            yield passage


def neighbours_of(passages: Sequence[Passage]) -> list[Place]:
    """The places around passages that are not themselves among them."""
    taken = set(map(place_of, passages))
    around: dict[Place, None] = {}
    for store_id, file_id, version, position in map(place_of, passages):
        for neighbour in range(max(0, position - REACH), position + REACH + 1):
            around[store_id, file_id, version, neighbour] = None
    return [place for place in around if place not in taken]


def joined(passages: Sequence[Passage], neighbours: Iterable[Passage], most_tokens: int) -> list[Passage]:
    """Each passage with what stands around it under the same heading, as far as `most_tokens` reach, by estimate.

    What follows comes first, then what precedes, in turn. A hit next to a better one becomes part of it.
    """
    found = {place_of(passage): passage for passage in (*neighbours, *passages)}
    used: set[Place] = set()
    result = []
    for passage in passages:
        if place_of(passage) not in used:
            span = _span(passage, found, used, most_tokens)
            used.update(map(place_of, span))
            result.append(_one(passage, span))
    return result


def _span(passage: Passage, found: Mapping[Place, Passage], used: set[Place], most_tokens: int) -> list[Passage]:
    span = [passage]
    left = most_tokens - estimate_text_tokens(passage.text)
    sides = [1, -1]
    while sides:
        side = sides.pop(0)
        edge = span[-1] if side > 0 else span[0]
        place = (*place_of(edge)[:3], edge.position + side)
        beside = found.get(place)
        if beside is None or place in used or beside.heading_path != passage.heading_path:
            continue
        tokens = estimate_text_tokens(beside.text)
        if tokens <= left:
            left -= tokens
            span.insert(len(span) if side > 0 else 0, beside)
            sides.append(side)
    return span


def _one(hit: Passage, span: Sequence[Passage]) -> Passage:
    """The span as one passage. Between two chunks is nothing but white space, which is not kept as it was."""
    text, end = span[0].text, span[0].end
    for piece in span[1:]:
        gap = piece.start - end
        text += piece.text[-gap:] if gap < 0 else "\n" * min(gap, 1) + piece.text
        end = max(end, piece.end)
    return replace(hit, text=text, start=span[0].start, end=end, page=span[0].page, position=span[0].position)
