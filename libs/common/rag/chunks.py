"""Chunks as they are stored in and come back from the vector database."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import orjson
from qdrant_client import models

from libs.common.rag.fusion import BM25, DENSE
from libs.common.rag.sparse import SparseVector

Attributes = dict[str, str | float | bool]
# A point in the JSON of Qdrant's REST API, its vectors as arrays.
Point = dict[str, Any]

# Fixed for ever: with another namespace a repeated upsert would store its chunks a second time.
_NAMESPACE = UUID("5f0a6a3e-6f0c-5d55-9a0e-2d3c9a1f7b64")


@dataclass(frozen=True, slots=True)
class ChunkPayload:
    """What is stored beside the vectors: the file's attributes, and the chunk's text, sealed and opaque here."""

    sealed: bytes
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk to be stored: `position` counts from 0 within one version of the file."""

    tenant_id: str
    vector_store_id: str
    file_id: str
    version: int
    position: int
    dense: list[float]
    sparse: SparseVector
    payload: ChunkPayload


@dataclass(frozen=True, slots=True)
class RetrievedChunk:
    """A chunk read back, without its vectors."""

    id: str
    vector_store_id: str
    file_id: str
    version: int
    position: int
    attributes: Attributes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class ScoredChunk(RetrievedChunk):
    """A chunk found by a query; `score` is 0..1 within that query's candidates and not comparable between queries."""

    score: float


def point_id(tenant_id: str, vector_store_id: str, file_id: str, version: int, position: int) -> str:
    """The UUID of a chunk's point, always the same, so that storing a chunk again changes nothing."""
    # NUL cannot be part of an id, so no two chunks share a name.
    return str(uuid5(_NAMESPACE, "\0".join((tenant_id, vector_store_id, file_id, str(version), str(position)))))


def to_point(chunk: StoredChunk) -> Point:
    """The chunk as a point with both vectors; one without terms has no sparse vector."""
    # In the precision in which they are stored: their decimals are half as long.
    vector: dict[str, Any] = {DENSE: np.array(chunk.dense, np.float32)}
    if chunk.sparse.indices:
        weights = np.array(chunk.sparse.values, np.float32)
        vector[BM25] = {"indices": chunk.sparse.indices, "values": weights}
    return {
        "id": point_id(chunk.tenant_id, chunk.vector_store_id, chunk.file_id, chunk.version, chunk.position),
        "vector": vector,
        "payload": {
            "tenant_id": chunk.tenant_id,
            "vector_store_id": chunk.vector_store_id,
            "file_id": chunk.file_id,
            "version": chunk.version,
            "position": chunk.position,
            "attributes": chunk.payload.attributes,
            "sealed": b64encode(chunk.payload.sealed).decode("ascii"),
        },
    }


def points_body(points: Sequence[Point]) -> bytes:
    """The body of Qdrant's request to upsert points (`PUT /collections/{name}/points`)."""
    return orjson.dumps({"points": points}, option=orjson.OPT_SERIALIZE_NUMPY)


def from_record(record: models.Record) -> RetrievedChunk:
    """The chunk of a point read without a query."""
    return RetrievedChunk(id=str(record.id), **_fields(record.payload))


def to_stored(record: models.Record, tenant_id: str) -> StoredChunk:
    """The chunk of a point read with its vectors."""
    chunk = from_record(record)
    vectors: Any = record.vector
    sparse = vectors.get(BM25)
    terms = SparseVector((), ()) if sparse is None else SparseVector(tuple(sparse.indices), tuple(sparse.values))
    return StoredChunk(
        tenant_id=tenant_id,
        vector_store_id=chunk.vector_store_id,
        file_id=chunk.file_id,
        version=chunk.version,
        position=chunk.position,
        dense=vectors[DENSE],
        sparse=terms,
        payload=ChunkPayload(chunk.sealed, chunk.attributes),
    )


def from_scored_point(point: models.ScoredPoint, score: float) -> ScoredChunk:
    """The chunk of a point found by a query, under its fused score."""
    return ScoredChunk(id=str(point.id), score=score, **_fields(point.payload))


def _fields(payload: dict[str, Any] | None) -> dict[str, Any]:
    stored = payload or {}
    names = ("vector_store_id", "file_id", "version", "position", "attributes")
    return {name: stored[name] for name in names} | {"sealed": b64decode(stored["sealed"])}
