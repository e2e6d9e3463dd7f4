"""Chunks: exact offsets, nothing lost, whole sentences, sizes held."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.chunking import AUTO, ChunkingStrategy, chunk, estimate_tokens
from services.ingest.document import Block, Document

_TEXT = st.text(alphabet=st.sampled_from("aB1é。 .?!\n\t\"')汉字한…"), min_size=1, max_size=400).filter(str.strip)
_BLOCKS = st.lists(
    st.builds(Block, _TEXT, st.sampled_from(["paragraph", "heading", "table", "list", "code"])), min_size=1, max_size=12
)
_STRATEGIES = st.one_of(
    st.just(AUTO),
    st.integers(1, 60).flatmap(lambda most: st.builds(ChunkingStrategy, st.just(most), st.integers(0, most // 2))),
)


def _document(*blocks: Block) -> Document:
    return Document.of(blocks, media_type="text/plain")


def _sentences(count: int) -> str:
    return " ".join(f"Sentence number {number} has just seven words." for number in range(count))


@settings(max_examples=300, deadline=None)
@given(blocks=_BLOCKS, strategy=_STRATEGIES)
def test_chunks_are_exact_slices_that_lose_nothing_and_keep_their_size(
    blocks: list[Block], strategy: ChunkingStrategy
) -> None:
    document = _document(*blocks)
    chunks = chunk(document, strategy, estimate_tokens)

    held = set[int]()
    for position, item in enumerate(chunks):
        assert item.position == position
        assert item.text == document.text[item.start : item.end] == item.text.strip()
        assert estimate_tokens(item.text) <= item.token_count <= strategy.max_tokens
        held.update(range(item.start, item.end))
    assert all(place in held for place, character in enumerate(document.text) if not character.isspace())
    assert [item.start for item in chunks] == sorted({item.start for item in chunks})
    if strategy.overlap_tokens == 0:
        assert all(one.end <= two.start for one, two in pairwise(chunks))


@settings(max_examples=100, deadline=None)
@given(blocks=_BLOCKS)
def test_offsets_of_blocks_point_at_their_texts(blocks: list[Block]) -> None:
    document = _document(*blocks)
    for block, start in zip(document.blocks, document.offsets, strict=True):
        assert document.text[start : start + len(block.text)] == block.text


def test_auto_packs_whole_sentences_of_60_to_120_words() -> None:
    chunks = chunk(_document(Block(_sentences(100))))
    assert len(chunks) > 4
    for item in chunks[:-1]:
        assert item.text.startswith("Sentence")
        assert item.text.endswith("words.")
        assert 60 <= len(item.text.split()) <= 120


def test_static_repeats_whole_sentences_up_to_the_overlap() -> None:
    chunks = chunk(_document(Block(_sentences(60))), ChunkingStrategy(100, 44))
    for one, two in pairwise(chunks):
        overlap = one.text[two.start - one.start :]
        assert overlap.startswith("Sentence")
        assert overlap.count("words.") == 4  # of eleven tokens each


def test_headings_lead_the_text_below_them() -> None:
    blocks = [Block("Opening", "heading"), Block(_sentences(15), heading_path=("Opening",))]
    blocks += [Block("Closing", "heading"), Block(_sentences(15), heading_path=("Closing",))]
    chunks = chunk(_document(*blocks))
    assert [item.text.split()[0] for item in chunks] == ["Opening", "Closing"]
    assert [item.heading_path for item in chunks] == [("Opening",), ("Closing",)]


def test_a_table_that_fits_stays_whole() -> None:
    table = "\n".join(f"Row {number} | a cell. Another cell" for number in range(20))
    chunks = chunk(_document(Block(_sentences(14)), Block(table, "table"), Block(_sentences(14))))
    assert any(table in item.text for item in chunks)


def test_a_sentence_longer_than_the_limit_is_cut_between_words() -> None:
    document = _document(Block(" ".join(f"word{number}" for number in range(500))))
    chunks = chunk(document, ChunkingStrategy(50))
    assert " ".join(item.text for item in chunks) == document.text


def test_chinese_sentences_end_without_a_space() -> None:
    sentence = "这是一个关于文档的句子。"
    chunks = chunk(_document(Block(sentence * 40)))
    assert len(chunks) > 1
    assert all(item.text.endswith("。") and len(item.text) % len(sentence) == 0 for item in chunks)


def test_abbreviations_and_decimals_do_not_end_a_sentence() -> None:
    text = "Dr. Miller paid 3.5 million, i.e. too much. He regretted it, as J. Smith noted."
    chunks = chunk(_document(Block(text)), ChunkingStrategy(11))
    assert [item.text for item in chunks] == [
        "Dr. Miller paid 3.5 million, i.e. too much.",
        "He regretted it, as J. Smith noted.",
    ]


def test_work_grows_with_the_text_and_no_faster() -> None:
    def counted_characters(size: int) -> int:
        counted = 0

        def count(text: str) -> int:
            nonlocal counted
            counted += len(text)
            return estimate_tokens(text)

        chunk(_document(Block("word. " * (size // 6) + "x" * size + "." * size)), AUTO, count)
        return counted

    assert counted_characters(400_000) < 4.5 * counted_characters(100_000)


def test_the_embedded_text_names_what_the_chunk_does_not() -> None:
    blocks = [Block("Pay", "heading"), Block("Wages rise yearly.", heading_path=("Pay",))]
    (item,) = chunk(_document(*blocks))
    assert item.embedding_text("Handbook") == "Handbook\nPay\n\nWages rise yearly."
    assert item.embedding_text("Pay") == item.text


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("four", 1), ("fours", 2), ("汉字", 2), ("汉字four", 3)])
def test_estimated_tokens(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_an_overlap_beyond_half_is_refused() -> None:
    with pytest.raises(ValueError, match="half"):
        ChunkingStrategy(100, 51)
