"""Storing and retrieving chunks in Qdrant, always within one tenant.

Every filter is built by `_within`, which cannot be called without a tenant, and every method goes through it.
"""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from libs.common.contracts.filters import Filter
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.chunks import (
    Attributes,
    Point,
    RetrievedChunk,
    ScoredChunk,
    StoredChunk,
    from_record,
    from_scored_point,
    points_body,
    to_point,
)
from libs.common.rag.filtering import attribute_condition
from libs.common.rag.fusion import BM25, DENSE, HybridWeights, rankings, weighted_sum
from libs.common.rag.joining import Joined
from libs.common.rag.sparse import SparseVector
from libs.common.upstreams import Upstream

BATCH_CHUNKS: Final = 64
# Of several callers, in one request; and how many such requests are under way at once.
_UPSERT_CHUNKS: Final = 256
_UPSERTS: Final = 2
_LINGER_SECONDS: Final = 0.02
PAGE_CHUNKS: Final = 256

_PAYLOAD_INDEXES: Final[dict[str, models.KeywordIndexParams | models.PayloadSchemaType]] = {
    "tenant_id": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "vector_store_id": models.PayloadSchemaType.KEYWORD,
    "file_id": models.PayloadSchemaType.KEYWORD,
    "version": models.PayloadSchemaType.INTEGER,
}


def qdrant_client_of(url: str, api_key: str | None = None, timeout_seconds: int = 10) -> AsyncQdrantClient:
    """A client for `url`; nothing is sent yet."""
    # Connections are kept, also to this machine, where the client would open a new one for every request, but not
    # for so long that the server may just be closing one (Qdrant does after 5 s).
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2.0)
    # The compatibility check is a blocking request on construction.
    return AsyncQdrantClient(
        url=url, api_key=api_key, timeout=timeout_seconds, limits=limits, check_compatibility=False
    )


@dataclass(frozen=True, slots=True)
class QueryScope:
    """Whose chunks a query may see: one tenant's, in these of its vector stores."""

    tenant_id: str
    vector_store_ids: tuple[str, ...]


