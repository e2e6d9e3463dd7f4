"""Building a vector store anew in another place, while the one it has answers.

Every file has a mark: the live version that was built anew. The store moves when each mark is that of today.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select, update

from libs.common.contracts.ingest import Place
from libs.common.records import vector_store_files as attached_files
from libs.common.records import vector_stores
from libs.common.records.tables import vector_store_files
from libs.common.records.tables import vector_stores as stores_table
from libs.common.records.vector_store_files import NOT_REINDEXED, Attributes, FileKey, is_file


@dataclass(frozen=True, slots=True)
class Built:
    """A version of a file as it was built anew, with the attributes that its chunks have there."""

    version: int
    attributes: Attributes
    chunks: int
    usage_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Files that answer, how many of them are built anew, and the chunks of these."""

    total: int
    done: int
    chunks: int


def begin(connection: Connection, tenant_id: str, store_id: str, job_id: str) -> None:
    """Let a job build a vector store anew, from the first file on."""
    _set_job(connection, tenant_id, store_id, job_id)
    forget(connection, tenant_id, store_id)


def forget(connection: Connection, tenant_id: str, store_id: str) -> None:
    """Nothing counts as built anew any more."""
    connection.execute(update(vector_store_files).where(*_in(tenant_id, store_id)).values(NOT_REINDEXED))


def give_up(connection: Connection, tenant_id: str, job_id: str) -> list[str]:
    """A cancelled job builds nothing any more.

    Returns:
        The vector store that it was building, if any: some chunks are stored where they do not belong.
    """
    columns = stores_table.c
    given_up = connection.execute(
        update(stores_table)
        .where(columns.tenant_id == tenant_id, columns.reindex_job_id == job_id)
        .values(reindex_job_id=None)
        .returning(columns.id)
    )
    return list(given_up.scalars())


def finish(connection: Connection, tenant_id: str, store_id: str) -> None:
    """A vector store is where it was to go, and nowhere else."""
    _set_job(connection, tenant_id, store_id, None)


def progress(connection: Connection, tenant_id: str, store_id: str) -> Progress:
    """How far the reindex is."""
    columns = vector_store_files.c
    done = columns.reindexed_version == columns.live_version
    live = (*_in(tenant_id, store_id), columns.live_version > 0)
    total = connection.execute(select(func.count()).where(*live)).scalar_one()
    marked = select(func.count(), func.coalesce(func.sum(columns.reindexed_chunks), 0)).where(*live, done)
    count, chunks = connection.execute(marked).one()
    return Progress(total, count, int(chunks))


def unbuilt(connection: Connection, tenant_id: str, store_id: str, *, limit: int) -> list[str]:
    """Files that answer and are still to be built anew, as they answer now."""
    columns = vector_store_files.c
    todo = (columns.live_version > 0, columns.reindexed_version != columns.live_version)
    found = select(columns.file_id).where(*_in(tenant_id, store_id), *todo).order_by(columns.file_id).limit(limit)
    return list(connection.execute(found).scalars())


def mark(connection: Connection, key: FileKey, built: Built) -> bool:
    """Note that a file is built anew.

    Returns:
        False if it answers otherwise by now, or not at all.
    """
    now = attached_files.find(connection, key)
    if now is None or (now.live_version, now.attributes) != (built.version, dict(built.attributes)):
        return False
    marks = {
        "reindexed_version": built.version,
        "reindexed_chunks": built.chunks,
        "reindexed_bytes": built.usage_bytes,
    }
    connection.execute(update(vector_store_files).where(*is_file(key)).values(marks))
    return True


def switch(connection: Connection, tenant_id: str, store_id: str, goal: Place) -> bool:
    """Let the place that was built anew answer.

    Returns:
        False if a file is not there yet as it answers now.
    """
    # Locks the store: no file of it goes live or changes before the commit.
    vector_stores.bump_revision(connection, tenant_id, [store_id])
    if unbuilt(connection, tenant_id, store_id, limit=1):
        return False
    moved = {"embedding_model": goal.embedding_model, "generation": goal.generation}
    of_store = (stores_table.c.tenant_id == tenant_id, stores_table.c.id == store_id)
    connection.execute(update(stores_table).where(*of_store).values(moved))
    columns = vector_store_files.c
    live = (*_in(tenant_id, store_id), columns.live_version > 0)
    connection.execute(update(vector_store_files).where(*live).values(usage_bytes=columns.reindexed_bytes))
    forget(connection, tenant_id, store_id)
    return True


def _set_job(connection: Connection, tenant_id: str, store_id: str, job_id: str | None) -> None:
    of_store = (stores_table.c.tenant_id == tenant_id, stores_table.c.id == store_id)
    connection.execute(update(stores_table).where(*of_store).values(reindex_job_id=job_id))


def _in(tenant_id: str, store_id: str) -> tuple[ColumnElement[bool], ...]:
    columns = vector_store_files.c
    return columns.tenant_id == tenant_id, columns.vector_store_id == store_id
