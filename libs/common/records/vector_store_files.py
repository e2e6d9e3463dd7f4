"""Files attached to vector stores.

Whoever changes what a vector store would answer bumps its revision first: that locks the store's row, so changes to
one store's files come one after another, and locks are always taken in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    select,
)
from sqlalchemy import (
    delete as delete_rows,
)
from sqlalchemy import (
    insert as insert_row,
)
from sqlalchemy import (
    update as update_rows,
)

from libs.common.errors import not_found
from libs.common.records import vector_stores
from libs.common.records.database import epoch_now
from libs.common.records.files import File
from libs.common.records.paging import Page, PageQuery, read_page
from libs.common.records.tables import vector_store_files

Attributes = Mapping[str, str | float | bool]
Status = Literal["in_progress", "completed", "failed", "cancelled"]

IN_PROGRESS: Final = "in_progress"
NO_ERROR: Final[dict[str, Any]] = {"error_code": None, "error_message": None}
NOT_REINDEXED: Final = {"reindexed_version": 0, "reindexed_chunks": 0, "reindexed_bytes": 0}
MAKING: Final[dict[str, Any]] = {"status": IN_PROGRESS, **NO_ERROR}


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A file in a vector store. `live_version` 0: nothing of it can be found yet."""

    vector_store_id: str
    file_id: str
    tenant_id: str
    filename: str
    status: Status
    error_code: str | None
    error_message: str | None
    attributes: dict[str, str | float | bool]
    chunking: dict[str, Any]
    usage_bytes: int
    live_version: int
    latest_version: int
    job_id: str | None
    file_batch_id: str | None
    replaced_by: str | None
    reindexed_version: int
    reindexed_chunks: int
    reindexed_bytes: int
    created_at: float


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which file, in which of a tenant's vector stores."""

    tenant_id: str
    vector_store_id: str
    file_id: str


@dataclass(frozen=True, slots=True)
class NewAttachment:
    """A file to be put into a vector store, how, and the job that makes it searchable."""

    file: File
    attributes: Attributes
    chunking: Mapping[str, Any]
    job_id: str


_FIND: Final = select(
    *(vector_store_files.c[field.name] for field in fields(AttachedFile)),
).where(*(vector_store_files.c[field.name] == bindparam(field.name) for field in fields(FileKey)))


def attach(
    connection: Connection,
    store_id: str,
    file: File,
    *,
    attributes: Attributes,
    chunking: Mapping[str, Any],
    file_batch_id: str | None = None,
) -> tuple[AttachedFile, bool]:
    """Put a file into a vector store, or make a new version of it there.

    A file that is there already, with the same attributes and chunking, is left as it is unless its making failed: the
    same request may arrive twice.

    Returns:
        The attached file, and whether a job must be submitted to make its `latest_version`.

    Raises:
        PermanentError: NOT_FOUND for the vector store.
    """
    vector_stores.touch(connection, file.tenant_id, [store_id])
    vector_stores.require_stores(connection, file.tenant_id, [store_id])
    key = FileKey(file.tenant_id, store_id, file.id)
    before = find(connection, key)
    wanted: dict[str, Any] = {"attributes": dict(attributes), "chunking": dict(chunking)}
    if before is None:
        _insert(connection, key, file.filename, wanted | {"file_batch_id": file_batch_id})
        return get(connection, key), True
    same = before.attributes == wanted["attributes"] and before.chunking == wanted["chunking"]
    changes: dict[str, Any] = {} if file_batch_id is None else {"file_batch_id": file_batch_id}
    begun = not (same and before.status in (IN_PROGRESS, "completed"))
    if begun:
        changes |= wanted | {"latest_version": before.latest_version + 1, **MAKING}
    if changes:
        connection.execute(update_rows(vector_store_files).where(*is_file(key)).values(**changes))
    return get(connection, key), begun


def attach_new(
    connection: Connection, tenant_id: str, store_id: str, new: Sequence[NewAttachment], *, file_batch_id: str
) -> None:
    """Put files into a vector store that `missing_from` said are not there.

    Their jobs must be submitted by the caller, each for version 1.
    """
    rows = [
        {
            "file_id": each.file.id,
            "filename": each.file.filename,
            "attributes": dict(each.attributes),
            "chunking": dict(each.chunking),
            "job_id": each.job_id,
        }
        for each in new
    ]
    if rows:
        common = {"tenant_id": tenant_id, "vector_store_id": store_id, "file_batch_id": file_batch_id}
        connection.execute(insert_row(vector_store_files).values(**common, **_first_version()), rows)


