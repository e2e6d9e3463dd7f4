"""What the pipeline needs of the world, in its own terms; `adapters` has the real things."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
        twin: a live file of the same content, while a version is being made.
    """

    filename: str
    blob_id: str
    attributes: Attributes
    chunking: Mapping[str, Any]
    live_version: int
    wanted_version: int | None
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


class Job(Protocol):
    """One attempt at a job; every method fails once another worker has it."""

    @property
    def tenant_id(self) -> str: ...

    async def progress(self, done: int, total: int) -> None: ...

    # What a transaction is, only the records know.
    async def finish(self, last_step: Callable[[Any], None] | None = None) -> None: ...


class Records(Protocol):
    """The records of attached files, and the ends of jobs that are one commit with a change to them."""

    async def attachment(self, tenant_id: str, vector_store_id: str, file_id: str) -> Attachment | None:
        """The file's record; None once it is detached or deleted."""
        ...

    async def go_live(self, job: Job, target: Target, usage_bytes: int, attributes: Attributes) -> bool:
        """End the job and let the version answer instead of what it replaces; False if nobody wants it any more.

        Raises:
            AttributesChangedError: the record's attributes are others than these.
        """
        ...

    async def confirm_attributes(self, job: Job, target: Target, attributes: Attributes) -> None:
        """End the job: the live chunks now have these attributes."""
        ...


class Blobs(Protocol):
    """Where the files' bytes are."""

    async def read_to(self, tenant_id: str, blob_id: str, path: Path) -> None: ...

    async def delete(self, tenant_id: str, blob_id: str) -> None: ...


class Parser(Protocol):
    """Reads a file; raises LoadError for one that cannot become a document.

    What a hostile file may do to the process that reads it harms no other owner's files.
    """

    async def parse(self, path: Path, filename: str, *, owner: str) -> Document: ...


class Embedder(Protocol):
    """One vector for each text, in order."""

    async def embed(self, tenant_id: str, texts: Sequence[str]) -> list[list[float]]: ...


class ChunkIndex(Protocol):
    """Where chunks are found again."""

    async def store(
        self, target: Target, filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> None:
        """Store chunks; again is harmless."""
        ...

    async def copy(self, source: Target, target: Target, attributes: Attributes) -> int:
        """Store another file's chunks as the target's.

        Returns:
            How many there are.
        """
        ...

    async def set_attributes(self, target: Target, attributes: Attributes) -> None:
        """Replace the attributes on all of the file's chunks."""
        ...

    async def delete_file(
        self, tenant_id: str, vector_store_id: str, file_id: str, *, keep_version: int | None = None
    ) -> None:
        """Delete the file's chunks, of every version but one or of all."""
        ...

    async def delete_older(self, target: Target, *, from_position: int, keep_version: int | None = None) -> None:
        """Delete the file's chunks of older versions, and of the target's own those at `from_position` and behind.

        `keep_version` stays, and so do newer versions: a late writer must not harm what others have made since.
        """
        ...

    async def delete_newer(self, target: Target) -> None:
        """Delete the file's chunks of versions newer than the target's."""
        ...

    async def delete_store(self, tenant_id: str, vector_store_id: str) -> None: ...
