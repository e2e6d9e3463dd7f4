"""Queries on conversations, their items and turns; every one names the tenant. Nothing here can read content."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Row, Table, and_, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from libs.common.errors import ErrorCode, PermanentError, RetryableError, not_found
from libs.common.records.database import epoch_now
from libs.common.records.paging import Page, PageQuery
from libs.common.records.tables import conversation_items as items
from libs.common.records.tables import conversations, responses


@dataclass(frozen=True, slots=True)
class SealedItem:
    """An item as stored."""

    id: str
    sealed: bytes


def create(
    connection: Connection,
    tenant_id: str,
    conversation_id: str,
    *,
    wrapped_key: bytes,
    sealed_metadata: bytes,
    created_at: float,
) -> bool:
    """Record a conversation; False, and nothing is written, if there is one of this id: a repeated message."""
    row = {
        "id": conversation_id,
        "tenant_id": tenant_id,
        "wrapped_key": wrapped_key,
        "sealed_metadata": sealed_metadata,
        "next_position": 0,
        "turn_token": 0,
        "created_at": created_at,
    }
    inserted = connection.execute(inserting(connection, conversations, "id").returning(conversations.c.id), row)
    return inserted.one_or_none() is not None


def get(connection: Connection, tenant_id: str, conversation_id: str) -> Row[Any]:
    """One conversation's row.

    Raises:
        PermanentError: NOT_FOUND, for a missing conversation and a foreign one alike.
    """
    row = connection.execute(select(conversations).where(_is(tenant_id, conversation_id))).one_or_none()
    if row is None:
        raise not_found("conversation", conversation_id)
    return row


def set_metadata(connection: Connection, tenant_id: str, conversation_id: str, sealed_metadata: bytes) -> None:
    """Replace a conversation's metadata."""
    connection.execute(
        update(conversations).where(_is(tenant_id, conversation_id)).values(sealed_metadata=sealed_metadata)
    )


def remove(connection: Connection, tenant_id: str, conversation_id: str) -> None:
    """Destroy a conversation's key, and with it every item; its responses, which say the same again, go as well.

    Raises:
        PermanentError: NOT_FOUND.
    """
    # The conversation goes first: a turn that is being closed holds its row until its response can be seen below.
    removed = connection.execute(delete(conversations).where(_is(tenant_id, conversation_id)))
    if removed.rowcount == 0:
        raise not_found("conversation", conversation_id)
    connection.execute(
        delete(responses).where(responses.c.tenant_id == tenant_id, responses.c.conversation_id == conversation_id)
    )


def append(connection: Connection, tenant_id: str, conversation_id: str, new: Sequence[SealedItem]) -> None:
    """Append items in order, all or none; those already there are left alone.

    Raises:
        PermanentError: NOT_FOUND.
    """
    # The update comes first: it locks the row, so that two who append at once take different positions.
    end = connection.execute(
        update(conversations)
        .where(_is(tenant_id, conversation_id))
        .values(next_position=conversations.c.next_position + len(new))
        .returning(conversations.c.next_position)
    ).scalar_one_or_none()
    if end is None:
        raise not_found("conversation", conversation_id)
    rows = [
        {
            "conversation_id": conversation_id,
            "position": position,
            "id": item.id,
            "tenant_id": tenant_id,
            "sealed_item": item.sealed,
        }
        for position, item in enumerate(new, start=end - len(new))
    ]
    if rows:
        connection.execute(inserting(connection, items, "conversation_id", "id"), rows)