class CollectionMissingError(RetryableError):
    """The collection was never set up, or is gone: setting it up is all that is missing."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.RETRIEVAL_UNAVAILABLE, "The vector database answered with status 404.")


class ChunkCollection:
    """All tenants' chunks for one embedding model, behind an alias so that a rebuilt collection can take its place.

    Methods raise RetryableError `retrieval_unavailable` where Qdrant is away, overloaded or not yet set up, at once
    where it has failed repeatedly, and PermanentError `server_error` for a request it refuses.

    Args:
        client: a REST client; `connect` makes one.
        model: the embedding model's name.
        dimension: length of its vectors.
        generation: 1, or 2 for the second collection of the same model, to which stores are rebuilt and back.
    """

    def __init__(self, client: AsyncQdrantClient, *, model: str, dimension: int, generation: int = 1) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", model.casefold()).strip("-")
        self.alias = f"chunks__{slug}__{dimension}" + ("" if generation == 1 else f"__{generation}")
        self._client = client
        self._dimension = dimension
        self._upserts = Joined(
            self._upsert, most=_UPSERT_CHUNKS, at_once=_UPSERTS, linger_seconds=_LINGER_SECONDS, enough=BATCH_CHUNKS
        )
        self._upstream = Upstream(
            "qdrant", "The vector database", ErrorCode.RETRIEVAL_UNAVAILABLE, answers=(CollectionMissingError,)
        )

    @classmethod
    def connect(
        cls, url: str, *, model: str, dimension: int, api_key: str | None = None, timeout_seconds: int = 10
    ) -> Self:
        """A collection at `url`; nothing is sent yet."""
        return cls(qdrant_client_of(url, api_key, timeout_seconds), model=model, dimension=dimension)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ensure(self) -> None:
        """Create collection, payload indexes and alias where they are missing; any number of processes may do so."""
        with self._calling():
            # The alias comes last, so where it is, all else is too; it may already point at a later version.
            aliases = (await self._client.get_aliases()).aliases
            if any(alias.alias_name == self.alias for alias in aliases):
                return
            collection = f"{self.alias}__v1"
            await self._create(collection)
            for name, schema in _PAYLOAD_INDEXES.items():
                await self._client.create_payload_index(collection, name, field_schema=schema, wait=True)
            create = models.CreateAlias(collection_name=collection, alias_name=self.alias)
            await self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    async def upsert(self, chunks: Sequence[StoredChunk]) -> None:
        """Store `chunks` durably, together with those of other callers; storing one again replaces it."""
        for start in range(0, len(chunks), BATCH_CHUNKS):
            await self._upserts.ask([to_point(chunk) for chunk in chunks[start : start + BATCH_CHUNKS]])

    async def _upsert(self, points: list[Point]) -> list[None]:
        # The client's own request of this kind walks over every number twice: a third of the time is gone without.
        with self._calling():
            await self._client.http.client.request(
                type_=dict[str, Any],
                method="PUT",
                url="/collections/{collection_name}/points",
                path_params={"collection_name": self.alias},
                params={"wait": "true"},
                headers={"content-type": "application/json"},
                content=points_body(points),
            )
        return [None] * len(points)

    async def query(
        self,
        scope: QueryScope,
        dense: Sequence[float],
        sparse: SparseVector,
        *,
        filters: Filter | None = None,
        limit: int = 10,
        weights: HybridWeights | None = None,
        score_threshold: float = 0.0,
    ) -> list[ScoredChunk]:
        """The best chunks of `scope`, best first, at most `limit`, none scored below `score_threshold` (0..1)."""
        asked = rankings(
            dense,
            sparse,
            weights or HybridWeights(),
            where=_within(scope.tenant_id, vector_store_ids=scope.vector_store_ids, attributes=filters),
            # So that no tenant's scores depend on, or tell of, the words in another's documents.
            corpus=_within(scope.tenant_id),
            limit=limit,
        )
        if not asked or not scope.vector_store_ids:
            return []
        try:
            with self._calling():
                answers = await self._client.query_batch_points(self.alias, [ranking.request for ranking in asked])
        except CollectionMissingError:
            return []  # nothing was ever stored
        found = weighted_sum(
            [(ranking.weight, answer.points) for ranking, answer in zip(asked, answers, strict=True)], limit
        )
        return [from_scored_point(point, score) for score, point in found if score >= score_threshold]

    async def similarity(self, scope: QueryScope, dense: Sequence[float], filters: Filter | None = None) -> float:
        """The cosine similarity of the chunk nearest to `dense`; 0 where there is none."""
        where = _within(scope.tenant_id, vector_store_ids=scope.vector_store_ids, attributes=filters)
        try:
            with self._calling():
                nearest = await self._client.query_points(
                    self.alias, query=list(dense), using=DENSE, query_filter=where, limit=1, with_payload=False
                )
        except CollectionMissingError:
            return 0.0  # nothing was ever stored
        return max((point.score for point in nearest.points), default=0.0)

    async def scroll_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, version: int
    ) -> list[RetrievedChunk]:
        """All chunks of one version of a file, in the order of their positions."""
        where = _within(tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id, version=version)
        records, offset = await self._page(where, None)
        while offset is not None:
            more, offset = await self._page(where, offset)
            records += more
        # Points come in the order of their ids, which are hashes.
        return sorted(map(from_record, records), key=lambda chunk: chunk.position)

    async def chunks(self, tenant_id: str, ids: Sequence[str]) -> list[RetrievedChunk]:
        """The tenant's chunks of these points, in no order; those that are not there are left out."""
        if not ids:
            return []
        own = models.Filter(must=[_within(tenant_id), models.HasIdCondition(has_id=list(ids))])
        with self._calling():
            records, _ = await self._client.scroll(self.alias, own, limit=len(ids), with_payload=True)
        return [from_record(record) for record in records]

    async def pages_with_vectors(
        self, tenant_id: str, vector_store_id: str, file_id: str, version: int
    ) -> AsyncIterator[list[models.Record]]:
        """All points of one version of a file with their vectors, in no order."""
        where = _within(tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id, version=version)
        records, offset = await self._page(where, None, with_vectors=True)
        yield records
        while offset is not None:
            records, offset = await self._page(where, offset, with_vectors=True)
            yield records

    async def count(
        self,
        tenant_id: str,
        *,
        vector_store_id: str | None = None,
        file_id: str | None = None,
        version: int | None = None,
    ) -> int:
        """How many chunks a tenant has, in all or in one vector store or of one file or version."""
        stores = None if vector_store_id is None else (vector_store_id,)
        where = _within(tenant_id, vector_store_ids=stores, file_id=file_id, version=version)
        with self._calling():
            return (await self._client.count(self.alias, where, exact=True)).count

    async def set_attributes(self, tenant_id: str, vector_store_id: str, file_id: str, attributes: Attributes) -> None:
        """Replace the attributes on all chunks of a file."""
        where = _within(tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id)
        with self._calling():
            await self._client.set_payload(self.alias, {"attributes": attributes}, points=where, wait=True)

    async def delete_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, *, keep_version: int | None = None
    ) -> None:
        """Delete a file's chunks, those of every version but `keep_version`, newer ones included."""
        await self._delete(
            _within(tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id, other_than_version=keep_version)
        )

    async def delete_older(
        self,
        tenant_id: str,
        vector_store_id: str,
        file_id: str,
        version: int,
        *,
        from_position: int,
        keep_version: int | None = None,
    ) -> None:
        """Delete what older versions of a file left, and of `version` itself what lies at `from_position` and behind.

        Newer versions and `keep_version` stay, so whoever does this late harms nobody's work.
        """
        older = models.FieldCondition(key="version", range=models.Range(lt=version))
        behind = models.Filter(
            must=[
                _match("version", version),
                models.FieldCondition(key="position", range=models.Range(gte=from_position)),
            ]
        )
        within = _within(
            tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id, other_than_version=keep_version
        )
        await self._delete(models.Filter(must=[within, models.Filter(should=[older, behind])]))

    async def delete_newer(self, tenant_id: str, vector_store_id: str, file_id: str, version: int) -> None:
        """Delete the file's chunks of versions newer than `version`."""
        newer = models.FieldCondition(key="version", range=models.Range(gt=version))
        within = _within(tenant_id, vector_store_ids=(vector_store_id,), file_id=file_id)
        await self._delete(models.Filter(must=[within, newer]))

    async def delete_store(self, tenant_id: str, vector_store_id: str) -> None:
        """Delete all chunks of a vector store."""
        await self._delete(_within(tenant_id, vector_store_ids=(vector_store_id,)))

    async def delete_tenant(self, tenant_id: str) -> None:
        """Delete all chunks of a tenant."""
        await self._delete(_within(tenant_id))

    @contextmanager
    def _calling(self) -> Iterator[None]:
        # Nothing is tried again here: a job comes back by itself, and a person's client is told when to.
        with self._upstream.call(), _qdrant_errors():
            yield

    async def _page(
        self, where: models.Filter, offset: models.ExtendedPointId | None, *, with_vectors: bool = False
    ) -> tuple[list[models.Record], models.ExtendedPointId | None]:
        with self._calling():
            return await self._client.scroll(
                self.alias, where, limit=PAGE_CHUNKS, offset=offset, with_vectors=with_vectors
            )

    async def _delete(self, where: models.Filter) -> None:
        with self._calling():
            await self._client.delete(self.alias, models.FilterSelector(filter=where), wait=True)

    async def _create(self, collection: str) -> None:
        if await self._client.collection_exists(collection):
            return
        try:
            await self._client.create_collection(
                collection,
                vectors_config={DENSE: models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)},
                sparse_vectors_config={BM25: models.SparseVectorParams(modifier=models.Modifier.IDF)},
            )
        except UnexpectedResponse:
            # Another process was faster, or it is a real failure.
            if not await self._client.collection_exists(collection):
                raise


