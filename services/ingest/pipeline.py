"""From an uploaded file to chunks that can be found, and from a deleted one to nothing.

Every step may be done again: a job whose worker dies is run from the start by another.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from libs.common import metrics
from libs.common.contracts.ingest import IngestFile, Place, PurgeBlob, PurgeFile, PurgeStore
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records.file_versions import AttributesChangedError
from services.ingest.chunking import AUTO, ChunkingStrategy, chunk
from services.ingest.document import Chunk, Document, LoadError
from services.ingest.ports import (
    Attachment,
    Blobs,
    ChunkIndex,
    EmbeddedChunk,
    Embedder,
    Job,
    Parser,
    Progress,
    Records,
    Target,
)

BATCH_CHUNKS: Final = 64
_VECTOR_VALUE_BYTES: Final = 4
_SHORT_CHARACTERS: Final = 20_000
_ERROR_CODES: Final = {
    "unsupported_file": ErrorCode.FILE_TYPE_NOT_ALLOWED,
    "invalid_file": ErrorCode.INVALID_FILE,
}


@dataclass(frozen=True, slots=True)
class Made:
    """A version of a file whose chunks are stored: how many, and the bytes they take."""

    chunks: int
    usage_bytes: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """The chunks of a file, and the title under which they are embedded."""

    title: str
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps of the ingest service over its ports."""

    records: Records
    blobs: Blobs
    parser: Parser
    embedder: Embedder
    index: ChunkIndex

    async def ingest(self, request: IngestFile, job: Job) -> None:
        """Make a file searchable as the version asked for, or bring a live one's attributes up to date.

        A file that was detached, cancelled or overtaken meanwhile leaves nothing and is no failure.

        Raises:
            PermanentError: FILE_TYPE_NOT_ALLOWED or INVALID_FILE, for the person who uploaded it.
            RetryableError: a store or the embedding model is away.
        """
        target = Target(job.tenant_id, request.vector_store_id, request.file_id, request.version)
        attachment = await self._attachment(target)
        if attachment is not None and attachment.live_version >= target.version:
            await self.index.set_attributes(target, attachment.attributes)
            await self.records.confirm_attributes(job, target, attachment.attributes)
        elif attachment is None or attachment.wanted_version != target.version:
            await self._discard(target, attachment)
        else:
            await self._make(job, target, attachment)

    async def purge_file(self, request: PurgeFile, job: Job) -> None:
        """Remove the chunks of a detached file; of one that was attached again since, those that are not live."""
        target = Target(job.tenant_id, request.vector_store_id, request.file_id, version=0)
        attachment = await self._attachment(target)
        if attachment is not None and attachment.wanted_version is not None:
            # Its job clears what is older; versions count from 1 again, so the file may have left newer ones, too.
            await self.index.delete_newer(replace(target, version=attachment.wanted_version))
            return
        live_version = attachment.live_version if attachment is not None else 0
        await self.index.delete_file(
            target.tenant_id, target.vector_store_id, target.file_id, keep_version=live_version or None
        )

    async def purge_store(self, request: PurgeStore, job: Job) -> None:
        """Remove the chunks of a deleted vector store."""
        await self.index.delete_store(job.tenant_id, request.vector_store_id)

    async def purge_blob(self, request: PurgeBlob, job: Job) -> None:
        """Remove the bytes of a deleted file."""
        await self.blobs.delete(job.tenant_id, request.blob_id)

    async def _attachment(self, target: Target) -> Attachment | None:
        return await self.records.attachment(target.tenant_id, target.vector_store_id, target.file_id)

    async def _make(self, job: Job, target: Target, attachment: Attachment) -> None:
        live = False
        try:
            made = await self._copied(job, target, attachment) or await self._made(job, target, attachment)
            live = made is not None and await self._go_live(job, target, attachment, made.usage_bytes)
        finally:
            # Also where another worker has the job by now: it may have ended before our last chunks were stored.
            if not live:
                await self._give_way(target, attachment.place)
        if live and made is not None and target.version > 1:
            await self.index.delete_older(
                target, from_position=made.chunks, keep_version=target.version, place=attachment.place
            )

    async def _copied(self, job: Job, target: Target, attachment: Attachment) -> Made | None:
        """Take over the chunks of a file with the same content; None where there is none."""
        twin, place = attachment.twin, attachment.place
        if twin is None:
            return None
        source = replace(target, file_id=twin.file_id, version=twin.version)
        count = 0
        with metrics.stage("store"), suppress(PermanentError):  # a damaged chunk of the other's is made anew here
            count = await self.index.copy(place, source, target, attachment.attributes)
        # Records go before chunks: if it still answers from there, none of its chunks was missing.
        now = await self._attachment(source)
        if count == 0 or now is None or (now.live_version, now.place) != (twin.version, place):
            await self._clear(target, attachment, 0)
            return None
        if not attachment.untouched:
            await self._clear(target, attachment, count)
        await job.progress(count, count)
        return Made(count, twin.usage_bytes)

    async def _made(self, job: Job, target: Target, attachment: Attachment) -> Made | None:
        chunked = await self.chunked(job, target, attachment)
        if chunked is None:
            return None
        if not attachment.untouched:
            await self._clear(target, attachment, len(chunked.chunks))
        return await self.stored(job, attachment.place, target, attachment, chunked)

    async def chunked(self, job: Progress, target: Target, attachment: Attachment) -> Chunked | None:
        """The chunks of a file; None if it was deleted meanwhile.

        Raises:
            PermanentError: as `ingest`.
        """
        try:
            document = await self._document(job, target, attachment)
        except PermanentError:
            if await self._attachment(target) is None:  # its bytes went with it
                return None
            raise
        with metrics.stage("chunk"):
            strategy = strategy_of(attachment.chunking)
            # A short text is done before a thread would have begun.
            short = len(document.text) <= _SHORT_CHARACTERS
            chunks = chunk(document, strategy) if short else await asyncio.to_thread(chunk, document, strategy)
        if not chunks:
            raise PermanentError(ErrorCode.INVALID_FILE, "The file holds no text that could be searched.")
        return Chunked(document.title or PurePosixPath(attachment.filename).stem, chunks)

    async def _clear(self, target: Target, attachment: Attachment, count: int) -> None:
        """Remove what an earlier attempt or attachment left, which would otherwise answer as part of this version."""
        keep_version = attachment.live_version or None
        await self.index.delete_older(target, from_position=count, keep_version=keep_version, place=attachment.place)

    async def _document(self, job: Progress, target: Target, attachment: Attachment) -> Document:
        # Without a name from the start: whatever ends this process leaves nobody's document in a directory.
        with tempfile.TemporaryFile() as file:
            with metrics.stage("read_blob"):
                await self.blobs.read_into(target.tenant_id, attachment.blob_id, file)
            try:
                with metrics.stage("parse"):
                    return await self.parser.parse(
                        file, attachment.filename, owner=target.tenant_id, page_read=job.progress
                    )
            except LoadError as error:
                raise PermanentError(_ERROR_CODES[error.code], error.message) from error

    async def stored(
        self, job: Progress, place: Place, target: Target, attachment: Attachment, chunked: Chunked
    ) -> Made:
        """Embed and store every chunk."""
        chunks = chunked.chunks
        usage_bytes = 0
        await job.progress(0, len(chunks))
        for start in range(0, len(chunks), BATCH_CHUNKS):
            batch = chunks[start : start + BATCH_CHUNKS]
            texts = [piece.embedding_text(chunked.title) for piece in batch]
            with metrics.stage("embed"):
                vectors = await self.embedder.embed(target.tenant_id, place.embedding_model, texts)
            embedded = [EmbeddedChunk(*each) for each in zip(batch, texts, vectors, strict=True)]
            with metrics.stage("store"):
                await self.index.store(place, target, attachment.filename, attachment.attributes, embedded)
            usage_bytes += sum(map(_size_bytes, embedded))
            await job.progress(start + len(batch), len(chunks))
        return Made(len(chunks), usage_bytes)

    async def _go_live(self, job: Job, target: Target, attachment: Attachment, usage_bytes: int) -> bool:
        """End the job; the stored chunks first get the attributes of by now, should they have changed meanwhile."""
        try:
            return await self.records.go_live(job, target, usage_bytes, attachment)
        except AttributesChangedError:
            now = await self._attachment(target) or attachment
            await self.index.set_attributes(target, now.attributes)
            stored = replace(attachment, attributes=now.attributes)
            return await self.records.go_live(job, target, usage_bytes, stored)

    async def _give_way(self, target: Target, place: Place) -> None:
        """Leave nothing of an attempt that did not make its version live, whoever did what meanwhile."""
        attachment = await self._attachment(target)
        if attachment is not None and attachment.place != place:
            # The store was built anew elsewhere, without what was stored too late.
            await self.index.delete_older(target, from_position=0, place=place)
        if attachment is not None and attachment.live_version == target.version:
            await self.index.set_attributes(target, attachment.attributes)
        await self._discard(target, attachment)

    async def _discard(self, target: Target, attachment: Attachment | None) -> None:
        """Remove this version and older ones that nobody wants, unless this one is being made."""
        live_version = attachment.live_version if attachment is not None else 0
        if attachment is None or attachment.wanted_version != target.version:
            await self.index.delete_older(target, from_position=0, keep_version=live_version or None)


def strategy_of(chunking: Mapping[str, Any]) -> ChunkingStrategy:
    """OpenAI's chunking strategy as ours: whole sentences by default, windows of a size where one is asked for."""
    if chunking.get("type") != "static":
        return AUTO
    static = chunking["static"]
    return ChunkingStrategy(max_tokens=static["max_chunk_size_tokens"], overlap_tokens=static["chunk_overlap_tokens"])


def _size_bytes(embedded: EmbeddedChunk) -> int:
    return len(embedded.chunk.text.encode()) + _VECTOR_VALUE_BYTES * len(embedded.vector)
