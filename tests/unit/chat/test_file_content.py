from hypothesis import given
from hypothesis import strategies as st

from services.chat.file_content import without_overlap


def piece(text: str, start: int) -> dict[str, object]:
    return {"text": text, "start": start, "end": start + len(text)}


def test_what_the_chunk_before_ended_with_is_left_out() -> None:
    chunks = [piece("The gate opens", 0), piece("opens at six.", 9), piece("Apart.", 40)]
    assert list(without_overlap(chunks)) == ["The gate opens", " at six.", "Apart."]


def test_a_chunk_within_the_one_before_says_nothing_new() -> None:
    assert list(without_overlap([piece("abcdef", 0), piece("cd", 2), piece("efgh", 4)])) == ["abcdef", "gh"]
    assert list(without_overlap([])) == []


@given(st.text(min_size=1, max_size=60), st.integers(1, 20), st.integers(0, 19))
def test_windows_of_a_text_give_the_text(text: str, size: int, overlap: int) -> None:
    step = max(1, size - overlap)
    chunks = [piece(text[start : start + size], start) for start in range(0, len(text), step)]
    assert "".join(without_overlap(chunks)) == text
