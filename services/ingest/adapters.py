"""The pipeline's ports over the real things: records, the vector database and the embedding model."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import orjson
from sqlalchemy import Connection

from libs.common import keys
from libs.common.cache.embeddings import CachedEmbedder
from libs.common.cache.store import Cache
from libs.common.contracts.ingest import PURGE_FILE, PurgeFile
from libs.common.errors import RetryableError
from libs.common.keyring import Keyring
from libs.common.rag.chunks import ChunkPayload, StoredChunk, to_stored
from libs.common.rag.embedder import Embedder
from libs.common.rag.sparse import encode_document
from libs.common.rag.vectors import ChunkCollection
from libs.common.records import file_versions, files, replacing, vector_store_files
from libs.common.records.database import Database
from libs.common.records.vector_store_files import FileKey
from libs.common.sealing import Sealer
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from services.ingest.ports import Attachment, Attributes, EmbeddedChunk, Job, Target, Twin
from services.ingest.settings import IngestSettings

_FEW_CHUNKS: Final = 16


class AttachedFiles:
    """The records of attached files."""

    def __init__(self, database: Database, messages: MessageSealer) -> None:
        self._database = database
        self._messages = messages

    async def attachment(self, tenant_id: str, vector_store_id: str, file_id: str) -> Attachment | None:
        key = FileKey(tenant_id, vector_store_id, file_id)
        return await self._database.read(lambda connection: _attachment(connection, key))

    async def go_live(self, job: Job, target: Target, usage_bytes: int, attributes: Attributes) -> bool:
        live = False

        def last_step(connection: Connection) -> None:
            nonlocal live
            live = file_versions.go_live(
                connection, _key(target), version=target.version, usage_bytes=usage_bytes, attributes=attributes
            )
            if live:
                self._replace(connection, _key(target))

        await job.finish(last_step)
        return live

    def _replace(self, connection: Connection, key: FileKey) -> None:
        for gone in replacing.take_places(connection, key):
            request = PurgeFile(vector_store_id=gone.vector_store_id, file_id=gone.file_id)
            submit(connection, self._messages, PURGE_FILE, request, tenant_id=gone.tenant_id, resource_id=gone.file_id)

    async def confirm_attributes(self, job: Job, target: Target, attributes: Attributes) -> None:
        await job.finish(lambda connection: file_versions.confirm_attributes(connection, _key(target), attributes))


def _key(target: Target) -> FileKey:
    return FileKey(target.tenant_id, target.vector_store_id, target.file_id)


def _attachment(connection: Connection, key: FileKey) -> Attachment | None:
    attached = vector_store_files.find(connection, key)
    if attached is None:
        return None
    making = attached.status == vector_store_files.IN_PROGRESS
    twin = replacing.twin(connection, attached) if making else None
    return Attachment(
        filename=attached.filename,
        blob_id=files.blob_id_of(connection, key.tenant_id, key.file_id),
        attributes=attached.attributes,
        chunking=attached.chunking,
        live_version=attached.live_version,
        wanted_version=attached.latest_version if making else None,
        untouched=making and file_versions.is_untouched(connection, attached),
        twin=None if twin is None else Twin(twin.file_id, twin.version, twin.usage_bytes),
    )


class SealedChunkIndex:
    """Chunks in the vector database, their texts sealed.

    The collection is set up before its first use, and again after a failure, so that this service can start while the
    vector database is away.
    """

    def __init__(self, collection: ChunkCollection, sealer: Sealer) -> None:
        self._collection = collection
        self._sealer = sealer
        self._ready = False

    async def check(self) -> None:
        """Set up the collection where it is missing.

        Raises:
            RetryableError: the vector database is away.
        """
        await self._collection.ensure()
        self._ready = True

    @asynccontextmanager
    async def _prepared(self) -> AsyncIterator[ChunkCollection]:
        if not self._ready:
            await self.check()
        try:
            yield self._collection
        except RetryableError:
            self._ready = False
            raise

    async def store(
        self, target: Target, filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> None:
        stored = (target, filename, attributes, chunks)
        # Stemming many chunks takes long enough for others to notice; a few are done before a thread would have begun.
        few = len(chunks) <= _FEW_CHUNKS
        points = self._points(*stored) if few else await asyncio.to_thread(self._points, *stored)
        async with self._prepared() as collection:
            await collection.upsert(points)

    async def copy(self, source: Target, target: Target, attributes: Attributes) -> int:
        copied = 0
        async with self._prepared() as collection:
            pages = collection.pages_with_vectors(
                source.tenant_id, source.vector_store_id, source.file_id, source.version
            )
            async for page in pages:
                chunks = [to_stored(record, source.tenant_id) for record in page]
                await collection.upsert([self._copied(chunk, target, attributes) for chunk in chunks])
                copied += len(page)
        return copied

    def _copied(self, chunk: StoredChunk, target: Target, attributes: Attributes) -> StoredChunk:
        position = str(chunk.position)
        source = (chunk.tenant_id, chunk.vector_store_id, chunk.file_id, str(chunk.version), position)
        content = self._sealer.open(chunk.payload.sealed, *source)
        return replace(
            chunk,
            vector_store_id=target.vector_store_id,
            file_id=target.file_id,
            version=target.version,
            payload=ChunkPayload(self._sealer.seal(content, *_context(target, position)), dict(attributes)),
        )

    async def set_attributes(self, target: Target, attributes: Attributes) -> None:
        async with self._prepared() as collection:
            await collection.set_attributes(target.tenant_id, target.vector_store_id, target.file_id, dict(attributes))

    async def delete_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, *, keep_version: int | None = None
    ) -> None:
        async with self._prepared() as collection:
            await collection.delete_file(tenant_id, vector_store_id, file_id, keep_version=keep_version)

    async def delete_older(self, target: Target, *, from_position: int, keep_version: int | None = None) -> None:
        async with self._prepared() as collection:
            await collection.delete_older(
                target.tenant_id,
                target.vector_store_id,
                target.file_id,
                target.version,
                from_position=from_position,
                keep_version=keep_version,
            )

    async def delete_newer(self, target: Target) -> None:
        async with self._prepared() as collection:
            await collection.delete_newer(target.tenant_id, target.vector_store_id, target.file_id, target.version)

    async def delete_store(self, tenant_id: str, vector_store_id: str) -> None:
        async with self._prepared() as collection:
            await collection.delete_store(tenant_id, vector_store_id)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._collection.aclose()

    def _points(
        self, target: Target, filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> list[StoredChunk]:
        return [
            StoredChunk(
                tenant_id=target.tenant_id,
                vector_store_id=target.vector_store_id,
                file_id=target.file_id,
                version=target.version,
                position=embedded.chunk.position,
                dense=embedded.vector,
                sparse=encode_document(embedded.text),
                payload=ChunkPayload(self._sealed(target, filename, embedded), dict(attributes)),
            )
            for embedded in chunks
        ]

    def _sealed(self, target: Target, filename: str, embedded: EmbeddedChunk) -> bytes:
        chunk = embedded.chunk
        payload = {
            "text": chunk.text,
            "start": chunk.start,
            "end": chunk.end,
            "page": chunk.page,
            "heading_path": chunk.heading_path,
            "filename": filename,
        }
        return self._sealer.seal(orjson.dumps(payload), *_context(target, str(chunk.position)))


def _context(target: Target, position: str) -> tuple[str, ...]:
    """What a chunk's sealed text is bound to."""
    return target.tenant_id, target.vector_store_id, target.file_id, str(target.version), position


def connect_index(settings: IngestSettings, keyring: Keyring) -> SealedChunkIndex:
    """The chunk index that the settings name; nothing is sent yet."""
    api_key = settings.qdrant_api_key
    collection = ChunkCollection.connect(
        settings.qdrant_url,
        model=settings.embedding_model,
        dimension=settings.embedding_dimensions,
        api_key=api_key.get_secret_value() if api_key else None,
    )
    return SealedChunkIndex(collection, keyring.sealer(keys.CHUNKS_PURPOSE))


def connect_embeddings(settings: IngestSettings, cache: Cache) -> CachedEmbedder:
    """The embedding model that the settings name, behind the cache; nothing is sent yet."""
    embedder = Embedder(
        settings.embedding_base_url,
        settings.embedding_api_key.get_secret_value(),
        model=settings.embedding_model,
        dimension=settings.embedding_dimensions,
        concurrency=settings.embedding_concurrency,
    )
    return CachedEmbedder(embedder, cache, settings.embedding_cache_seconds)
