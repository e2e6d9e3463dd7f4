"""Versions of attached files: which one answers, and what becomes of the one that is being made."""

from dataclasses import asdict, fields
from typing import Any, Final

from sqlalchemy import Connection, bindparam, or_, select
from sqlalchemy import update as update_rows

from libs.common.contracts.ingest import Place
from libs.common.errors import ErrorCode, RetryableError
from libs.common.records import vector_stores
from libs.common.records.tables import jobs, vector_store_files
from libs.common.records.vector_store_files import (
    IN_PROGRESS,
    MAKING,
    NO_ERROR,
    AttachedFile,
    Attributes,
    FileKey,
    Status,
    find,
)

_GO_LIVE: Final = (
    update_rows(vector_store_files)
    .where(*(vector_store_files.c[field.name] == bindparam(f"of_{field.name}") for field in fields(FileKey)))
    .values(
        live_version=bindparam("new_version"), status="completed", usage_bytes=bindparam("new_usage_bytes"), **NO_ERROR
    )
)
_EARLIER_WORK: Final = (
    select(jobs.c.id)
    .where(jobs.c.resource_id == bindparam("file_id"), or_(jobs.c.id != bindparam("of_job_id"), jobs.c.attempt > 1))
    .limit(1)
)


class AttributesChangedError(RetryableError):
    """The attributes are others than those that the stored chunks have."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.SERVER_ERROR, "The file's attributes changed meanwhile; they are set again.")


class PlaceChangedError(RetryableError):
    """The vector store's chunks are elsewhere by now than where these were stored."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.SERVER_ERROR, "The vector store was built anew meanwhile; the file follows.")


def go_live(
    connection: Connection, key: FileKey, *, version: int, usage_bytes: int, attributes: Attributes, place: Place
) -> bool:
    """Let `version`, whose chunks are stored at this place with these attributes, answer from now on.

    Returns:
        Whether it does; not if the file was detached, or the version cancelled or overtaken meanwhile.

    Raises:
        AttributesChangedError: since the chunks were stored.
        PlaceChangedError: likewise.
    """
    vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    attached = find(connection, key)
    if attached is None or attached.latest_version != version or attached.status != IN_PROGRESS:
        return False
    if vector_stores.place_of(connection, key.tenant_id, key.vector_store_id) != place:
        raise PlaceChangedError
    _require_same(attached, attributes)
    values = {"new_version": version, "new_usage_bytes": usage_bytes}
    connection.execute(_GO_LIVE, {f"of_{name}": value for name, value in asdict(key).items()} | values)
    return True


def is_untouched(connection: Connection, attached: AttachedFile) -> bool:
    """Whether no chunk of the file can be stored: its first version is in the hands of the first job, in its first try.

    Jobs stay in the ledger, so one of an earlier attachment shows.
    """
    if attached.latest_version > 1 or attached.live_version:
        return False
    if attached.job_id is None:
        return False
    of = {"file_id": attached.file_id, "of_job_id": attached.job_id}
    return connection.execute(_EARLIER_WORK, of).one_or_none() is None


def confirm_attributes(connection: Connection, key: FileKey, attributes: Attributes) -> None:
    """Note that the chunks now have these attributes.

    Raises:
        AttributesChangedError: since.
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
        raise AttributesChangedError
