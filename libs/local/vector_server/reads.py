"""Bodies of the requests that read points."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from libs.local.vector_server.wire import (
    DenseVector,
    Filter,
    Finite,
    Limit,
    Offset,
    PointId,
    SparseVector,
    Vector,
    Wire,
    as_list,
)


class Include(Wire):
    """Only these payload fields."""

    include: list[str]


class Exclude(Wire):
    """All payload fields but these."""

    exclude: list[str]


WithPayload = bool | list[str] | Include | Exclude
WithVector = bool | list[str]


class Nearest(Wire):
    """The long form of a vector query."""

    nearest: Vector


class Fusion(Wire):
    """Fuse the prefetches with the engine's defaults."""

    fusion: Literal["rrf", "dbsf"]


class Rrf(Wire):
    """Reciprocal rank fusion: every prefetch adds weight / (k + rank)."""

    k: Annotated[int, Field(ge=1, lt=2**31)] = 2
    weights: list[Annotated[Finite, Field(ge=0)]] | None = None


class RrfQuery(Wire):
    """Fuse the prefetches by rank, with parameters."""

    rrf: Rrf


Query = DenseVector | SparseVector | Nearest | Fusion | RrfQuery


class IdfCorpus(Wire):
    """The points the IDF of sparse terms is taken over."""

    corpus: Filter


class SearchParams(Wire):
    """How to search; `idf` alone changes scores."""

    hnsw_ef: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    exact: bool = False
    indexed_only: bool = False
    idf: Literal["global"] | IdfCorpus | None = None


class Prefetch(Wire):
    """One stage whose results a later one fuses or scores again."""

    query: Query | None = None
    using: str | None = None
    filter: Filter | None = None
    params: SearchParams | None = None
    score_threshold: Finite | None = None
    limit: Limit = 10


class QueryRequest(Prefetch):
    """`POST /points/query`."""

    prefetch: Annotated[list[Prefetch], BeforeValidator(as_list)] = Field(default=[])
    offset: Offset = 0
    with_payload: WithPayload = False
    with_vector: WithVector = False


class QueryBatch(Wire):
    """`POST /points/query/batch`."""

    searches: list[QueryRequest]


class Retrieve(Wire):
    """`POST /points`."""

    ids: list[PointId]
    with_payload: WithPayload = True
    with_vector: WithVector = False


class Scroll(Wire):
    """`POST /points/scroll`: a page in the order of identifiers, from `offset` on."""

    filter: Filter | None = None
    limit: Limit = 10
    offset: PointId | None = None
    with_payload: WithPayload = True
    with_vector: WithVector = False


class Count(Wire):
    """`POST /points/count`."""

    filter: Filter | None = None
    exact: bool = True
