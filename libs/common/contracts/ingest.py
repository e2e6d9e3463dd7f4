"""What callers know of the ingest service."""

from dataclasses import dataclass

from libs.common.contracts.base import JobSpec, Message, Queue


@dataclass(frozen=True, slots=True)
class Place:
    """The collection that holds a vector store's chunks.

    Attributes:
        generation: 1 or 2; a store that is built anew with the same model moves from the one to the other.
    """

    embedding_model: str
    generation: int = 1


class IngestFile(Message):
    """Make one attached file searchable as the given version."""

    vector_store_id: str
    file_id: str
    version: int


class ImportFile(Message):
    """Fetch a file from a URL and record it under this id."""

    file_id: str
    url: str
    filename: str
    purpose: str


class PurgeFile(Message):
    """Remove every chunk of a detached or deleted file. The record is already gone, so it no longer answers."""

    vector_store_id: str
    file_id: str


class PurgeStore(Message):
    """Remove every chunk of a deleted vector store."""

    vector_store_id: str


class ReindexStore(Message):
    """Build a vector store anew in another place, and let that answer as soon as it is whole."""

    vector_store_id: str
    embedding_model: str
    generation: int

    @property
    def goal(self) -> Place:
        return Place(self.embedding_model, self.generation)


class PurgeStrays(Message):
    """Remove the chunks that a reindex that was given up left of a vector store."""

    vector_store_id: str


class PurgeBlob(Message):
    """Remove the bytes of a deleted file."""

    blob_id: str


INGEST_FILE = JobSpec("ingest.file", Queue.INGEST, IngestFile)
IMPORT_FILE = JobSpec("ingest.import_file", Queue.INGEST, ImportFile)
PURGE_FILE = JobSpec("ingest.purge_file", Queue.INGEST, PurgeFile)
PURGE_STORE = JobSpec("ingest.purge_store", Queue.INGEST, PurgeStore)
REINDEX_STORE = JobSpec("ingest.reindex_store", Queue.INGEST, ReindexStore)
PURGE_STRAYS = JobSpec("ingest.purge_strays", Queue.INGEST, PurgeStrays)
PURGE_BLOB = JobSpec("ingest.purge_blob", Queue.INGEST, PurgeBlob)
