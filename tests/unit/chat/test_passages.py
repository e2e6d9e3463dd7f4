"""What passages become before a model is shown them: nothing twice, and what stands around them."""

from services.chat.passages import REACH, distinct, joined, neighbours_of
from services.chat.ports import Passage

_TEXTS = ("The port opened in 1872.", "It has four cranes.", "The tide is high at noon.", "Ships wait outside.")


def _at(
    position: int, *, file_id: str = "file-1", text: str = "", heading: tuple[str, ...] = (), gap: int = 1
) -> Passage:
    texts = [text or _TEXTS[position % len(_TEXTS)]]
    start = sum(len(each) + gap for each in _TEXTS[:position])
    return Passage(
        vector_store_id="vs_1",
        file_id=file_id,
        filename="port.md",
        text=texts[0],
        score=1.0 - position / 10,
        page=position + 1,
        start=start,
        end=start + len(texts[0]),
        heading_path=heading,
        position=position,
    )


def test_the_same_words_are_shown_once_whatever_their_form() -> None:
    forms = ["It has four cranes.", "IT HAS FOUR\ncranes", "It has four cra-\nnes.", "four cranes"]
    passages = [_at(0, file_id=f"file-{number}", text=text) for number, text in enumerate(forms)]
    assert list(distinct(passages)) == passages[:1]


def test_one_word_more_or_another_number_says_something_else() -> None:
    texts = ["Guests may smoke.", "Guests may not smoke.", "Open until 2025.", "Open until 2026.", "港口有四台起重机。"]
    passages = [_at(0, file_id=f"file-{number}", text=text) for number, text in enumerate(texts)]
    assert list(distinct(passages)) == passages


def test_neighbours_are_asked_for_once_and_never_before_the_first() -> None:
    places = neighbours_of([_at(1), _at(2)])
    assert places == [("vs_1", "file-1", 1, position) for position in (0, 3, 4)]
    assert len(neighbours_of([_at(9, text="x")])) == 2 * REACH


def test_a_passage_grows_by_what_follows_and_precedes_as_far_as_tokens_reach() -> None:
    hit, around = _at(1), [_at(0), _at(2), _at(3)]
    text = "".join(each.text + "\n" for each in map(_at, range(4)))[:-1]
    [whole] = joined([hit], around, 1000)
    assert (whole.text, whole.start, whole.end, whole.page, whole.position) == (text, 0, len(text), 1, 0)
    assert whole.score == hit.score
    [some] = joined([hit], around, 12)  # its own 5 tokens, and 7 of what follows
    assert (some.start, some.end) == (hit.start, _at(2).end)
    assert joined([hit], around, 5) == [hit]
    assert joined([hit], [_at(3)], 1000) == [hit], "a gap ends it"


def test_hits_side_by_side_become_one() -> None:
    [one] = joined([_at(2), _at(1)], [], 1000)
    assert one.text == f"{_TEXTS[1]}\n{_TEXTS[2]}"
    assert (one.start, one.end, one.score) == (_at(1).start, _at(2).end, _at(2).score)


def test_other_headings_files_and_versions_stay_apart() -> None:
    hit = _at(1, heading=("Cranes",))
    assert joined([hit], [_at(2, heading=("Tides",)), _at(0, file_id="file-2", heading=("Cranes",))], 1000) == [hit]


def test_windows_that_overlap_are_joined_without_repeating() -> None:
    text = "one two three four five six"
    first = Passage("vs_1", "file-1", "a.txt", text[:13], 1.0, None, 0, 13, position=0)
    second = Passage("vs_1", "file-1", "a.txt", text[8:], 0.5, None, 8, len(text), position=1)
    [whole] = joined([first, second], [], 1000)
    assert (whole.text, whole.start, whole.end) == (text, 0, len(text))