def missing_from(connection: Connection, tenant_id: str, store_id: str, file_ids: Sequence[str]) -> set[str]:
    """Which of these files are not in the vector store, whose row is then locked until the transaction ends.

    Raises:
        PermanentError: NOT_FOUND for the vector store.
    """
    vector_stores.touch(connection, tenant_id, [store_id])
    vector_stores.require_stores(connection, tenant_id, [store_id])
    columns = vector_store_files.c
    found = select(columns.file_id).where(
        columns.tenant_id == tenant_id, columns.vector_store_id == store_id, columns.file_id.in_(file_ids)
    )
    return set(file_ids).difference(connection.execute(found).scalars())


def set_job(connection: Connection, key: FileKey, job_id: str) -> AttachedFile:
    """Note which job makes the latest version.

    Raises:
        PermanentError: NOT_FOUND.
    """
    connection.execute(update_rows(vector_store_files).where(*is_file(key)).values(job_id=job_id))
    return get(connection, key)


def find(connection: Connection, key: FileKey) -> AttachedFile | None:
    """One attached file, if it is there."""
    row = connection.execute(_FIND, asdict(key)).one_or_none()
    return None if row is None else AttachedFile(*row)


def get(connection: Connection, key: FileKey) -> AttachedFile:
    """One attached file.

    Raises:
        PermanentError: NOT_FOUND, whether the file, the vector store or only their connection is missing or foreign.
    """
    attached = find(connection, key)
    if attached is None:
        raise not_found("file in this vector store", key.file_id)
    return attached


def list_page(
    connection: Connection,
    tenant_id: str,
    store_id: str,
    query: PageQuery,
    *,
    status: Status | None = None,
    file_batch_id: str | None = None,
) -> Page[AttachedFile]:
    """A page of a vector store's files, of one status or batch or of all.

    Raises:
        PermanentError: NOT_FOUND for the vector store, INVALID_CURSOR.
    """
    vector_stores.get(connection, tenant_id, store_id)
    columns = vector_store_files.c
    scope = [columns.tenant_id == tenant_id, columns.vector_store_id == store_id]
    if file_batch_id is not None:
        scope.append(columns.file_batch_id == file_batch_id)
    filters = [] if status is None else [columns.status == status]
    keys = (columns.created_at, columns.file_id)
    page = read_page(connection, select(vector_store_files), keys, query, scope=scope, filters=filters)
    return page.of(lambda row: AttachedFile(**row))


def update_attributes(connection: Connection, key: FileKey, attributes: Attributes) -> AttachedFile:
    """Replace a file's attributes in the record; those on its chunks follow by a job.

    Raises:
        PermanentError: NOT_FOUND.
    """
    vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    connection.execute(
        update_rows(vector_store_files).where(*is_file(key)).values(attributes=dict(attributes), **NOT_REINDEXED)
    )
    return get(connection, key)


def detach(connection: Connection, key: FileKey) -> None:
    """Take a file out of a vector store; from then on it answers no longer.

    Raises:
        PermanentError: NOT_FOUND.
    """
    vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    if connection.execute(delete_rows(vector_store_files).where(*is_file(key))).rowcount == 0:
        raise not_found("file in this vector store", key.file_id)


def _insert(connection: Connection, key: FileKey, filename: str, values: dict[str, Any]) -> None:
    connection.execute(
        insert_row(vector_store_files).values(
            tenant_id=key.tenant_id,
            vector_store_id=key.vector_store_id,
            file_id=key.file_id,
            filename=filename,
            **_first_version(),
            **values,
        )
    )


def _first_version() -> dict[str, Any]:
    return {
        "usage_bytes": 0,
        "live_version": 0,
        "latest_version": 1,
        "created_at": epoch_now(),
        **MAKING,
        **NOT_REINDEXED,
    }


def is_file(key: FileKey) -> tuple[ColumnElement[bool], ...]:
    """The condition for the row of one attached file."""
    columns = vector_store_files.c
    return (
        columns.vector_store_id == key.vector_store_id,
        columns.file_id == key.file_id,
        columns.tenant_id == key.tenant_id,
    )
