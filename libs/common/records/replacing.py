"""Files that make way for others in a vector store, and files whose content is there already."""

from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, bindparam, select
from sqlalchemy import delete as delete_rows
from sqlalchemy import update as update_rows

from libs.common.errors import not_found
from libs.common.records import vector_stores
from libs.common.records.tables import files, vector_store_files
from libs.common.records.vector_store_files import AttachedFile, FileKey, is_file


@dataclass(frozen=True, slots=True)
class Twin:
    """Another file of the same vector store that has the same bytes, name and chunking, and answers."""

    file_id: str
    version: int
    usage_bytes: int


def mark(connection: Connection, key: FileKey, replaced_id: str) -> None:
    """Let a file make way for that of `key`, as soon as that one can be found.

    Raises:
        PermanentError: NOT_FOUND, naming `replaces`.
    """
    of_replaced = is_file(replace(key, file_id=replaced_id))
    marked = connection.execute(
        update_rows(vector_store_files).where(*of_replaced).values(replaced_by=key.file_id)
    ).rowcount
    if marked == 0:
        raise not_found("file in this vector store", replaced_id, param="replaces")


def forget(connection: Connection, key: FileKey) -> None:
    """Let files stay that were to make way for that of `key`."""
    columns = vector_store_files.c
    connection.execute(
        update_rows(vector_store_files)
        .where(
            columns.tenant_id == key.tenant_id,
            columns.vector_store_id == key.vector_store_id,
            columns.replaced_by == key.file_id,
        )
        .values(replaced_by=None)
    )


_REPLACED: Final = select(vector_store_files.c.file_id).where(
    vector_store_files.c.tenant_id == bindparam("of_tenant_id"),
    vector_store_files.c.vector_store_id == bindparam("store_id"),
    vector_store_files.c.replaced_by == bindparam("by"),
)


def take_places(connection: Connection, key: FileKey) -> list[FileKey]:
    """Detach what makes way for a file that can be found now, and what was to make way for that in turn.

    Returns:
        The detached files, whose chunks are to be purged.
    """
    gone: list[FileKey] = []
    by = [key]
    while by:
        of = {"of_tenant_id": key.tenant_id, "store_id": key.vector_store_id, "by": by.pop().file_id}
        found = [replace(key, file_id=file_id) for file_id in connection.execute(_REPLACED, of).scalars()]
        fresh = [each for each in found if each != key and each not in gone]
        gone += fresh
        by += fresh
    if gone:
        vector_stores.bump_revision(connection, key.tenant_id, [key.vector_store_id])
    for each in gone:
        connection.execute(delete_rows(vector_store_files).where(*is_file(each)))
    return gone


_ALIKE: Final = (
    select(
        vector_store_files.c.file_id,
        vector_store_files.c.live_version,
        vector_store_files.c.usage_bytes,
        vector_store_files.c.chunking,
    )
    .join(files, files.c.id == vector_store_files.c.file_id)
    .where(
        files.c.tenant_id == bindparam("of_tenant_id"),
        files.c.sha256
        == select(files.c.sha256).where(files.c.id == bindparam("of_file_id")).correlate(None).scalar_subquery(),
        vector_store_files.c.vector_store_id == bindparam("store_id"),
        vector_store_files.c.filename == bindparam("of_filename"),
        vector_store_files.c.file_id != bindparam("of_file_id"),
        # Only then the row's chunking is that of the live version.
        vector_store_files.c.status == "completed",
        vector_store_files.c.live_version > 0,
    )
)


def twin(connection: Connection, attached: AttachedFile) -> Twin | None:
    """A file whose chunks can be copied instead of being made: the name counts, for titles come from it."""
    of = {
        "of_tenant_id": attached.tenant_id,
        "store_id": attached.vector_store_id,
        "of_file_id": attached.file_id,
        "of_filename": attached.filename,
    }
    for file_id, version, usage_bytes, chunking in connection.execute(_ALIKE, of):
        if chunking == attached.chunking:
            return Twin(file_id, version, usage_bytes)
    return None
