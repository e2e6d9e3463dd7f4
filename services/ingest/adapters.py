"""The pipeline's ports over the real things: records, the vector database and the embedding model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import orjson
from sqlalchemy import Connection

from libs.common.contracts.ingest import PURGE_FILE, Place, PurgeFile
from libs.common.errors import RetryableError
from libs.common.rag.chunks import ChunkPayload, StoredChunk, to_stored
from libs.common.rag.collections import Collections
from libs.common.rag.sparse import encode_document
from libs.common.rag.vectors import ChunkCollection, CollectionMissingError
from libs.common.records import file_versions, files, replacing, vector_store_files, vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_store_files import FileKey
from libs.common.sealing import Sealer
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from services.ingest.ports import Attachment, Attributes, EmbeddedChunk, Job, Target, Twin

_FEW_CHUNKS: Final = 16


class AttachedFiles:
    """The records of attached files."""

    def __init__(self, database: Database, messages: MessageSealer) -> None:
        self._database = database
        self._messages = messages

    async def attachment(self, tenant_id: str, vector_store_id: str, file_id: str) -> Attachment | None:
        key = FileKey(tenant_id, vector_store_id, file_id)
        return await self._database.read(lambda connection: _attachment(connection, key))

    async def go_live(self, job: Job, target: Target, usage_bytes: int, stored: Attachment) -> bool:
        live = False

        def last_step(connection: Connection) -> None:
            nonlocal live
            live = file_versions.go_live(
                connection,
                _key(target),
                version=target.version,
                usage_bytes=usage_bytes,
                attributes=stored.attributes,
                place=stored.place,
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
    place = vector_stores.place_of(connection, key.tenant_id, key.vector_store_id)
    if attached is None or place is None:
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
        place=place,
        untouched=making and file_versions.is_untouched(connection, attached),
        twin=None if twin is None else Twin(twin.file_id, twin.version, twin.usage_bytes),
    )


class SealedChunkIndex:
    """Chunks in the vector database, their texts sealed.

    A collection is set up before its first use, and again after a failure, so that this service can start while the
    vector database is away.
    """

    def __init__(self, collections: Collections, sealer: Sealer) -> None:
        self._collections = collections
        self._sealer = sealer
        self._ready: set[Place] = set()

    async def check(self, place: Place) -> None:
        """Set up the collection of a place where it is missing.

        Raises:
            RetryableError: the vector database is away.
        """
        await self._collections.at(place).ensure()
        self._ready.add(place)

    @asynccontextmanager
    async def _prepared(self, place: Place) -> AsyncIterator[ChunkCollection]:
        if place not in self._ready:
            await self.check(place)
        try:
            yield self._collections.at(place)
        except RetryableError:
            self._ready.discard(place)
            raise

    async def _everywhere(
        self, change: Callable[[ChunkCollection], Awaitable[None]], *, keep: Place | None = None
    ) -> None:
        for place, collection in self._collections.all().items():
            if place != keep:
                with suppress(CollectionMissingError):  # then there is nothing to change
                    await change(collection)

    async def store(
        self, place: Place, target: Target, filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> None:
        stored = (target, filename, attributes, chunks)
        # Stemming many chunks takes long enough for others to notice; a few are done before a thread would have begun.
        few = len(chunks) <= _FEW_CHUNKS
        points = self._points(*stored) if few else await asyncio.to_thread(self._points, *stored)
        async with self._prepared(place) as collection:
            await collection.upsert(points)

    async def copy(self, place: Place, source: Target, target: Target, attributes: Attributes) -> int:
        copied = 0
        async with self._prepared(place) as collection:
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

    async def count(self, place: Place, tenant_id: str, vector_store_id: str, target: Target | None = None) -> int:
        file_id, version = (None, None) if target is None else (target.file_id, target.version)
        async with self._prepared(place) as collection:
            return await collection.count(tenant_id, vector_store_id=vector_store_id, file_id=file_id, version=version)

    async def set_attributes(self, target: Target, attributes: Attributes) -> None:
        of_file = (target.tenant_id, target.vector_store_id, target.file_id, dict(attributes))
        await self._everywhere(lambda collection: collection.set_attributes(*of_file))

    async def delete_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, *, keep_version: int | None = None
    ) -> None:
        await self._everywhere(
            lambda collection: collection.delete_file(tenant_id, vector_store_id, file_id, keep_version=keep_version)
        )

    async def delete_older(
        self, target: Target, *, from_position: int, keep_version: int | None = None, place: Place | None = None
    ) -> None:
        async def delete(collection: ChunkCollection) -> None:
            await collection.delete_older(
                target.tenant_id,
                target.vector_store_id,
                target.file_id,
                target.version,
                from_position=from_position,
                keep_version=keep_version,
            )

        if place is None:
            await self._everywhere(delete)
            return
        async with self._prepared(place) as collection:
            await delete(collection)

    async def delete_newer(self, target: Target) -> None:
        of_file = (target.tenant_id, target.vector_store_id, target.file_id, target.version)
        await self._everywhere(lambda collection: collection.delete_newer(*of_file))

    async def delete_store(self, tenant_id: str, vector_store_id: str, *, keep: Place | None = None) -> None:
        await self._everywhere(lambda collection: collection.delete_store(tenant_id, vector_store_id), keep=keep)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._collections.aclose()

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
