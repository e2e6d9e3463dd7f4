import orjson
import pytest

from libs.common.errors import ErrorCode, PermanentError
from libs.common.rag.chunks import ChunkPayload, StoredChunk, point_id, points_body, to_point
from libs.common.rag.fusion import HybridWeights
from libs.common.rag.sparse import SparseVector, encode_document
from libs.common.rag.vectors import _within


def _chunk(sparse: SparseVector) -> StoredChunk:
    return StoredChunk("tenant", "store", "file", 1, 0, [1.0, 0.0], sparse, ChunkPayload(b"\x00sealed"))


def test_point_id_never_changes() -> None:
    # A golden value: another one would store every chunk a second time.
    assert point_id("tenant", "store", "file", 1, 0) == "18e949b0-e854-5384-8f6c-d3c854ec08bc"


def test_point_ids_differ_in_every_part() -> None:
    parts = [("a", "b", "c", 1, 2), ("x", "b", "c", 1, 2), ("a", "x", "c", 1, 2), ("a", "b", "x", 1, 2)]
    parts += [("a", "b", "c", 12, 2), ("a", "b", "c", 1, 22), ("ab", "", "c", 1, 2), ("a", "bc", "", 1, 2)]
    assert len({point_id(*part) for part in parts}) == len(parts)


def test_a_chunk_without_terms_has_no_sparse_vector() -> None:
    [bare, full] = orjson.loads(points_body([to_point(_chunk(encode_document(text))) for text in ("of", "budget")]))[
        "points"
    ]
    assert bare["vector"] == {"dense": [1.0, 0.0]}
    assert (full["vector"]["dense"], len(full["vector"]["bm25"]["indices"])) == ([1.0, 0.0], 1)
    assert full["payload"]["tenant_id"] == "tenant"


def test_no_filter_without_a_tenant() -> None:
    with pytest.raises(ValueError, match="tenant"):
        _within("")


@pytest.mark.parametrize(("embedding", "text"), [(0, 0), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_weights_that_rank_nothing_are_refused(embedding: float, text: float) -> None:
    with pytest.raises(PermanentError) as failure:
        HybridWeights(embedding, text)
    assert failure.value.code is ErrorCode.INVALID_VALUE
