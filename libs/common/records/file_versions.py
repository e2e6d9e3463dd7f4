"""Versions of attached files: which one answers, and what becomes of the one that is being made."""

from typing import Any

from sqlalchemy import Connection
from sqlalchemy import update as update_rows

from libs.common.errors import ErrorCode, RetryableError
from libs.common.records import vector_stores
from libs.common.records.tables import vector_store_files
from libs.common.records.vector_store_files import (
    IN_PROGRESS,
    MAKING,
    NO_ERROR,
    AttachedFile,
    Attributes,
    FileKey,
    Status,
    find,
    is_file,
)


def go_live(connection: Connection, key: FileKey, *, version: int, usage_bytes: int, attributes: Attributes) -> bool:
    """Let `version`, whose chunks are stored with these attributes, answer from now on.

    Returns:
        Whether it does; not if the file was detached, or the version cancelled or overtaken meanwhile.

    Raises:
        RetryableError: the attributes have changed since the chunks were stored.
    """
    vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    attached = find(connection, key)
    if attached is None or attached.latest_version != version or attached.status != IN_PROGRESS:
        return False
    _require_same(attached, attributes)
    values = {"live_version": version, "status": "completed", "usage_bytes": usage_bytes, **NO_ERROR}
    connection.execute(update_rows(vector_store_files).where(*is_file(key)).values(**values))
    return True


def confirm_attributes(connection: Connection, key: FileKey, attributes: Attributes) -> None:
    """Note that the chunks now have these attributes.

    Raises:
        RetryableError: the record's have changed since.
    """
    vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    attached = find(connection, key)
    if attached is not None:
        _require_same(attached, attributes)


def cancel(connection: Connection, tenant_id: str, job_id: str) -> list[FileKey]:
    """Give up the version that a cancelled job was making; one that was live before stays so.

    Returns:
        The file that was being made, if any: some of its chunks may be stored.
    """
    return _move(connection, tenant_id, job_id, IN_PROGRESS, {"status": "cancelled"})


def resume(connection: Connection, tenant_id: str, job_id: str) -> None:
    """A failed job is run again: so is the making of its version."""
    _move(connection, tenant_id, job_id, "failed", MAKING)


def _move(connection: Connection, tenant_id: str, job_id: str, status: Status, values: dict[str, Any]) -> list[FileKey]:
    columns = vector_store_files.c
    moved = connection.execute(
        update_rows(vector_store_files)
        .where(columns.tenant_id == tenant_id, columns.job_id == job_id, columns.status == status)
        .values(**values)
        .returning(columns.tenant_id, columns.vector_store_id, columns.file_id)
    )
    return [FileKey(*row) for row in moved]


def _require_same(attached: AttachedFile, attributes: Attributes) -> None:
    if attached.attributes != dict(attributes):
        raise RetryableError(ErrorCode.SERVER_ERROR, "The file's attributes changed meanwhile; they are set again.")
