"""What callers know of the ingest service."""

from libs.common.contracts.base import JobSpec, Message, Queue


class IngestFile(Message):
    """Make one attached file searchable as the given version."""

    vector_store_id: str
    file_id: str
    version: int


class PurgeFile(Message):
    """Remove every chunk of a detached or deleted file. The record is already gone, so it no longer answers."""

    vector_store_id: str
    file_id: str


class PurgeStore(Message):
    """Remove every chunk of a deleted vector store."""

    vector_store_id: str


class PurgeBlob(Message):
    """Remove the bytes of a deleted file."""

    blob_id: str


INGEST_FILE = JobSpec("ingest.file", Queue.INGEST, IngestFile)
PURGE_FILE = JobSpec("ingest.purge_file", Queue.INGEST, PurgeFile)
PURGE_STORE = JobSpec("ingest.purge_store", Queue.INGEST, PurgeStore)
PURGE_BLOB = JobSpec("ingest.purge_blob", Queue.INGEST, PurgeBlob)
