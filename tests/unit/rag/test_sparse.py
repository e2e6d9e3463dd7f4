import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.rag.sparse import encode_document, encode_query, terms


def _score(question: str, document: str) -> float:
    found = encode_document(document)
    weights = dict(zip(found.indices, found.values, strict=True))
    return sum(weights.get(index, 0.0) for index in encode_query(question).indices)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Running RUNNERS, ran!", ["run", "runner", "ran"]),
        ("don't it's we'll", []),
        ("Straße café", ["strass", "café"]),
        ("ﬁle snake_case 3.14", ["file", "snake", "case", "3", "14"]),
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("Qdrant検索エンジンv2", ["qdrant", "検索", "索エ", "エン", "ンジ", "ジン", "v2"]),
        ("한국어 문서", ["한국", "국어", "문서"]),
        ("हिन्दी", ["हिन्दी"]),
        ("", []),
    ],
)
def test_terms_are_stems_without_stop_words_and_cjk_pairs(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_accents_written_apart_are_the_same_term() -> None:
    assert terms("cafe\u0301") == terms("caf\u00e9")


def test_document_weights_follow_bm25() -> None:
    vector = encode_document("apple apple banana", average_length_terms=3.0)
    weights = sorted(vector.values)
    # At average length the norm is k1: tf * 2.2 / (tf + 1.2).
    assert weights == pytest.approx([1 * 2.2 / 2.2, 2 * 2.2 / 3.2])


def test_a_longer_document_counts_less() -> None:
    short = "budget report"
    assert _score("budget", short) > _score("budget", short + " weather season harvest" * 30) > 0


def test_query_counts_each_distinct_term() -> None:
    vector = encode_query("budget budgets weather")
    assert len(vector.indices) == 2
    assert vector.values == (2.0, 1.0)


def test_query_of_stop_words_is_empty() -> None:
    vector = encode_query("What is it that they do?")
    assert vector.indices == vector.values == ()


def test_term_ids_are_the_same_in_another_process() -> None:
    code = "from libs.common.rag.sparse import encode_query; print(*encode_query('budget weather 東京').indices)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert tuple(map(int, run.stdout.split())) == encode_query("budget weather 東京").indices


@given(st.text(alphabet=st.characters()))
def test_any_text_gives_unique_32_bit_ids_with_positive_weights(text: str) -> None:
    vector = encode_document(text)
    assert len(set(vector.indices)) == len(vector.indices) == len(vector.values)
    assert all(0 <= index < 2**32 for index in vector.indices)
    assert all(0 < value < 2.2 for value in vector.values)
    assert set(encode_query(text).indices) == set(vector.indices)
