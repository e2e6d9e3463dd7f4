"""How the dense and the BM25 ranking become one: distribution-based score fusion (DBSF), done by Qdrant.

DBSF maps each ranking's scores to 0..1 between the mean minus and plus three standard deviations, and adds them up. On
SciFact, CACM and SQuAD it ranks better than reciprocal rank fusion. Qdrant's DBSF takes no weights, and its weighted
reciprocal ranks barely heed theirs (a weight divides the rank, not the score); so where weights differ, each ranking is
normalised by a DBSF of its own within one batch and added up here, which for equal weights is the same thing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from qdrant_client import models

from libs.common.errors import ErrorCode, PermanentError
from libs.common.rag.sparse import SparseVector

DENSE: Final = "dense"
BM25: Final = "bm25"
CANDIDATES: Final = 100


@dataclass(frozen=True, slots=True)
class HybridWeights:
    """How much each ranking counts; only their ratio matters, and 0 leaves that ranking out.

    Raises:
        PermanentError: `invalid_value` for a negative weight or two zeros.
    """

    embedding: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        if not (self.embedding >= 0 and self.text >= 0 and 0 < self.embedding + self.text < float("inf")):
            raise PermanentError(
                ErrorCode.INVALID_VALUE,
                "The weights of a hybrid search must not be negative, and one of them must be above 0.",
                param="ranking_options.hybrid_search",
            )


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query whose scores count `weight` times; the weights of one batch add up to 1."""

    weight: float
    request: models.QueryRequest


def rankings(
    dense: Sequence[float],
    sparse: SparseVector,
    weights: HybridWeights,
    *,
    where: models.Filter,
    corpus: models.Filter,
    limit: int,
) -> list[Ranking]:
    """The queries to send in one batch; none when there is nothing to rank by.

    Args:
        dense: the question's embedding.
        sparse: the question's terms; may be empty.
        weights: how much each of the two counts.
        where: the only points that may be found.
        corpus: the points over which a term is rare or common.
        limit: how many fused results are wanted.
    """
    sources: list[tuple[float, models.Prefetch]] = []
    if weights.embedding > 0:
        nearest = models.Prefetch(query=list(dense), using=DENSE, filter=where, limit=CANDIDATES)
        sources.append((weights.embedding, nearest))
    if weights.text > 0 and sparse.indices:
        sources.append((weights.text, _bm25(sparse, where, corpus)))
    if len({weight for weight, _ in sources}) == 1:
        together = [prefetch for _, prefetch in sources]
        return [Ranking(1 / len(together), _fused(together, where, limit))]
    total = sum(weight for weight, _ in sources)
    return [Ranking(weight / total, _fused([prefetch], where, CANDIDATES)) for weight, prefetch in sources]


def weighted_sum(
    answers: Iterable[tuple[float, Sequence[models.ScoredPoint]]], limit: int
) -> list[tuple[float, models.ScoredPoint]]:
    """The best points of weighted answers with the sum of their scores, 0..1, best first."""
    scores: dict[models.ExtendedPointId, float] = {}
    points: dict[models.ExtendedPointId, models.ScoredPoint] = {}
    for weight, answer in answers:
        for point in answer:
            scores[point.id] = scores.get(point.id, 0.0) + weight * point.score
            points[point.id] = point
    # Cut to 0..1, since an outlier can lie beyond three deviations.
    best = sorted(points, key=lambda point_id: scores[point_id], reverse=True)[:limit]
    return [(min(1.0, max(0.0, scores[point_id])), points[point_id]) for point_id in best]


def _bm25(sparse: SparseVector, where: models.Filter, corpus: models.Filter) -> models.Prefetch:
    terms = models.SparseVector(indices=list(sparse.indices), values=list(sparse.values))
    params = models.SearchParams(idf=models.IdfCorpusParams(corpus=corpus))
    return models.Prefetch(query=terms, using=BM25, filter=where, params=params, limit=CANDIDATES)


def _fused(prefetch: list[models.Prefetch], where: models.Filter, limit: int) -> models.QueryRequest:
    dbsf = models.FusionQuery(fusion=models.Fusion.DBSF)
    return models.QueryRequest(query=dbsf, prefetch=prefetch, filter=where, limit=limit, with_payload=True)
