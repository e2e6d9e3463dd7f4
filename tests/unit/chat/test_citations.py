import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.citations import Citation, CitationFilter
from tests.unit.chat.examples import passage

_PASSAGES = [passage(1), passage(2), passage(3)]
# What answers, and answers made to confuse, are made of.
_PIECES = st.sampled_from([" ", "[", "]", "0", "1", "2", "12", "[1]", " [3]", "[9]", "[1234]", "a", "\n", "(u)", "é🙂"])
_ANSWERS = st.lists(_PIECES, max_size=30).map("".join)


def _read(pieces: Iterable[str], count: int = 3) -> tuple[str, list[tuple[int, int]]]:
    """The text shown, and the number and index of each citation."""
    reader = CitationFilter(_PASSAGES[:count])
    shown: list[str | Citation] = [out for piece in pieces for out in reader.feed(piece)]
    shown += reader.finish()
    citations = [out for out in shown if isinstance(out, Citation)]
    assert all(citation.passage is _PASSAGES[citation.number - 1] for citation in citations)
    return "".join(out for out in shown if isinstance(out, str)), [(c.number, c.index) for c in citations]


def _split(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


@given(_ANSWERS, st.lists(st.integers(0, 200), max_size=12))
def test_how_an_answer_is_cut_into_pieces_changes_nothing(text: str, cuts: list[int]) -> None:
    assert _read(_split(text, cuts)) == _read([text]) == _read(text)


@given(_ANSWERS)
def test_every_marker_shown_is_a_citation_and_stands_where_it_says(text: str) -> None:
    shown, citations = _read(text)
    assert [(int(marker[1]), marker.start()) for marker in re.finditer(r"\[(\d{1,3})\]", shown)] == citations


@given(_ANSWERS)
def test_without_passages_an_answer_passes_untouched(text: str) -> None:
    assert _read(text, count=0) == (text, [])


@given(st.text())
def test_text_without_markers_passes_untouched(text: str) -> None:
    if re.search(r"\[\d{1,3}\]", text) is None:
        assert _read(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "shown", "citations"),
    [
        ("Four cranes [1].", "Four cranes [1].", [(1, 12)]),
        ("Four [1][2] and [3]", "Four [1][2] and [3]", [(1, 5), (2, 8), (3, 16)]),
        ("Four [4].", "Four.", []),
        ("Four [9][1].", "Four[1].", [(1, 4)]),
        ("Four  [0] or", "Four  or", []),
        ("[999]", "", []),
        ("🙂 [2]", "🙂 [2]", [(2, 2)]),
        ("\n[7]\n[1]", "\n\n[1]", [(1, 2)]),
        ("[[1]]", "[[1]]", [(1, 1)]),
        # Taking a marker out must not make another.
        ("[[9]1]", "[ 1]", []),
        ("[1[9]]", "[1 ]", []),
        ("[ [9]1]", "[ 1]", []),
    ],
)
def test_markers(text: str, shown: str, citations: list[tuple[int, int]]) -> None:
    assert _read(text) == _read([text]) == (shown, citations)


@pytest.mark.parametrize(
    "text", ["in 1990 [1234] it", "[abc]", "[]", "[1, 2]", "[ 1 ]", "[-1]", "[1.5]", "[text](https://a/b)", "[1", " ["]
)
def test_brackets_that_cite_nothing_stay(text: str) -> None:
    assert _read(text) == (text, [])


def test_text_is_held_back_only_while_it_may_become_a_marker() -> None:
    reader = CitationFilter(_PASSAGES)
    assert list(reader.feed("Four [")) == ["Four"]
    assert list(reader.feed("1")) == []
    assert list(reader.feed("2x")) == [" [12x"]
    assert list(reader.finish()) == []


def test_an_annotation_says_where_the_passage_stands() -> None:
    assert Citation(2, 12, _PASSAGES[1]).annotation() == {
        "type": "file_citation",
        "index": 12,
        "file_id": "file-2",
        "filename": "file 2.pdf",
        "vector_store_id": "vs_one",
        "number": 2,
        "page": 2,
        "start": 20,
        "end": 25,
        "text": "The harbour has 2 cranes.",
    }
