"""Uploaded files: their records. The bytes are in the blob store, under `blob_id`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, bindparam, or_, select
from sqlalchemy import delete as delete_rows

from libs.common.errors import not_found
from libs.common.records import vector_stores
from libs.common.records.database import epoch_now, read_clock
from libs.common.records.inserting import insert_if_absent
from libs.common.records.paging import Page, PageQuery, read_page
from libs.common.records.tables import files, vector_store_files

PROCESSED = "processed"
_BLOB_ID: Final = select(files.c.blob_id).where(
    files.c.id == bindparam("file_id"), files.c.tenant_id == bindparam("of_tenant_id")
)


@dataclass(frozen=True, slots=True)
class File:
    """What was uploaded; times are Unix seconds, `sha256` is of the plaintext."""

    id: str
    tenant_id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    blob_id: str
    status: str
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose bytes are stored; `expires_after_seconds` counts from now."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    blob_id: str
    expires_after_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """What a deleted file leaves to be cleared away: its bytes, and its chunks in these vector stores."""

    blob_id: str
    vector_store_ids: tuple[str, ...]


def insert(connection: Connection, tenant_id: str, new: NewFile) -> File:
    """Record an uploaded file, or find the record that an earlier run of the same request made: then with its blob."""
    now = read_clock(connection)
    expires_at = None if new.expires_after_seconds is None else now + new.expires_after_seconds
    row: dict[str, Any] = {
        "id": new.id,
        "tenant_id": tenant_id,
        "filename": new.filename,
        "purpose": new.purpose,
        "bytes": new.bytes,
        "sha256": new.sha256,
        "blob_id": new.blob_id,
        "status": PROCESSED,
        "created_at": now,
        "expires_at": expires_at,
    }
    if insert_if_absent(connection, files, row):
        return File(**row)
    mine = (files.c.id == new.id, files.c.tenant_id == tenant_id)
    return File(**connection.execute(select(files).where(*mine)).mappings().one())


def get(connection: Connection, tenant_id: str, file_id: str, *, lock: bool = False) -> File:
    """One file; with `lock`, it stays until the end of the transaction.

    Raises:
        PermanentError: NOT_FOUND, for a missing, foreign or expired file alike.
    """
    found = select(files).where(files.c.id == file_id, *_visible(tenant_id))
    if lock:
        found = found.with_for_update(read=True, key_share=True)
    row = connection.execute(found).mappings().one_or_none()
    if row is None:
        raise not_found("file", file_id)
    return File(**row)


def get_many(connection: Connection, tenant_id: str, file_ids: Sequence[str]) -> dict[str, File]:
    """Files by id, which stay until the end of the transaction.

    Raises:
        PermanentError: NOT_FOUND, for one that is missing, foreign or expired.
    """
    # In one order for everybody, so that two transactions never wait for each other.
    found = select(files).where(files.c.id.in_(file_ids), *_visible(tenant_id)).order_by(files.c.id)
    rows = connection.execute(found.with_for_update(read=True, key_share=True)).mappings()
    by_id = {row["id"]: File(**row) for row in rows}
    for file_id in file_ids:
        if file_id not in by_id:
            raise not_found("file", file_id)
    return by_id


def find_many(connection: Connection, tenant_id: str, file_ids: Sequence[str]) -> list[File]:
    """Those of these files that are there and the tenant's, in no order."""
    found = select(files).where(files.c.id.in_(file_ids), *_visible(tenant_id))
    return [File(**row) for row in connection.execute(found).mappings()]


def blob_id_of(connection: Connection, tenant_id: str, file_id: str) -> str:
    """Where the bytes of a file are, expired or not; the file must be there."""
    blob_id: str = connection.execute(_BLOB_ID, {"file_id": file_id, "of_tenant_id": tenant_id}).scalar_one()
    return blob_id


def list_page(connection: Connection, tenant_id: str, query: PageQuery, *, purpose: str | None = None) -> Page[File]:
    """A page of a tenant's files, of one purpose or of all.

    Raises:
        PermanentError: INVALID_CURSOR.
    """
    filters = [] if purpose is None else [files.c.purpose == purpose]
    keys = (files.c.created_at, files.c.id)
    page = read_page(connection, select(files), keys, query, scope=_visible(tenant_id), filters=filters)
    return page.of(lambda row: File(**row))


def expired(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """(tenant id, file id) of files whose time is over, oldest first."""
    over = select(files.c.tenant_id, files.c.id).where(files.c.expires_at <= epoch_now())
    return [(row.tenant_id, row.id) for row in connection.execute(over.order_by(files.c.expires_at).limit(limit))]


def delete(connection: Connection, tenant_id: str, file_id: str) -> DeletedFile:
    """Remove a file's record and detach it from every vector store, so that it answers no longer.

    Raises:
        PermanentError: NOT_FOUND.
    """
    # Everybody locks a file before a vector store and that before what is attached, or two could wait for each other.
    found = select(files.c.blob_id).where(files.c.id == file_id, files.c.tenant_id == tenant_id).with_for_update()
    blob_id = connection.execute(found).scalar_one_or_none()
    if blob_id is None:
        raise not_found("file", file_id)
    attached = (vector_store_files.c.file_id == file_id, vector_store_files.c.tenant_id == tenant_id)
    store_ids = connection.execute(select(vector_store_files.c.vector_store_id).where(*attached)).scalars().all()
    vector_stores.bump_revision(connection, tenant_id, store_ids)
    connection.execute(delete_rows(vector_store_files).where(*attached))
    connection.execute(delete_rows(files).where(files.c.id == file_id, files.c.tenant_id == tenant_id))
    return DeletedFile(blob_id, tuple(store_ids))


def _visible(tenant_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return files.c.tenant_id == tenant_id, or_(files.c.expires_at.is_(None), files.c.expires_at > epoch_now())
