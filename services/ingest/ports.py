"""What the pipeline needs of the world, in its own terms; `adapters` has the real things."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from libs.common.contracts.ingest import Place
from services.ingest.document import Chunk, Document

Attributes = Mapping[str, str | float | bool]


@dataclass(frozen=True, slots=True)
class Twin:
    """Another file of the same vector store, with the same bytes, name and chunking, that answers."""

    file_id: str
    version: int
    usage_bytes: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file in a vector store, as its record has it now.

    Attributes:
        chunking: the client's chunking strategy, in OpenAI's JSON.
        live_version: the version that answers; 0 for none.
        wanted_version: the version that is being made, or None if nothing is.
        untouched: whether no chunk of the file can be stored yet, in any version.
        place: where the vector store's chunks are.
        twin: a live file of the same content, while a version is being made.
    """

    filename: str
    blob_id: str
    attributes: Attributes
    chunking: Mapping[str, Any]
    live_version: int
    wanted_version: int | None
    place: Place
    untouched: bool = False
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """A chunk with its vector; `text` is what was embedded, headings above the chunk included."""

    chunk: Chunk
    text: str
    vector: list[float]


@dataclass(frozen=True, slots=True)
class Target:
    """Whose chunks are written, and as which version."""

    tenant_id: str
    vector_store_id: str
    file_id: str
    version: int


class Progress(Protocol):
    """Tells how far a job is; fails once another worker has it."""

    async def progress(self, done: int, total: int) -> None: ...


class Job(Progress, Protocol):
    """One attempt at a job; every method fails once another worker has it."""

    @property
    def id(self) -> str: ...

    @property
    def tenant_id(self) -> str: ...

    async def write(self, step: Callable[[Any], None]) -> None: ...

    # What a transaction is, only the records know.
    async def finish(self, last_step: Callable[[Any], None] | None = None) -> None: ...


class Records(Protocol):
    """The records of attached files, and the ends of jobs that are one commit with a change to them."""

    async def attachment(self, tenant_id: str, vector_store_id: str, file_id: str) -> Attachment | None:
        """The file's record; None once it is detached or deleted."""
        ...

    async def go_live(self, job: Job, target: Target, usage_bytes: int, stored: Attachment) -> bool:
        """End the job and let the version answer instead of what it replaces; False if nobody wants it any more.

        Raises:
            AttributesChangedError: the record's attributes are others than those that were stored.
            PlaceChangedError: the vector store's chunks are elsewhere than where these were stored.
        """
        ...

    async def confirm_attributes(self, job: Job, target: Target, attributes: Attributes) -> None:
        """End the job: the live chunks now have these attributes."""
        ...


@dataclass(frozen=True, slots=True)
class Store:
    """A vector store, and which job builds it anew."""

    place: Place
    reindex_job_id: str | None


@dataclass(frozen=True, slots=True)
class Reindexed:
    """Files that answer, how many of them are built anew, and the chunks of these."""

    total: int
    done: int
    chunks: int


class ReindexRecords(Protocol):
    """The records of a vector store that is built anew."""

    async def store(self, tenant_id: str, vector_store_id: str) -> Store | None: ...

    async def progress(self, tenant_id: str, vector_store_id: str) -> Reindexed: ...

    async def unbuilt(self, tenant_id: str, vector_store_id: str) -> list[str]:
        """Some of the files that answer and are not built anew as they answer now; none when all are."""
        ...

    async def mark(self, job: Job, target: Target, built: Attachment, chunks: int, usage_bytes: int) -> bool:
        """Note that a file is built anew; False if it answers otherwise by now."""
        ...

    async def forget(self, job: Job, vector_store_id: str) -> None:
        """Nothing counts as built anew any more."""
        ...

    async def switch(self, job: Job, vector_store_id: str, goal: Place) -> bool:
        """Let what was built anew answer; False if a file is missing there."""
        ...

    async def finish(self, job: Job, vector_store_id: str) -> None:
        """End the job."""
        ...


class Blobs(Protocol):
    """Where the files' bytes are."""

    async def read_into(self, tenant_id: str, blob_id: str, file: BinaryIO) -> None: ...

    async def delete(self, tenant_id: str, blob_id: str) -> None: ...


class Parser(Protocol):
    """Reads a file; raises LoadError for one that cannot become a document.

    What a hostile file may do to the process that reads it harms no other owner's files.
    """

    async def parse(
        self, file: BinaryIO, filename: str, *, owner: str, page_read: Callable[[int, int], Awaitable[None]]
    ) -> Document:
        """The document; `page_read` is told how many of its pictures are read, and of how many."""
        ...


class Embedder(Protocol):
    """One vector for each text by a model, in order."""

    async def embed(self, tenant_id: str, model: str, texts: Sequence[str]) -> list[list[float]]: ...


class ChunkIndex(Protocol):
    """Where chunks are found again. Without a place a method means every place there is."""

    async def store(
        self, place: Place, target: Target, filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> None:
        """Store chunks; again is harmless."""
        ...

    async def copy(self, place: Place, source: Target, target: Target, attributes: Attributes) -> int:
        """Store another file's chunks as the target's.

        Returns:
            How many there are.
        """
        ...

    async def count(self, place: Place, tenant_id: str, vector_store_id: str, target: Target | None = None) -> int:
        """The chunks of a vector store, or of one version of a file in it."""
        ...

    async def set_attributes(self, target: Target, attributes: Attributes) -> None:
        """Replace the attributes on all of the file's chunks."""
        ...

    async def delete_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, *, keep_version: int | None = None
    ) -> None:
        """Delete the file's chunks, of every version but one or of all."""
        ...

    async def delete_older(
        self, target: Target, *, from_position: int, keep_version: int | None = None, place: Place | None = None
    ) -> None:
        """Delete the file's chunks of older versions, and of the target's own those at `from_position` and behind.

        `keep_version` stays, and so do newer versions: a late writer must not harm what others have made since.
        """
        ...

    async def delete_newer(self, target: Target) -> None:
        """Delete the file's chunks of versions newer than the target's."""
        ...

    async def delete_store(self, tenant_id: str, vector_store_id: str, *, keep: Place | None = None) -> None:
        """Delete a vector store's chunks everywhere but at one place."""
        ...
