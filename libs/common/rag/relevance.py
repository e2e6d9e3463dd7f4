"""Whether the best that was found has to do with the question at all, or is only the least distant of what there is.

The cosine similarity of the nearest chunk, plus half the share of the question's terms that the best passage has. On
half of SQuAD 2.0's dev set, with the other half's articles as the corpus that does not answer, the two together have
an AUC of .993, either alone .951 to .980; see decision 0016.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from libs.common.rag.sparse import terms

# By embedding model, since each has a scale of its own: below it, nothing that was found is taken for an answer.
CALIBRATED: Final[Mapping[str, float]] = {"all-minilm-l6-v2": 0.64}

_COVERAGE_SHARE: Final = 0.5
# A long question is never covered whole by one passage, and need not be.
_ENOUGH_TERMS: Final = 8


def relevance(question: str, similarity: float, texts: Iterable[str]) -> float:
    """From about 0 to 1.5.

    Args:
        similarity: cosine, of the question and the nearest chunk.
        texts: of the passages found.
    """
    return similarity + _COVERAGE_SHARE * _coverage(question, texts)


def _coverage(question: str, texts: Iterable[str]) -> float:
    """The greatest share of the question's distinct terms that one text has; 1 where the question has none."""
    asked = set(terms(question))
    if not asked:
        return 1.0
    found = max((len(asked.intersection(terms(text))) for text in texts), default=0)
    return min(1.0, found / min(len(asked), _ENOUGH_TERMS))