def _within(
    tenant_id: str,
    *,
    vector_store_ids: Sequence[str] | None = None,
    file_id: str | None = None,
    version: int | None = None,
    other_than_version: int | None = None,
    attributes: Filter | None = None,
) -> models.Filter:
    if not tenant_id:
        raise ValueError("a filter needs a tenant")
    must: list[models.Condition] = [_match("tenant_id", tenant_id)]
    if vector_store_ids is not None:
        stores = models.MatchAny(any=list(vector_store_ids))
        must.append(models.FieldCondition(key="vector_store_id", match=stores))
    if file_id is not None:
        must.append(_match("file_id", file_id))
    if version is not None:
        must.append(_match("version", version))
    if attributes is not None:
        must.append(attribute_condition(attributes))
    must_not = None if other_than_version is None else [_match("version", other_than_version)]
    return models.Filter(must=must, must_not=must_not)


def _match(key: str, value: str | int) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


@contextmanager
def _qdrant_errors() -> Iterator[None]:
    # Causes are left out: they name addresses, and quote filters and payloads.
    try:
        yield
    except (ResponseHandlingException, ResourceExhaustedResponse):
        raise _unavailable("could not be reached or is overloaded") from None
    except UnexpectedResponse as error:
        status = error.status_code or 500
        if status == 404:
            raise CollectionMissingError from None
        if status >= 500 or status in (408, 429):
            raise _unavailable(f"answered with status {status}") from None
        message = f"The vector database refused the request with status {status}."
        raise PermanentError(ErrorCode.SERVER_ERROR, message) from None


def _unavailable(what: str) -> RetryableError:
    return RetryableError(ErrorCode.RETRIEVAL_UNAVAILABLE, f"The vector database {what}.")
