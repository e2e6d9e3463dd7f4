"""From checked request bodies to the engine's objects, and from its results to JSON."""

# The engine's type aliases exist in its stubs only, so annotations must stay unevaluated.
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, cast

import numpy as np
import qdrant_edge as edge

from libs.local.vector_server import reads, wire, writes

_DISTANCES: Final = {
    "Cosine": edge.Distance.Cosine,
    "Dot": edge.Distance.Dot,
    "Euclid": edge.Distance.Euclid,
    "Manhattan": edge.Distance.Manhattan,
}
_INDEXES: Final[Mapping[str, Callable[..., edge.PayloadSchemaParams]]] = {
    "keyword": edge.KeywordIndexParams,
    "integer": edge.IntegerIndexParams,
    "float": edge.FloatIndexParams,
    "bool": edge.BoolIndexParams,
    "datetime": edge.DatetimeIndexParams,
    "uuid": edge.UuidIndexParams,
    "text": edge.TextIndexParams,
}
_INDEX_OPTIONS: Final = ("is_tenant", "is_principal", "lookup", "range", "on_disk", "enable_hnsw")


def to_config(spec: writes.CollectionSpec) -> edge.EdgeConfig:
    """The engine's configuration of a collection, with its write-ahead log on."""
    dense = {
        name: edge.EdgeVectorParams(size=params.size, distance=_DISTANCES[params.distance])
        for name, params in spec.dense().items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.modifier == "idf" else None)
        for name, params in spec.sparse_vectors.items()
    }
    return edge.EdgeConfig(vectors=dense, sparse_vectors=sparse, wal_enabled=True)


def to_index(schema: writes.IndexType | writes.IndexParams) -> edge.PayloadSchemaParams:
    """The engine's parameters of a payload index; ValueError if the type does not take an option given."""
    params = schema if isinstance(schema, writes.IndexParams) else writes.IndexParams(type=schema)
    options = params.model_dump(exclude={"type"}, exclude_none=True)
    try:
        return _INDEXES[params.type](**options)
    except TypeError as error:
        raise ValueError(f"a {params.type} index does not take one of {', '.join(options)}") from error


def to_point(point: writes.Point) -> edge.Point:
    """The engine's point; an unnamed vector stays a bare list."""
    vector = point.vector
    if isinstance(vector, dict):
        return edge.Point(point.id, {name: _vector(value) for name, value in vector.items()}, point.payload)
    return edge.Point(point.id, vector, point.payload)


def to_filter(node: wire.FilterNode | None) -> edge.Filter | None:
    """The engine's filter; None selects every point."""
    return None if node is None else _filter(node)


def to_payload_selector(selector: reads.WithPayload) -> edge.WithPayloadType:
    """Which part of the payloads to return."""
    if isinstance(selector, reads.Include):
        return edge.PayloadSelector.Include(selector.include)
    if isinstance(selector, reads.Exclude):
        return edge.PayloadSelector.Exclude(selector.exclude)
    return selector


def to_query(request: reads.QueryRequest) -> edge.QueryRequest:
    """The engine's form of a query with its prefetches."""
    return edge.QueryRequest(
        limit=request.limit,
        offset=request.offset,
        query=_query(request.query, request.using),
        prefetches=[_prefetch(stage) for stage in request.prefetch],
        with_vector=request.with_vector,
        with_payload=to_payload_selector(request.with_payload),
        filter=to_filter(request.filter),
        score_threshold=request.score_threshold,
        params=_search_params(request.params),
    )


def from_record(record: edge.Record) -> dict[str, object]:
    """A stored point as JSON; `payload` and `vector` are null unless asked for."""
    return {"id": record.id, "payload": record.payload, "vector": _vectors_out(record.vector)}


def from_scored(point: edge.ScoredPoint) -> dict[str, object]:
    """A point found, with its score, as JSON."""
    return {
        "id": point.id,
        "version": point.version,
        "score": point.score,
        "payload": point.payload,
        "vector": _vectors_out(point.vector),
    }