def page(connection: Connection, tenant_id: str, conversation_id: str, query: PageQuery) -> Page[SealedItem]:
    """One page of a conversation's items, in the order of their positions.

    Raises:
        PermanentError: INVALID_CURSOR when there is no item `after`.
    """
    wanted = select(items.c.id, items.c.sealed_item).where(_in(tenant_id, conversation_id))
    if query.after is not None:
        cursor = select(items.c.position).where(_in(tenant_id, conversation_id), items.c.id == query.after)
        position = connection.execute(cursor).scalar_one_or_none()
        if position is None:
            raise unknown_cursor()
        wanted = wanted.where(items.c.position > position if query.order == "asc" else items.c.position < position)
    ordered = wanted.order_by(items.c.position if query.order == "asc" else items.c.position.desc())
    found = [SealedItem(row.id, row.sealed_item) for row in connection.execute(ordered.limit(query.limit + 1))]
    return Page(found[: query.limit], len(found) > query.limit)


def unknown_cursor() -> PermanentError:
    """The error of a page after an item that is not there."""
    return PermanentError(ErrorCode.INVALID_CURSOR, "The cursor is not the id of an item here.", param="after")


def get_item(connection: Connection, tenant_id: str, conversation_id: str, item_id: str) -> SealedItem:
    """One item.

    Raises:
        PermanentError: NOT_FOUND.
    """
    row = connection.execute(
        select(items.c.id, items.c.sealed_item).where(_in(tenant_id, conversation_id), items.c.id == item_id)
    ).one_or_none()
    if row is None:
        raise not_found("item", item_id)
    return SealedItem(row.id, row.sealed_item)


def remove_item(connection: Connection, tenant_id: str, conversation_id: str, item_id: str) -> None:
    """Delete one item.

    Raises:
        PermanentError: NOT_FOUND.
    """
    removed = connection.execute(delete(items).where(_in(tenant_id, conversation_id), items.c.id == item_id))
    if removed.rowcount == 0:
        raise not_found("item", item_id)


def take_turn(connection: Connection, tenant_id: str, conversation_id: str, holder: str, *, seconds: float) -> int:
    """Take the conversation's turn for one request; the same request may take it again.

    Returns:
        The turn's token, which closing must show.

    Raises:
        PermanentError: NOT_FOUND.
        RetryableError: CONVERSATION_LOCKED while another request has the turn.
    """
    now = epoch_now()
    free = or_(
        conversations.c.turn_holder.is_(None),
        conversations.c.turn_holder == holder,
        conversations.c.turn_expires_at < now,
    )
    token: int | None = connection.execute(
        update(conversations)
        .where(_is(tenant_id, conversation_id), free)
        .values(turn_token=conversations.c.turn_token + 1, turn_holder=holder, turn_expires_at=now + seconds)
        .returning(conversations.c.turn_token)
    ).scalar_one_or_none()
    if token is None:
        get(connection, tenant_id, conversation_id)
        raise RetryableError(
            ErrorCode.CONVERSATION_LOCKED,
            "Another turn of this conversation is being answered. Try again when it has ended.",
            param="conversation",
            retry_after_seconds=1,
        )
    return token


def free_turn(connection: Connection, tenant_id: str, conversation_id: str, token: int) -> bool:
    """End a turn; False if another request has taken it meanwhile, or the conversation is gone."""
    freed = connection.execute(
        update(conversations)
        .where(_is(tenant_id, conversation_id), conversations.c.turn_token == token)
        .values(turn_holder=None, turn_expires_at=None)
    )
    return freed.rowcount == 1


def free_turn_of(connection: Connection, tenant_id: str, conversation_id: str, holder: str) -> None:
    """End the turn of one request, if it has it."""
    connection.execute(
        update(conversations)
        .where(_is(tenant_id, conversation_id), conversations.c.turn_holder == holder)
        .values(turn_holder=None, turn_expires_at=None)
    )


def inserting(connection: Connection, table: Table, *key: str) -> Insert:
    """An insert that passes over rows whose `key` columns are taken."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=key)
    return postgresql.insert(table).on_conflict_do_nothing(index_elements=key)


def _is(tenant_id: str, conversation_id: str) -> ColumnElement[bool]:
    return and_(conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id)


def _in(tenant_id: str, conversation_id: str) -> ColumnElement[bool]:
    return and_(items.c.conversation_id == conversation_id, items.c.tenant_id == tenant_id)
