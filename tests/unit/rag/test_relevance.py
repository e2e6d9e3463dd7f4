import pytest

from libs.common.rag.relevance import relevance


@pytest.mark.parametrize(
    ("question", "texts", "expected"),
    [
        ("How many cranes stand in the harbour?", ["Cranes.", "A crane stands in the harbour."], 0.4 + 0.5 * 3 / 4),
        ("crane harbour", ["Many cranes in one harbour."], 0.9),
        ("crane harbour", ["Nothing of the kind."], 0.4),
        ("crane harbour", [], 0.4),
        ("Where is it?", ["Anything."], 0.9),  # stop words only: there is nothing to be covered
        ("港口有几台起重机", ["港口有四台起重机。"], 0.4 + 0.5 * 5 / 7),
    ],
)
def test_similarity_and_the_share_of_terms_in_the_best_text(question: str, texts: list[str], expected: float) -> None:
    assert relevance(question, 0.4, texts) == pytest.approx(expected)


def test_eight_terms_of_a_long_question_are_enough() -> None:
    words = [f"word{number}" for number in range(20)]
    question = " ".join(words)
    assert relevance(question, 0.0, [" ".join(words[:8])]) == 0.5
    assert relevance(question, 0.0, [" ".join(words[:4])]) == 0.25
