"""The retrieval recipe as a bare script, to hold the running platform against: no chunks, no store, no server.

BM25 (k1 1.2, b 0.75, the true average length) and cosine similarity, 100 candidates each, fused by distribution-based
scores: each ranking's scores are brought to 0..1 by their mean and three deviations to either side, then added.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from libs.common.rag.sparse import K1, B, terms
from libs.local.model_server.embeddings import MiniLM
from tools.quality.sets import Document, Question

_CANDIDATES: Final = 100
_BATCH_TEXTS: Final = 16

_Scores = Mapping[int, float]


class BareRecipe:
    """An index in memory over whole documents."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._ids = [document.id for document in documents]
        self._model = MiniLM()
        texts = [document.content for document in documents]
        self._vectors = self._embed(texts)
        bags = [Counter(terms(text)) for text in texts]
        average = sum(bag.total() for bag in bags) / len(bags)
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for index, bag in enumerate(bags):
            norm = K1 * (1 - B + B * bag.total() / average)
            for term, count in bag.items():
                self._postings[term].append((index, count * (K1 + 1) / (count + norm)))

    def run(self, questions: Sequence[Question]) -> dict[str, list[str]]:
        """The ids of the best documents for each question, best first, at most 100."""
        vectors = self._embed([question.text for question in questions])
        return {
            question.id: self._best(question.text, vector) for question, vector in zip(questions, vectors, strict=True)
        }

    def _best(self, text: str, vector: npt.NDArray[np.float32]) -> list[str]:
        similarities = self._vectors @ vector
        nearest = np.argsort(-similarities)[:_CANDIDATES]
        fused: dict[int, float] = defaultdict(float)
        for scores in (self._bm25(text), {int(index): float(similarities[index]) for index in nearest}):
            for index, score in _normalised(scores).items():
                fused[index] += score
        return [self._ids[index] for index in _largest(fused)]

    def _bm25(self, text: str) -> _Scores:
        scores: dict[int, float] = defaultdict(float)
        for term, count in Counter(terms(text)).items():
            found = self._postings.get(term, [])
            idf = math.log(1 + (len(self._ids) - len(found) + 0.5) / (len(found) + 0.5))
            for index, weight in found:
                scores[index] += count * idf * weight
        return {index: scores[index] for index in _largest(scores)}

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, shape (len(texts), dimensions)."""
        tokens = self._model.tokenize(texts)
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        vectors: dict[int, npt.NDArray[np.float32]] = {}
        for start in range(0, len(order), _BATCH_TEXTS):
            batch = order[start : start + _BATCH_TEXTS]
            vectors.update(zip(batch, self._model.embed([tokens[index] for index in batch]), strict=True))
        return np.stack([vectors[index] for index in range(len(texts))])


def _largest(scores: _Scores) -> list[int]:
    return sorted(scores, key=scores.__getitem__, reverse=True)[:_CANDIDATES]


def _normalised(scores: _Scores) -> dict[int, float]:
    values = np.array(list(scores.values()))
    if not len(values) or not values.std():
        return dict.fromkeys(scores, 0.5)
    low, high = values.mean() - 3 * values.std(), values.mean() + 3 * values.std()
    return {index: float((score - low) / (high - low)) for index, score in scores.items()}
