"""Batches of files that were attached to a vector store together; a file belongs to the last batch that named it."""

from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy import update as update_rows

from libs.common.errors import not_found
from libs.common.records import vector_stores
from libs.common.records.database import epoch_now
from libs.common.records.inserting import insert_if_absent
from libs.common.records.tables import file_batches, vector_store_files
from libs.common.records.vector_store_files import IN_PROGRESS
from libs.common.records.vector_stores import FileCounts


@dataclass(frozen=True, slots=True)
class FileBatch:
    """One batch; `created_at` is in Unix seconds."""

    id: str
    tenant_id: str
    vector_store_id: str
    cancelled: bool
    created_at: float


def create(connection: Connection, tenant_id: str, store_id: str, batch_id: str) -> None:
    """Record a batch, still without files, unless an earlier run of the same request did.

    Raises:
        PermanentError: NOT_FOUND for the vector store.
    """
    vector_stores.touch(connection, tenant_id, [store_id])
    vector_stores.require_stores(connection, tenant_id, [store_id])
    row = {"id": batch_id, "tenant_id": tenant_id, "vector_store_id": store_id, "cancelled": False}
    insert_if_absent(connection, file_batches, {"created_at": epoch_now(), **row})


def exists(connection: Connection, tenant_id: str, batch_id: str) -> bool:
    """Whether the batch is recorded."""
    found = select(file_batches.c.id).where(file_batches.c.id == batch_id, file_batches.c.tenant_id == tenant_id)
    return connection.execute(found).one_or_none() is not None


def get(connection: Connection, tenant_id: str, store_id: str, batch_id: str) -> FileBatch:
    """One batch of a vector store.

    Raises:
        PermanentError: NOT_FOUND.
    """
    columns = file_batches.c
    row = connection.execute(
        select(file_batches).where(
            columns.id == batch_id, columns.tenant_id == tenant_id, columns.vector_store_id == store_id
        )
    ).one_or_none()
    if row is None:
        raise not_found("file batch", batch_id)
    return FileBatch(*row)


def counts(connection: Connection, tenant_id: str, batch_id: str) -> FileCounts:
    """The batch's files by status."""
    group = vector_store_files.c.file_batch_id
    return vector_stores.grouped_counts(connection, tenant_id, group, [batch_id])[batch_id]


def cancel(connection: Connection, batch: FileBatch) -> list[str]:
    """Mark a batch as cancelled.

    Returns:
        The jobs that still make files of it searchable, to be cancelled by the caller.
    """
    connection.execute(update_rows(file_batches).where(file_batches.c.id == batch.id).values(cancelled=True))
    columns = vector_store_files.c
    running = select(columns.job_id).where(
        columns.tenant_id == batch.tenant_id,
        columns.file_batch_id == batch.id,
        columns.status == IN_PROGRESS,
        columns.job_id.is_not(None),
    )
    return list(connection.execute(running).scalars())
