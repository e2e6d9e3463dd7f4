"""Retrieval over Qdrant: embed, one hybrid query, check each hit against the records' live versions, unseal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Final

import orjson

from libs.common import keys, metrics
from libs.common.cache.embeddings import CachedEmbedders
from libs.common.contracts.chat import Retrieval
from libs.common.contracts.ingest import Place
from libs.common.errors import PermanentError
from libs.common.keyring import Keyring
from libs.common.logs import get_logger
from libs.common.rag.chunks import RetrievedChunk, ScoredChunk, point_id
from libs.common.rag.collections import Collections
from libs.common.rag.embedder import Vector
from libs.common.rag.fusion import HybridWeights
from libs.common.rag.relevance import relevance
from libs.common.rag.sparse import encode_query
from libs.common.rag.vectors import QueryScope
from libs.common.records import vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_stores import LiveFile, VectorStore
from services.chat.passages import distinct, joined, neighbours_of
from services.chat.ports import ForAnswer, Passage, Reranker

_log = get_logger(__name__)
# While a file's version changes its chunks are there twice: old ones must not crowd out those that count.
_HITS_PER_PASSAGE: Final = 2
# A search during which its vector stores change is begun again, a few times.
_TRIES: Final = 3


LiveFiles = dict[tuple[str, str], LiveFile]


class HybridRetriever:
    """The `Retriever` of the running service.

    Args:
        gates: the least relevance, by embedding model; those without one are not gated.
        reranker: puts what was found in its order, where there is one and the request does not forbid it.
    """

    def __init__(
        self,
        database: Database,
        collections: Collections,
        embedders: CachedEmbedders,
        keyring: Keyring,
        gates: Mapping[str, float],
        reranker: Reranker | None = None,
    ) -> None:
        self._database = database
        self._collections = collections
        self._embedders = embedders
        self._sealer = keyring.sealer(keys.CHUNKS_PURPOSE)
        self._gates = gates
        self._reranker = reranker

    async def retrieve(
        self, tenant_id: str, queries: Sequence[str], retrieval: Retrieval, answer: ForAnswer | None = None
    ) -> list[Passage]:
        """See `Retriever`. Several queries are merged: a passage keeps its best score."""
        stores = await self._stores(tenant_id, retrieval)
        for _ in range(_TRIES):
            hits = await self._hits(tenant_id, queries, stores, retrieval)
            with metrics.stage("retrieve"):
                live, revisions = await self._live(tenant_id, retrieval, hits)
            if all(revisions[store.id] == store.revision for store in stores):
                break
            # What took another's place, or moved to another collection, may have been found neither here nor there.
            before, stores = stores, await self._stores(tenant_id, retrieval)
            moved = [store.place for store in stores] != [store.place for store in before]
            if not moved and all(_counts(live, hit) for hit in hits):
                break
        found: Iterator[Passage] = filter(None, (self._passage(tenant_id, hit, live) for hit in hits))
        if (reranker := self._reranker_for(retrieval)) is not None:
            found = iter(await _reranked(reranker, queries, list(islice(found, reranker.candidates)), retrieval))
        if answer is None:
            return list(islice(found, retrieval.max_num_results))
        passages = list(islice(distinct(found), retrieval.max_num_results))
        relevant = not answer.gated or await self._is_relevant(tenant_id, queries, stores, retrieval, passages)
        if not passages or not relevant:
            return []
        return await self._widened(tenant_id, stores, passages, answer.passage_tokens)

    async def _widened(
        self, tenant_id: str, stores: Sequence[VectorStore], passages: Sequence[Passage], most_tokens: int
    ) -> list[Passage]:
        """The passages with their neighbours; these are of the versions that were live a moment ago."""
        if most_tokens == 0:
            return list(passages)
        names = {(passage.vector_store_id, passage.file_id): passage for passage in passages}
        wanted = neighbours_of(passages)
        neighbours: list[Passage] = []
        with metrics.stage("retrieve"):
            for place, store_ids in _by_place(stores).items():
                ids = [point_id(tenant_id, *each) for each in wanted if each[0] in store_ids]
                for chunk in await self._collections.at(place).chunks(tenant_id, ids):
                    hit = names[chunk.vector_store_id, chunk.file_id]
                    neighbour = self._opened(tenant_id, chunk, hit.filename, hit.score)
                    neighbours += [neighbour] if neighbour is not None else []
        return joined(passages, neighbours, most_tokens)

    def _reranker_for(self, retrieval: Retrieval) -> Reranker | None:
        return self._reranker if retrieval.rerank else None

    async def _is_relevant(
        self,
        tenant_id: str,
        queries: Sequence[str],
        stores: Sequence[VectorStore],
        retrieval: Retrieval,
        passages: Sequence[Passage],
    ) -> bool:
        """Whether what was found has to do with one of the queries, as far as that can be told."""
        texts = [" ".join((*passage.heading_path, passage.text)) for passage in passages]
        for place, store_ids in _by_place(stores).items():
            least = self._gates.get(place.embedding_model)
            if least is None:
                return True
            scope = QueryScope(tenant_id, tuple(store_ids))
            vectors = await self._embedders.embed(tenant_id, place.embedding_model, queries)
            for query, vector in zip(queries, vectors, strict=True):
                similarity = await self._collections.at(place).similarity(scope, vector, retrieval.filters)
                if relevance(query, similarity, texts) >= least:
                    return True
        return False

    async def _stores(self, tenant_id: str, retrieval: Retrieval) -> list[VectorStore]:
        store_ids = retrieval.vector_store_ids
        return await self._database.read(
            lambda connection: vector_stores.require_stores(connection, tenant_id, store_ids)
        )

    async def _live(
        self, tenant_id: str, retrieval: Retrieval, hits: Sequence[ScoredChunk]
    ) -> tuple[LiveFiles, dict[str, int]]:
        """What may answer, and the stores' revisions; read after the query, so that what holds now judges its hits."""
        store_ids = retrieval.vector_store_ids
        file_ids = sorted({hit.file_id for hit in hits})
        return await self._database.read(
            lambda connection: (
                vector_stores.live_files(connection, tenant_id, store_ids, file_ids),
                vector_stores.revisions(connection, tenant_id, store_ids),
            )
        )

    async def _hits(
        self, tenant_id: str, queries: Sequence[str], stores: Sequence[VectorStore], retrieval: Retrieval
    ) -> list[ScoredChunk]:
        found = [
            await self._hits_at(place, QueryScope(tenant_id, tuple(store_ids)), queries, retrieval)
            for place, store_ids in _by_place(stores).items()
        ]
        return in_turn(found)

    async def _hits_at(
        self, place: Place, scope: QueryScope, queries: Sequence[str], retrieval: Retrieval
    ) -> list[ScoredChunk]:
        """The hits of one collection, best first."""
        with metrics.stage("embed"):
            vectors = await self._embedders.embed(scope.tenant_id, place.embedding_model, queries)
        best: dict[str, ScoredChunk] = {}
        with metrics.stage("retrieve"):
            for query, vector in zip(queries, vectors, strict=True):
                for chunk in await self._query(place, scope, query, vector, retrieval):
                    if chunk.id not in best or chunk.score > best[chunk.id].score:
                        best[chunk.id] = chunk
        return sorted(best.values(), key=lambda chunk: -chunk.score)

    async def _query(
        self, place: Place, scope: QueryScope, query: str, vector: Vector, retrieval: Retrieval
    ) -> list[ScoredChunk]:
        reranker = self._reranker_for(retrieval)
        return await self._collections.at(place).query(
            scope,
            vector,
            encode_query(query),
            filters=retrieval.filters,
            limit=max(retrieval.max_num_results, reranker.candidates if reranker else 0) * _HITS_PER_PASSAGE,
            weights=HybridWeights(retrieval.embedding_weight, retrieval.text_weight),
            # What counts then is the reranker's score.
            score_threshold=0.0 if reranker else retrieval.score_threshold,
        )

    def _passage(self, tenant_id: str, chunk: ScoredChunk, live: LiveFiles) -> Passage | None:
        """The hit as a passage; None when it does not count, or is damaged."""
        if not _counts(live, chunk):
            return None
        filename = live[chunk.vector_store_id, chunk.file_id].filename
        return self._opened(tenant_id, chunk, filename, chunk.score)

    def _opened(self, tenant_id: str, chunk: RetrievedChunk, filename: str, score: float) -> Passage | None:
        context = (tenant_id, chunk.vector_store_id, chunk.file_id, str(chunk.version), str(chunk.position))
        try:
            content = orjson.loads(self._sealer.open(chunk.sealed, *context))
        except PermanentError:
            # One damaged chunk must not silence the rest of its store.
            metrics.SEAL_FAILURES.labels(purpose=keys.CHUNKS_PURPOSE).inc()
            _log.error("a chunk cannot be unsealed and was left out", file_id=chunk.file_id, position=chunk.position)
            return None
        return Passage(
            vector_store_id=chunk.vector_store_id,
            file_id=chunk.file_id,
            filename=filename,
            text=content["text"],
            score=score,
            page=content["page"],
            start=content["start"],
            end=content["end"],
            heading_path=tuple(content["heading_path"]),
            attributes=chunk.attributes,
            version=chunk.version,
            position=chunk.position,
        )