def from_index(info: edge.PayloadIndexInfo) -> dict[str, object]:
    """A payload index as JSON."""
    kind = str(info.data_type).rpartition(".")[2].lower()
    options = {name: getattr(info.params, name, None) for name in _INDEX_OPTIONS}
    params = {name: value for name, value in options.items() if value is not None}
    return {"data_type": kind, "params": {"type": kind, **params} if params else None, "points": info.points}


def _filter(node: wire.FilterNode) -> edge.Filter:
    return edge.Filter(
        must=_conditions(node.must), should=_conditions(node.should), must_not=_conditions(node.must_not)
    )


def _conditions(conditions: list[wire.Condition] | None) -> list[edge.ConditionType] | None:
    return None if conditions is None else [_condition(condition) for condition in conditions]


def _condition(condition: wire.Condition) -> edge.ConditionType:
    match condition:
        case wire.FilterNode():
            return _filter(condition)
        case wire.HasId():
            return edge.HasIdCondition(set(condition.has_id))
        case wire.IsEmpty():
            return edge.IsEmptyCondition(condition.is_empty.key)
        case wire.IsNull():
            return edge.IsNullCondition(condition.is_null.key)
        case wire.FieldCondition():
            return edge.FieldCondition(
                condition.key,
                match=None if condition.match is None else _match(condition.match),
                range=None if condition.range is None else _range(condition.range),
                is_empty=condition.is_empty,
                is_null=condition.is_null,
            )


def _match(match: wire.Match) -> edge.MatchType:
    if isinstance(match.value, bool):
        # The binding reads Python's True as the integer 1, which no stored boolean equals; NumPy's stays a boolean.
        return edge.MatchValue(cast("bool", np.bool_(match.value)))
    if match.value is not None:
        return edge.MatchValue(match.value)
    if match.any is not None:
        return edge.MatchAny(match.any)
    if match.except_ is not None:
        return edge.MatchExcept(match.except_)
    return edge.MatchText(match.text or "")


def _range(bounds: wire.NumberRange | wire.DatetimeRange) -> edge.RangeType:
    if isinstance(bounds, wire.NumberRange):
        return edge.RangeFloat(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)
    return edge.RangeDateTime(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)


def _query(query: reads.Query | None, using: str | None) -> edge.ScoringQueryType | None:
    match query:
        case None:
            return None
        case reads.Fusion() | reads.RrfQuery():
            return _fusion(query)
        case reads.Nearest():
            return edge.Query.Nearest(_vector(query.nearest), using=using)
        case _:
            return edge.Query.Nearest(_vector(query), using=using)


def _fusion(query: reads.Fusion | reads.RrfQuery) -> edge.Fusion:
    if isinstance(query, reads.Fusion) and query.fusion == "dbsf":
        fusion: object = edge.Fusion.Dbsf()
    else:
        rrf = query.rrf if isinstance(query, reads.RrfQuery) else reads.Rrf()
        fusion = edge.Fusion.Rrf(k=rrf.k, weights=rrf.weights)
    # The variants are subclasses of Fusion, which the engine's stubs leave out.
    return cast("edge.Fusion", fusion)


def _prefetch(stage: reads.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        limit=stage.limit,
        query=_query(stage.query, stage.using),
        params=_search_params(stage.params),
        filter=to_filter(stage.filter),
        score_threshold=stage.score_threshold,
    )


def _search_params(params: reads.SearchParams | None) -> edge.SearchParams | None:
    if params is None:
        return None
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=params.exact,
        indexed_only=params.indexed_only,
        idf=edge.IdfParams(corpus=to_filter(params.idf.corpus)) if isinstance(params.idf, reads.IdfCorpus) else None,
    )


def _vector(vector: wire.Vector) -> edge.NamedVector:
    return edge.SparseVector(vector.indices, vector.values) if isinstance(vector, wire.SparseVector) else vector


def _vectors_out(vectors: edge.Vector | None) -> object:
    if isinstance(vectors, dict):
        return {name: _vector_out(vector) for name, vector in vectors.items()}
    return vectors


def _vector_out(vector: edge.NamedVector) -> object:
    if isinstance(vector, edge.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    return vector
