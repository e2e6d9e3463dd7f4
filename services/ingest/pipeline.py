"""From an uploaded file to chunks that can be found, and from a deleted one to nothing.

Every step may be done again: a job whose worker dies is run from the start by another.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from libs.common import metrics
from libs.common.contracts.ingest import IngestFile, PurgeBlob, PurgeFile, PurgeStore
from libs.common.errors import ErrorCode, PermanentError
from services.ingest.chunking import AUTO, ChunkingStrategy, chunk
from services.ingest.document import Chunk, Document, LoadError
from services.ingest.ports import (
    Attachment,
    Attributes,
    Blobs,
    ChunkIndex,
    EmbeddedChunk,
    Embedder,
    Job,
    Parser,
    Records,
    Target,
)

BATCH_CHUNKS: Final = 64
_VECTOR_VALUE_BYTES: Final = 4
_ERROR_CODES: Final = {
    "unsupported_file": ErrorCode.FILE_TYPE_NOT_ALLOWED,
    "invalid_file": ErrorCode.INVALID_FILE,
}


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
        await self._discard(target, await self._attachment(target))

    async def purge_store(self, request: PurgeStore, job: Job) -> None:
        """Remove the chunks of a deleted vector store."""
        await self.index.delete_store(job.tenant_id, request.vector_store_id)

    async def purge_blob(self, request: PurgeBlob, job: Job) -> None:
        """Remove the bytes of a deleted file."""
        await self.blobs.delete(job.tenant_id, request.blob_id)

    async def _attachment(self, target: Target) -> Attachment | None:
        return await self.records.attachment(target.tenant_id, target.vector_store_id, target.file_id)

    async def _make(self, job: Job, target: Target, attachment: Attachment) -> None:
        try:
            document = await self._document(target, attachment)
        except PermanentError:
            if await self._attachment(target) is None:  # its bytes went with it
                return
            raise
        with metrics.stage("chunk"):
            chunks = await asyncio.to_thread(chunk, document, strategy_of(attachment.chunking))
        if not chunks:
            raise PermanentError(ErrorCode.INVALID_FILE, "The file holds no text that could be searched.")
        # What an earlier attempt or attachment left behind would otherwise answer as part of this version.
        await self._delete_all_but(target, attachment.live_version)
        usage_bytes = await self._store(job, target, attachment, document, chunks)
        attributes = await self._current_attributes(target, attachment)
        if not await self.records.go_live(job, target, usage_bytes, attributes):
            await self._discard(target, await self._attachment(target))
        elif attachment.live_version:
            await self._delete_all_but(target, target.version)

    async def _document(self, target: Target, attachment: Attachment) -> Document:
        with tempfile.TemporaryDirectory(prefix="docent-ingest-") as folder:
            path = Path(folder) / "file"
            with metrics.stage("read_blob"):
                await self.blobs.read_to(target.tenant_id, attachment.blob_id, path)
            try:
                with metrics.stage("parse"):
                    return await self.parser.parse(path, attachment.filename)
            except LoadError as error:
                raise PermanentError(_ERROR_CODES[error.code], error.message) from error

    async def _store(
        self, job: Job, target: Target, attachment: Attachment, document: Document, chunks: list[Chunk]
    ) -> int:
        """Embed and store every chunk; the bytes they take."""
        title = document.title or PurePosixPath(attachment.filename).stem
        usage_bytes = 0
        await job.progress(0, len(chunks))
        for start in range(0, len(chunks), BATCH_CHUNKS):
            batch = chunks[start : start + BATCH_CHUNKS]
            texts = [piece.embedding_text(title) for piece in batch]
            with metrics.stage("embed"):
                vectors = await self.embedder.embed(texts)
            embedded = [EmbeddedChunk(*each) for each in zip(batch, texts, vectors, strict=True)]
            with metrics.stage("store"):
                await self.index.store(target, attachment.filename, attachment.attributes, embedded)
            usage_bytes += sum(map(_size_bytes, embedded))
            await job.progress(start + len(batch), len(chunks))
        return usage_bytes

    async def _current_attributes(self, target: Target, attachment: Attachment) -> Attributes:
        """The attributes that the stored chunks have, brought up to date if they changed while the file was read."""
        now = await self._attachment(target)
        if now is None or now.attributes == attachment.attributes:
            return attachment.attributes
        await self.index.set_attributes(target, now.attributes)
        return now.attributes

    async def _discard(self, target: Target, attachment: Attachment | None) -> None:
        """Remove what nobody wants, unless another version of it is live or being made."""
        if attachment is None:
            await self._delete_all_but(target, 0)
        elif attachment.wanted_version is None:
            await self._delete_all_but(target, attachment.live_version)

    async def _delete_all_but(self, target: Target, version: int) -> None:
        await self.index.delete_file(
            target.tenant_id, target.vector_store_id, target.file_id, keep_version=version or None
        )


def strategy_of(chunking: Mapping[str, Any]) -> ChunkingStrategy:
    """OpenAI's chunking strategy as ours: whole sentences by default, windows of a size where one is asked for."""
    if chunking.get("type") != "static":
        return AUTO
    static = chunking["static"]
    return ChunkingStrategy(max_tokens=static["max_chunk_size_tokens"], overlap_tokens=static["chunk_overlap_tokens"])


def _size_bytes(embedded: EmbeddedChunk) -> int:
    return len(embedded.chunk.text.encode()) + _VECTOR_VALUE_BYTES * len(embedded.vector)
