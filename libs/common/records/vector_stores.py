"""Vector stores: their records, what they hold in sum, and which versions of their files may answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    func,
    not_,
    or_,
    select,
)
from sqlalchemy import (
    delete as delete_rows,
)
from sqlalchemy import (
    update as update_rows,
)

from libs.common.contracts.ingest import Place
from libs.common.errors import not_found
from libs.common.records.database import epoch_now
from libs.common.records.inserting import insert_if_absent
from libs.common.records.paging import Page, PageQuery, read_page
from libs.common.records.tables import vector_store_files, vector_stores

_DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A set of files to search. `revision` grows with every change of what it would answer; times are Unix seconds."""

    id: str
    tenant_id: str
    name: str
    metadata: dict[str, str]
    instructions: str | None
    expires_after: dict[str, Any] | None
    expires_at: float | None
    revision: int
    created_at: float
    last_active_at: float
    embedding_model: str
    generation: int
    reindex_job_id: str | None
    expired: bool

    @property
    def place(self) -> Place:
        """Where its chunks are."""
        return Place(self.embedding_model, self.generation)


@dataclass(frozen=True, slots=True)
class FileCounts:
    """The files of a vector store or batch by status, and the bytes that their chunks take."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    usage_bytes: int = 0

    @property
    def total(self) -> int:
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class LiveFile:
    """The version of a file whose chunks may answer."""

    version: int
    filename: str


def create(
    connection: Connection,
    tenant_id: str,
    *,
    store_id: str,
    name: str,
    metadata: Mapping[str, str],
    embedding_model: str,
    instructions: str | None = None,
    expires_after_days: int | None = None,
) -> bool:
    """Record a new, empty vector store; it expires so many days after it was last used.

    Returns:
        False if an earlier run of the same request made it.
    """
    now = epoch_now()
    row = {
        "id": store_id,
        "tenant_id": tenant_id,
        "name": name,
        "metadata": dict(metadata),
        "instructions": instructions or None,
        "revision": 1,
        "created_at": now,
        "last_active_at": now,
        "embedding_model": embedding_model,
        "generation": 1,
        **_expiry(expires_after_days, now),
    }
    return insert_if_absent(connection, vector_stores, row)


def get(connection: Connection, tenant_id: str, store_id: str) -> VectorStore:
    """One vector store, expired ones included.

    Raises:
        PermanentError: NOT_FOUND, for a missing one and a foreign one alike.
    """
    store = find(connection, tenant_id, store_id)
    if store is None:
        raise not_found("vector store", store_id)
    return store


def find(connection: Connection, tenant_id: str, store_id: str) -> VectorStore | None:
    """One vector store, expired ones included, if it is there."""
    row = connection.execute(_rows().where(*_is(tenant_id, store_id))).mappings().one_or_none()
    return None if row is None else VectorStore(**row)


_PLACE: Final = select(vector_stores.c.embedding_model, vector_stores.c.generation).where(
    vector_stores.c.tenant_id == bindparam("of_tenant_id"), vector_stores.c.id == bindparam("store_id")
)


def place_of(connection: Connection, tenant_id: str, store_id: str) -> Place | None:
    """Where the chunks of a vector store are; None if there is no such store."""
    row = connection.execute(_PLACE, {"of_tenant_id": tenant_id, "store_id": store_id}).one_or_none()
    return None if row is None else Place(*row)


def list_page(connection: Connection, tenant_id: str, query: PageQuery) -> Page[VectorStore]:
    """A page of a tenant's vector stores.

    Raises:
        PermanentError: INVALID_CURSOR.
    """
    keys = (vector_stores.c.created_at, vector_stores.c.id)
    page = read_page(connection, _rows(), keys, query, scope=[vector_stores.c.tenant_id == tenant_id])
    return page.of(lambda row: VectorStore(**row))


def update(
    connection: Connection,
    tenant_id: str,
    store_id: str,
    *,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    instructions: str | None = None,
    expires_after_days: int | None = None,
) -> VectorStore:
    """Change what is given; 0 days means never to expire, and empty instructions are none.

    Raises:
        PermanentError: NOT_FOUND.
    """
    changes: dict[str, Any] = {"last_active_at": epoch_now()}
    if name is not None:
        changes["name"] = name
    if instructions is not None:
        changes["instructions"] = instructions or None
    if changes.keys() & {"name", "instructions"}:  # both are told to the model
        changes["revision"] = vector_stores.c.revision + 1
    if metadata is not None:
        changes["metadata"] = dict(metadata)
    if expires_after_days is not None:
        changes |= _expiry(expires_after_days or None, epoch_now())
    connection.execute(update_rows(vector_stores).where(*_is(tenant_id, store_id)).values(**changes))
    return get(connection, tenant_id, store_id)


def delete(connection: Connection, tenant_id: str, store_id: str) -> None:
    """Remove a vector store with what is attached to it; the files themselves stay.

    Raises:
        PermanentError: NOT_FOUND.
    """
    if connection.execute(delete_rows(vector_stores).where(*_is(tenant_id, store_id))).rowcount == 0:
        raise not_found("vector store", store_id)


def require_stores(connection: Connection, tenant_id: str, store_ids: Iterable[str]) -> list[VectorStore]:
    """The vector stores that are to be searched or added to, in the order asked for.

    Raises:
        PermanentError: NOT_FOUND, for a missing, foreign or expired one alike.
    """
    wanted = list(dict.fromkeys(store_ids))
    rows = connection.execute(
        _rows().where(vector_stores.c.tenant_id == tenant_id, vector_stores.c.id.in_(wanted))
    ).mappings()
    found = {store.id: store for row in rows if not (store := VectorStore(**row)).expired}
    for store_id in wanted:
        if store_id not in found:
            raise not_found("vector store", store_id)
    return [found[store_id] for store_id in wanted]


def revisions(connection: Connection, tenant_id: str, store_ids: Iterable[str]) -> dict[str, int]:
    """The revisions of vector stores that are to be searched, by id, as cheaply as they can be had.

    Raises:
        PermanentError: NOT_FOUND, for a missing, foreign or expired one alike.
    """
    wanted = list(dict.fromkeys(store_ids))
    if not wanted:
        return {}
    named = {f"wanted_{number}": store_id for number, store_id in enumerate(wanted)}
    rows = connection.execute(_revisions_of(len(wanted)), {"tenant": tenant_id, **named})
    found: dict[str, int] = {row.id: row.revision for row in rows}
    for store_id in wanted:
        if store_id not in found:
            raise not_found("vector store", store_id)
    return found


def touch(connection: Connection, tenant_id: str, store_ids: Sequence[str]) -> None:
    """Note that these were used, which puts off their expiry; a row is then locked until the transaction ends."""
    now = epoch_now()
    connection.execute(
        update_rows(vector_stores)
        .where(vector_stores.c.tenant_id == tenant_id, vector_stores.c.id.in_(store_ids), not_(_expired()))
        .values(last_active_at=now, expires_at=now + (vector_stores.c.expires_at - vector_stores.c.last_active_at))
    )


_BUMP: Final = (
    update_rows(vector_stores)
    .where(vector_stores.c.tenant_id == bindparam("of_tenant_id"), vector_stores.c.id == bindparam("store_id"))
    .values(revision=vector_stores.c.revision + 1)
)


def bump_revision(connection: Connection, tenant_id: str, store_ids: Iterable[str]) -> None:
    """Note that these would now answer otherwise; their rows are then locked until the transaction ends."""
    # One at a time and in order, so that two transactions never wait for each other.
    for store_id in sorted(store_ids):
        connection.execute(_BUMP, {"of_tenant_id": tenant_id, "store_id": store_id})


def counts(connection: Connection, tenant_id: str, store_ids: Sequence[str]) -> dict[str, FileCounts]:
    """The counts of each vector store, in one query."""
    return grouped_counts(connection, tenant_id, vector_store_files.c.vector_store_id, store_ids)


def grouped_counts(
    connection: Connection, tenant_id: str, group: ColumnElement[str], ids: Sequence[str]
) -> dict[str, FileCounts]:
    """The counts of attached files by a column, such as the vector store's or the file batch's id, for these ids."""
    status = vector_store_files.c.status
    rows = connection.execute(
        select(group, status, func.count(), func.sum(vector_store_files.c.usage_bytes))
        .where(vector_store_files.c.tenant_id == tenant_id, group.in_(ids))
        .group_by(group, status)
    ).all()
    found: dict[str, dict[str, int]] = {identifier: {"usage_bytes": 0} for identifier in ids}
    for identifier, state, count, usage_bytes in rows:
        found[identifier][state] = count
        found[identifier]["usage_bytes"] += int(usage_bytes)
    return {identifier: FileCounts(**fields) for identifier, fields in found.items()}


def live_files(
    connection: Connection, tenant_id: str, store_ids: Sequence[str], file_ids: Sequence[str] | None = None
) -> dict[tuple[str, str], LiveFile]:
    """What may answer, by vector store and file; a retrieved chunk of any other version must be dropped.

    Args:
        file_ids: the files asked about; all when None.
    """
    attached = vector_store_files.c
    query = select(attached.vector_store_id, attached.file_id, attached.live_version, attached.filename).where(
        attached.tenant_id == tenant_id, attached.vector_store_id.in_(store_ids), attached.live_version > 0
    )
    if file_ids is not None:
        query = query.where(attached.file_id.in_(file_ids))
    rows = connection.execute(query)
    return {(store_id, file_id): LiveFile(version, filename) for store_id, file_id, version, filename in rows}


def _rows() -> Select[Any]:
    return select(vector_stores, _expired().label("expired"))


def _expired() -> ColumnElement[bool]:
    # Both parts, so that it is never NULL.
    return and_(vector_stores.c.expires_at.is_not(None), vector_stores.c.expires_at <= epoch_now())


# Kept: making a statement, and fitting a list into one, costs more than running this one.
@lru_cache(maxsize=64)
def _revisions_of(count: int) -> Select[tuple[str, int]]:
    wanted = [vector_stores.c.id == bindparam(f"wanted_{number}") for number in range(count)]
    return select(vector_stores.c.id, vector_stores.c.revision).where(
        vector_stores.c.tenant_id == bindparam("tenant"), or_(*wanted), not_(_expired())
    )


def _is(tenant_id: str, store_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return vector_stores.c.id == store_id, vector_stores.c.tenant_id == tenant_id


def _expiry(days: int | None, now: ColumnElement[float]) -> dict[str, Any]:
    if days is None:
        return {"expires_after": None, "expires_at": None}
    return {"expires_after": {"anchor": "last_active_at", "days": days}, "expires_at": now + days * _DAY_SECONDS}
