"""Files in vector stores: changes of the records, with the jobs that follow from them in the same transaction.

The record is always first, so what is deleted stops answering at once; its chunks and bytes go by a job.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from libs.common import ledger
from libs.common.contracts.ingest import (
    INGEST_FILE,
    PURGE_BLOB,
    PURGE_FILE,
    PURGE_STORE,
    IngestFile,
    PurgeBlob,
    PurgeFile,
    PurgeStore,
)
from libs.common.records import file_versions, files, replacing, vector_store_files, vector_stores
from libs.common.records.vector_store_files import AttachedFile, Attributes, FileKey, NewAttachment
from libs.common.tasks.submission import new_job, submit
from libs.common.tasks.wire import MessageSealer
from services.gateway import reindexing

# A worker learns within seconds that its job was cancelled; what it wrote until then is cleared away after that.
_CANCELLED_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to be attached, and how; `chunking` is OpenAI's JSON.

    Attributes:
        replaces: a file of the same vector store that is detached as soon as this one can be found.
    """

    file_id: str
    attributes: Attributes
    chunking: Mapping[str, Any]
    replaces: str | None = None


def attach_file(
    connection: Connection,
    messages: MessageSealer,
    tenant_id: str,
    store_id: str,
    wanted: Wanted,
    *,
    file_batch_id: str | None = None,
) -> AttachedFile:
    """Attach a file and submit the job that makes it searchable, unless it is so already or under way.

    Raises:
        PermanentError: NOT_FOUND for the file, the vector store or the file to be replaced.
    """
    file = files.get(connection, tenant_id, wanted.file_id, lock=True)
    attached, begun = vector_store_files.attach(
        connection,
        store_id,
        file,
        attributes=wanted.attributes,
        chunking=wanted.chunking,
        file_batch_id=file_batch_id,
    )
    key = FileKey(tenant_id, store_id, file.id)
    if begun:
        replacing.forget(connection, key)
    if wanted.replaces is not None:
        replacing.mark(connection, key, wanted.replaces)
    if not begun:
        if attached.status == "completed":
            for replaced in replacing.take_places(connection, key):
                _purge_file(connection, messages, replaced)
        return attached
    return vector_store_files.set_job(connection, key, _ingest(connection, messages, key, attached.latest_version))


def attach_files(
    connection: Connection,
    messages: MessageSealer,
    tenant_id: str,
    store_id: str,
    wanted: Sequence[Wanted],
    file_batch_id: str,
) -> None:
    """Attach files as `attach_file` does each of them, in few statements.

    Args:
        wanted: each file once.

    Raises:
        PermanentError: NOT_FOUND for a file or the vector store.
    """
    file_ids = [each.file_id for each in wanted]
    found = files.get_many(connection, tenant_id, file_ids)
    missing = vector_store_files.missing_from(connection, tenant_id, store_id, file_ids)
    new, jobs = [], []
    for each in wanted:
        if each.file_id not in missing:
            attach_file(connection, messages, tenant_id, store_id, each, file_batch_id=file_batch_id)
            continue
        request = IngestFile(vector_store_id=store_id, file_id=each.file_id, version=1)
        job = new_job(messages, INGEST_FILE, request, tenant_id=tenant_id, resource_id=each.file_id)
        jobs.append(job)
        new.append(NewAttachment(found[each.file_id], each.attributes, each.chunking, job.id))
    vector_store_files.attach_new(connection, tenant_id, store_id, new, file_batch_id=file_batch_id)
    ledger.submit(connection, *jobs)


def update_attributes(
    connection: Connection, messages: MessageSealer, key: FileKey, attributes: Attributes
) -> AttachedFile:
    """Replace a file's attributes; those of chunks that answer already are brought up to date by a job.

    Raises:
        PermanentError: NOT_FOUND.
    """
    attached = vector_store_files.update_attributes(connection, key, attributes)
    if attached.live_version:
        _ingest(connection, messages, key, attached.live_version)
    return attached


def detach_file(connection: Connection, messages: MessageSealer, key: FileKey) -> None:
    """Take a file out of a vector store.

    Raises:
        PermanentError: NOT_FOUND.
    """
    vector_store_files.detach(connection, key)
    replacing.forget(connection, key)
    _purge_file(connection, messages, key)


def delete_file(connection: Connection, messages: MessageSealer, tenant_id: str, file_id: str) -> None:
    """Delete a file, out of every vector store as well.

    Raises:
        PermanentError: NOT_FOUND.
    """
    deleted = files.delete(connection, tenant_id, file_id)
    for store_id in deleted.vector_store_ids:
        _purge_file(connection, messages, FileKey(tenant_id, store_id, file_id))
    purge_blobs(connection, messages, tenant_id, file_id, [deleted.blob_id])


def purge_blobs(
    connection: Connection, messages: MessageSealer, tenant_id: str, resource_id: str, blob_ids: Iterable[str]
) -> None:
    """Have bytes removed that no record names any more."""
    for blob_id in blob_ids:
        blob = PurgeBlob(blob_id=blob_id)
        submit(connection, messages, PURGE_BLOB, blob, tenant_id=tenant_id, resource_id=resource_id)


def delete_store(connection: Connection, messages: MessageSealer, tenant_id: str, store_id: str) -> None:
    """Delete a vector store; the files in it stay.

    Raises:
        PermanentError: NOT_FOUND.
    """
    vector_stores.delete(connection, tenant_id, store_id)
    request = PurgeStore(vector_store_id=store_id)
    submit(connection, messages, PURGE_STORE, request, tenant_id=tenant_id, resource_id=store_id)


def cancel_job(connection: Connection, messages: MessageSealer, tenant_id: str, job_id: str) -> None:
    """Stop a job, and let the file that it was to make searchable show that.

    Raises:
        PermanentError: NOT_FOUND or JOB_NOT_CANCELLABLE.
    """
    ledger.cancel(connection, tenant_id, job_id)
    for key in file_versions.cancel(connection, tenant_id, job_id):
        _purge_file(connection, messages, key, delay_seconds=_CANCELLED_SECONDS)
    reindexing.give_up(connection, messages, tenant_id, job_id, delay_seconds=_CANCELLED_SECONDS)


def requeue_job(connection: Connection, tenant_id: str, job_id: str) -> None:
    """Give a failed job new tries, and let the file that it is to make searchable show that.

    Raises:
        PermanentError: NOT_FOUND or JOB_NOT_REQUEUEABLE.
    """
    ledger.requeue(connection, tenant_id, job_id)
    file_versions.resume(connection, tenant_id, job_id)


def _ingest(connection: Connection, messages: MessageSealer, key: FileKey, version: int) -> str:
    request = IngestFile(vector_store_id=key.vector_store_id, file_id=key.file_id, version=version)
    return submit(connection, messages, INGEST_FILE, request, tenant_id=key.tenant_id, resource_id=key.file_id)


def _purge_file(connection: Connection, messages: MessageSealer, key: FileKey, *, delay_seconds: float = 0.0) -> None:
    submit(
        connection,
        messages,
        PURGE_FILE,
        PurgeFile(vector_store_id=key.vector_store_id, file_id=key.file_id),
        tenant_id=key.tenant_id,
        resource_id=key.file_id,
        delay_seconds=delay_seconds,
    )