async def _reranked(
    reranker: Reranker, queries: Sequence[str], passages: list[Passage], retrieval: Retrieval
) -> list[Passage]:
    """The passages in the reranker's order, or as they were while it is away; the weak ones left out."""
    scores = await reranker.scores(queries, [passage.text for passage in passages]) if passages else None
    if scores is not None:
        judged = [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
        passages = sorted(judged, key=lambda passage: -passage.score)
    return [passage for passage in passages if passage.score >= retrieval.score_threshold]


def in_turn(rankings: Sequence[Sequence[ScoredChunk]]) -> list[ScoredChunk]:
    """Rankings by different models as one: the first of each, then the second of each, and so on.

    Their scores say nothing about one another, so only ranks are compared.
    """
    tiers = zip_longest(*rankings)
    return [hit for tier in tiers for hit in sorted(filter(None, tier), key=lambda hit: -hit.score)]


def _by_place(stores: Sequence[VectorStore]) -> dict[Place, list[str]]:
    """The stores' ids by the collection that holds their chunks."""
    by_place: dict[Place, list[str]] = {}
    for store in stores:
        by_place.setdefault(store.place, []).append(store.id)
    return by_place


def _counts(live: LiveFiles, chunk: ScoredChunk) -> bool:
    """Whether the record says that a chunk may answer."""
    file = live.get((chunk.vector_store_id, chunk.file_id))
    return file is not None and file.version == chunk.version
