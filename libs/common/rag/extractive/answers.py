"""Sentences of the passages that answer a question, word for word, each with the number of its passage.

A sentence is worth its BM25 score (Robertson and Zaragoza, 2009) plus a share of its passage's, since what a question
is about is often named only in a neighbouring sentence; passages that come earlier were retrieved as better ones.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from libs.common.rag.extractive.answer_types import holds_answer_type
from libs.common.rag.extractive.sentences import is_table_row, split_sentences
from libs.common.rag.extractive.terms import terms

MAX_SENTENCES: Final = 3

# Chosen on half of a sample of SQuAD 2.0's dev set; the figures move little around them.
_K1: Final = 1.2
_B: Final = 0.5
_PASSAGE_SHARE: Final = 0.5
_RANK_BONUS: Final = 0.3
_ANSWER_TYPE_BONUS: Final = 0.15
# A heading, a question or a table's head says what the lines below it answer, and is no answer itself.
_HEADING_SHARE: Final = 0.6
_HEADING_FACTOR: Final = 0.4
_CLOSE_TO_BEST: Final = 0.8
# Share of the greatest score the question could reach: below it, overlap is taken for chance.
_MIN_RELEVANCE: Final = 0.14
# A handful of sentences says little about how rare a word is; these imagined ones pull IDF towards even weights.
_IDF_PRIOR_SENTENCES: Final = 5.0

_BACK_REFERENCE: Final = re.compile(
    r"\b(it|its|that|this|those|these|they|them|their|he|she|him|her|his|one|ones|there|then|same)\b"
    r"|^\s*(and|but|or|so|also|what about|how about|why|really)\b",
    re.IGNORECASE,
)
_BACK_REFERENCE_WORDS: Final = 10
_EARLIER_QUESTION_WEIGHT: Final = 0.4

_Bag = Counter[str]
_Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Passage:
    """Text to answer from and the number it is cited by."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Passages by ascending number, the question, and the user's earlier messages, oldest first."""

    passages: tuple[Passage, ...]
    question: str
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """A sentence and where it stands; relevance 1 is that of one that says all that the question says."""

    number: int
    position: int
    text: str
    relevance: float


def cited_answer(prompt: Prompt) -> str:
    """The best sentences, each followed by ` [number]`; empty if no passage is relevant."""
    return " ".join(f"{sentence.text} [{sentence.number}]" for sentence in best_sentences(prompt))


def best_sentences(prompt: Prompt) -> list[Scored]:
    """The sentences that answer the question, at most three, in reading order; none if no passage is relevant."""
    scored = sorted(_scored(prompt), key=lambda sentence: -sentence.relevance)
    if not scored or scored[0].relevance < _MIN_RELEVANCE:
        return []
    least = scored[0].relevance * _CLOSE_TO_BEST
    chosen = {sentence.text: sentence for sentence in reversed(scored) if sentence.relevance >= least}
    best = sorted(chosen.values(), key=lambda sentence: -sentence.relevance)[:MAX_SENTENCES]
    return sorted(best, key=lambda sentence: (sentence.number, sentence.position))


def _scored(prompt: Prompt) -> Iterator[Scored]:
    """Every sentence that shares a term with the question, or stands below a heading that does."""
    texts = [split_sentences(passage.text) for passage in prompt.passages]
    bags = [[Counter(terms(text)) for text in sentences] for sentences in texts]
    weights = _idf_weights(_question_weights(prompt), [bag for sentences in bags for bag in sentences])
    passage_scores = _bm25(weights, [sum(sentences, _Bag()) for sentences in bags])
    sentence_scores = iter(_bm25(weights, [bag for sentences in bags for bag in sentences]))
    greatest = sum(weights.values()) * (_K1 + 1) * (1 + _PASSAGE_SHARE)
    for rank, (passage, sentences) in enumerate(zip(prompt.passages, texts, strict=True)):
        own = _with_headings(prompt.question, sentences, [next(sentence_scores) for _ in sentences])
        for position, (text, score) in enumerate(zip(sentences, own, strict=True)):
            if score > 0 and bags[rank][position]:
                total = (score + _PASSAGE_SHARE * passage_scores[rank]) * (1 + _RANK_BONUS / (rank + 1))
                yield Scored(passage.number, position, text, total / greatest)


def _with_headings(question: str, sentences: Sequence[str], scores: Sequence[float]) -> Iterator[float]:
    """The sentences' scores after the part that form plays: headings lend theirs to what stands below them."""
    lent = 0.0
    for position, (text, score) in enumerate(zip(sentences, scores, strict=True)):
        if _is_heading(text) or (is_table_row(text) and not (position and is_table_row(sentences[position - 1]))):
            lent = score * _HEADING_SHARE
            yield score * _HEADING_FACTOR
        else:
            yield (score + lent) * (1 + _ANSWER_TYPE_BONUS * holds_answer_type(question, text))


def _question_weights(prompt: Prompt) -> _Weights:
    """Weight 1 for the question's terms, less for the user's last messages where the question refers back to them."""
    weights = dict.fromkeys(terms(prompt.question), 1.0)
    short = len(prompt.question.split()) <= _BACK_REFERENCE_WORDS
    if not weights or (short and _BACK_REFERENCE.search(prompt.question)):
        for distance, text in enumerate(reversed(prompt.earlier[-2:]), start=1):
            for term in terms(text):
                weights.setdefault(term, _EARLIER_QUESTION_WEIGHT / distance)
    return weights


def _idf_weights(weights: _Weights, bags: Sequence[_Bag]) -> _Weights:
    count = len(bags) + _IDF_PRIOR_SENTENCES
    weighted = {}
    for term, weight in weights.items():
        holding = sum(term in bag for bag in bags) + 1
        weighted[term] = weight * math.log(1 + (count - holding + 0.5) / (holding + 0.5))
    return weighted


def _bm25(weights: _Weights, bags: Sequence[_Bag]) -> list[float]:
    average = sum(bag.total() for bag in bags) / len(bags) if bags else 0.0
    scores = []
    for bag in bags:
        norm = _K1 * (1 - _B + _B * bag.total() / average) if average else _K1
        found = weights.keys() & bag.keys()
        scores.append(sum(weights[term] * bag[term] * (_K1 + 1) / (bag[term] + norm) for term in found))
    return scores


def _is_heading(sentence: str) -> bool:
    if sentence.endswith(("?", "？")):  # noqa: RUF001
        return True
    return len(sentence) <= 60 and len(sentence.split()) <= 8 and not re.search(r"[.!。！|:\d]", sentence)  # noqa: RUF001
