"""Queries on the items of conversations; every one names the tenant. Nothing here can read content."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, select

from libs.common.errors import ErrorCode, PermanentError, not_found
from libs.common.records.paging import Page, PageQuery
from libs.common.records.tables import conversation_items as items
from services.conversations import store


@dataclass(frozen=True, slots=True)
class SealedItem:
    """An item as stored. Positions grow along a conversation; one that is not stored yet has none."""

    id: str
    sealed: bytes
    position: int = -1


def append(
    connection: Connection,
    tenant_id: str,
    conversation_id: str,
    new: Sequence[SealedItem],
    *,
    expected: Collection[int] | None = None,
) -> int:
    """Add items at the end, in order; those that are there already are left alone.

    Args:
        expected: the revisions that the writer takes for the newest one; a repeated message may be behind.

    Returns:
        The conversation's revision.

    Raises:
        PermanentError: NOT_FOUND or PRECONDITION_FAILED.
    """
    # Held first, so that two who append at once take different positions.
    row = store.get(connection, tenant_id, conversation_id, lock=True)
    known = _known(connection, tenant_id, conversation_id, [item.id for item in new])
    fresh = [item for item in new if item.id not in known]
    if not fresh:
        return int(row.revision)
    changed = store.change(
        connection, tenant_id, conversation_id, expected=expected, next_position=row.next_position + len(fresh)
    )
    placed = [
        SealedItem(item.id, item.sealed, position) for position, item in enumerate(fresh, start=row.next_position)
    ]
    put(connection, tenant_id, conversation_id, placed)
    return int(changed.revision)


def put(connection: Connection, tenant_id: str, conversation_id: str, placed: Sequence[SealedItem]) -> None:
    """Insert items at their positions."""
    rows = [
        {
            "conversation_id": conversation_id,
            "position": item.position,
            "id": item.id,
            "tenant_id": tenant_id,
            "sealed_item": item.sealed,
        }
        for item in placed
    ]
    if rows:
        connection.execute(insert(items), rows)


def page(connection: Connection, tenant_id: str, conversation_id: str, query: PageQuery) -> Page[SealedItem]:
    """One page of a conversation's items, in the order of their positions.

    Raises:
        PermanentError: INVALID_CURSOR when there is no item `after`.
    """
    wanted = select(items).where(_in(tenant_id, conversation_id))
    if query.after is not None:
        cursor = select(items.c.position).where(_in(tenant_id, conversation_id), items.c.id == query.after)
        position = connection.execute(cursor).scalar_one_or_none()
        if position is None:
            raise unknown_cursor()
        wanted = wanted.where(items.c.position > position if query.order == "asc" else items.c.position < position)
    ordered = wanted.order_by(items.c.position if query.order == "asc" else items.c.position.desc())
    found = _items(connection, ordered.limit(query.limit + 1))
    return Page(found[: query.limit], len(found) > query.limit)


def newest(connection: Connection, tenant_id: str, conversation_id: str, *, first: int, limit: int) -> list[SealedItem]:
    """The last items from position `first` on, at most `limit`, oldest first."""
    wanted = select(items).where(_in(tenant_id, conversation_id), items.c.position >= first)
    return _items(connection, wanted.order_by(items.c.position.desc()).limit(limit))[::-1]


def between(
    connection: Connection, tenant_id: str, conversation_id: str, *, first: int, end: int, limit: int
) -> list[SealedItem]:
    """The first items at positions in [first, end), at most `limit`, oldest first."""
    wanted = select(items).where(_in(tenant_id, conversation_id), items.c.position >= first, items.c.position < end)
    return _items(connection, wanted.order_by(items.c.position).limit(limit))


def count(connection: Connection, tenant_id: str, conversation_id: str, *, first: int, end: int) -> int:
    """How many items have positions in [first, end)."""
    wanted = (_in(tenant_id, conversation_id), items.c.position >= first, items.c.position < end)
    return connection.execute(select(func.count()).select_from(items).where(*wanted)).scalar_one()


def get(connection: Connection, tenant_id: str, conversation_id: str, item_id: str) -> SealedItem:
    """One item.

    Raises:
        PermanentError: NOT_FOUND.
    """
    found = _items(connection, select(items).where(_in(tenant_id, conversation_id), items.c.id == item_id))
    if not found:
        raise not_found("item", item_id)
    return found[0]


def remove(connection: Connection, tenant_id: str, conversation_id: str, item_id: str) -> None:
    """Delete one item.

    Raises:
        PermanentError: NOT_FOUND.
    """
    removed = connection.execute(delete(items).where(_in(tenant_id, conversation_id), items.c.id == item_id))
    if removed.rowcount == 0:
        raise not_found("item", item_id)


def unknown_cursor() -> PermanentError:
    """The error of a page after an item that is not there."""
    return PermanentError(ErrorCode.INVALID_CURSOR, "The cursor is not the id of an item here.", param="after")


def _known(connection: Connection, tenant_id: str, conversation_id: str, ids: Sequence[str]) -> set[str]:
    known = select(items.c.id).where(_in(tenant_id, conversation_id), items.c.id.in_(ids))
    return set(connection.execute(known).scalars())


def _items(connection: Connection, query: Select[Any]) -> list[SealedItem]:
    return [SealedItem(row.id, row.sealed_item, row.position) for row in connection.execute(query)]


def _in(tenant_id: str, conversation_id: str) -> ColumnElement[bool]:
    return and_(items.c.conversation_id == conversation_id, items.c.tenant_id == tenant_id)
