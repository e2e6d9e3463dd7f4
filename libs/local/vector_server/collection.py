"""One collection: a shard of the engine, and every operation the API has on it.

The engine locks for itself: reads and writes may come from any number of threads. Its `optimize()` is never called,
because it would stop the whole process for as long as it runs.
"""

# The engine's type aliases exist in its stubs only, so annotations must stay unevaluated.
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import qdrant_edge as edge
from qdrant_edge import UpdateOperation

from libs.local.vector_server import reads, translate, wire, writes
from libs.local.vector_server.errors import engine_errors, wrong_input

Update = Mapping[str, str]
Json = Mapping[str, object]

_COMPLETED: Final[Update] = {"status": "completed"}
_HNSW: Final[Json] = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0}
_OPTIMIZER: Final[Json] = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "flush_interval_sec": 10,
}


class Collection:
    """An open shard. Every method blocks, and raises QdrantError for what the engine refuses."""

    def __init__(self, spec: writes.CollectionSpec, shard: edge.EdgeShard) -> None:
        self._spec = spec
        self._shard = shard
        self._dirty = True

    @classmethod
    def create(cls, directory: Path, spec: writes.CollectionSpec) -> Collection:
        """A new shard in an empty directory."""
        with engine_errors():
            return cls(spec, edge.EdgeShard.create(str(directory), translate.to_config(spec)))

    @classmethod
    def open(cls, directory: Path, spec: writes.CollectionSpec) -> Collection:
        """The shard in the directory, every update in its write-ahead log applied."""
        with engine_errors():
            return cls(spec, edge.EdgeShard.load(str(directory), translate.to_config(spec)))

    def upsert(self, request: writes.Upsert) -> Update:
        points = request.rows()
        for point in points:
            self._check_vectors(point.vector)
        return self._update(lambda: UpdateOperation.upsert_points([translate.to_point(point) for point in points]))

    def delete(self, request: writes.Selector) -> Update:
        selected = self._selected(request)
        if isinstance(selected, list):
            return self._update(lambda: UpdateOperation.delete_points(selected))
        return self._update(lambda: UpdateOperation.delete_points_by_filter(selected))

    def set_payload(self, request: writes.SetPayload) -> Update:
        selected = self._selected(request)
        if isinstance(selected, list):
            return self._update(lambda: UpdateOperation.set_payload(selected, request.payload, request.key))
        return self._update(lambda: UpdateOperation.set_payload_by_filter(selected, request.payload, request.key))

    def overwrite_payload(self, request: writes.SetPayload) -> Update:
        selected = self._selected(request)
        if isinstance(selected, list):
            return self._update(lambda: UpdateOperation.overwrite_payload(selected, request.payload, request.key))
        return self._update(lambda: UpdateOperation.overwrite_payload_by_filter(selected, request.payload, request.key))

    def delete_payload(self, request: writes.DeletePayload) -> Update:
        selected = self._selected(request)
        if isinstance(selected, list):
            return self._update(lambda: UpdateOperation.delete_payload(selected, request.keys))
        return self._update(lambda: UpdateOperation.delete_payload_by_filter(selected, request.keys))

    def create_index(self, request: writes.CreateIndex) -> Update:
        return self._update(
            lambda: UpdateOperation.create_field_index(request.field_name, translate.to_index(request.field_schema))
        )

    def delete_index(self, field_name: str) -> Update:
        return self._update(lambda: UpdateOperation.delete_field_index(field_name))

    def retrieve(self, request: reads.Retrieve) -> list[dict[str, object]]:
        with engine_errors():
            payload = translate.to_payload_selector(request.with_payload)
            records = self._shard.retrieve(list(request.ids), payload, request.with_vector)
        return [translate.from_record(record) for record in records]

    def scroll(self, request: reads.Scroll) -> Json:
        with engine_errors():
            records, following = self._shard.scroll(
                edge.ScrollRequest(
                    offset=request.offset,
                    limit=request.limit,
                    filter=translate.to_filter(request.filter),
                    with_payload=translate.to_payload_selector(request.with_payload),
                    with_vector=request.with_vector,
                )
            )
        return {"points": [translate.from_record(record) for record in records], "next_page_offset": following}

    def count(self, request: reads.Count) -> Json:
        with engine_errors():
            condition = translate.to_filter(request.filter)
            return {"count": self._shard.count(edge.CountRequest(exact=request.exact, filter=condition))}

    def query(self, request: reads.QueryRequest) -> Json:
        with engine_errors():
            found = self._shard.query(translate.to_query(request))
        return {"points": [translate.from_scored(point) for point in found]}

    def query_batch(self, request: reads.QueryBatch) -> list[Json]:
        return [self.query(search) for search in request.searches]

    def info(self) -> Json:
        """Size and configuration; tuning values are Qdrant's defaults, since the engine is never asked to optimise."""
        with engine_errors():
            info = self._shard.info()
        params = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "payload_schema": {field: translate.from_index(index) for field, index in info.payload_schema.items()},
            "config": {
                "params": self._spec.model_dump(exclude_none=True) | params,
                "hnsw_config": _HNSW,
                "optimizer_config": _OPTIMIZER,
            },
        }

    def flush(self) -> None:
        """Write segments to disk, so that the write-ahead log can be cut; nothing to do if nothing changed."""
        if self._dirty:
            # Cleared first: an update that lands during the flush sets it again and is flushed next time.
            self._dirty = False
            with engine_errors():
                self._shard.flush()

    def close(self) -> None:
        """Release the shard; operations still running finish, later ones raise QdrantError 404."""
        self._shard.close()

    def _update(self, build: Callable[[], UpdateOperation]) -> Update:
        with engine_errors():
            self._shard.update(build())
        self._dirty = True
        return _COMPLETED

    def _selected(self, request: writes.Selector) -> list[edge.PointId] | edge.Filter:
        with engine_errors():
            found = translate.to_filter(request.filter)
        return list(request.points or []) if found is None else found

    def _check_vectors(self, vectors: wire.Vectors) -> None:
        """Raise QdrantError 400 for a vector the collection does not have; the engine would log it, then fail."""
        dense = self._spec.dense()
        for name, vector in (vectors if isinstance(vectors, dict) else {"": vectors}).items():
            if isinstance(vector, wire.SparseVector):
                if name not in self._spec.sparse_vectors:
                    raise wrong_input(f"Not existing vector name error: {name}")
            elif name not in dense:
                raise wrong_input(f"Not existing vector name error: {name}")
            elif len(vector) != dense[name].size:
                raise wrong_input(f"Vector dimension error: expected dim: {dense[name].size}, got {len(vector)}")
