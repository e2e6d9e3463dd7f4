"""Queries on conversations and their turns; every one names the tenant. Nothing here can read content.

A conversation whose time is over is not found any more, even before its key is destroyed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, RowMapping, Table, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from libs.common.errors import ErrorCode, PermanentError, RetryableError, not_found
from libs.common.records.database import epoch_now
from libs.common.records.paging import Page, PageQuery, read_page
from libs.common.records.tables import conversations, responses, tenants
from services.conversations import job_requests


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as stored; the columns are explained where the table is."""

    id: str
    tenant_id: str
    wrapped_key: bytes
    sealed_metadata: bytes
    next_position: int
    turn_token: int
    turn_holder: str | None
    turn_expires_at: float | None
    revision: int
    sealed_summary: bytes | None
    summary_position: int
    created_at: float
    last_active_at: float
    expires_after_seconds: float | None
    expires_at: float | None


def create(
    connection: Connection,
    tenant_id: str,
    conversation_id: str,
    *,
    wrapped_key: bytes,
    sealed_metadata: bytes,
    created_at: float,
    expires_after_seconds: float | None = None,
) -> bool:
    """Record a conversation; False, and nothing is written, if there is one of this id: a repeated message."""
    insert = inserting(connection, conversations, "id").values(
        id=conversation_id,
        tenant_id=tenant_id,
        wrapped_key=wrapped_key,
        sealed_metadata=sealed_metadata,
        next_position=0,
        turn_token=0,
        revision=1,
        summary_position=0,
        created_at=created_at,
        expires_after_seconds=expires_after_seconds,
        **_active(tenant_id, expires_after_seconds),
    )
    return connection.execute(insert.returning(conversations.c.id)).one_or_none() is not None


def get(connection: Connection, tenant_id: str, conversation_id: str, *, lock: bool = False) -> Conversation:
    """One conversation, held until the transaction ends if asked for.

    Raises:
        PermanentError: NOT_FOUND, for a missing conversation, a foreign and an expired one alike.
    """
    query = select(conversations).where(_is(tenant_id, conversation_id))
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise not_found("conversation", conversation_id)
    return _stored(row)


def page(connection: Connection, tenant_id: str, query: PageQuery) -> Page[Conversation]:
    """One page of a tenant's conversations, by time of creation.

    Raises:
        PermanentError: INVALID_CURSOR.
    """
    keys = (conversations.c.created_at, conversations.c.id)
    scope = [conversations.c.tenant_id == tenant_id]
    return read_page(connection, select(conversations), keys, query, scope=scope, filters=[_unexpired()]).of(_stored)


def change(
    connection: Connection,
    tenant_id: str,
    conversation_id: str,
    *,
    expected: Collection[int] | None = None,
    **values: object,
) -> Conversation:
    """Write columns of a conversation as its next revision, and note that it is in use.

    Args:
        expected: the revisions that the writer takes for the newest one; None: it does not care.

    Returns:
        The conversation as it is now.

    Raises:
        PermanentError: NOT_FOUND, or PRECONDITION_FAILED when the conversation was changed meanwhile.
    """
    own = values.get("expires_after_seconds", conversations.c.expires_after_seconds)
    row = (
        connection.execute(
            update(conversations)
            .where(_is(tenant_id, conversation_id))
            .values(revision=conversations.c.revision + 1, **values, **_active(tenant_id, own))
            .returning(conversations)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise not_found("conversation", conversation_id)
    changed = _stored(row)
    check_revision(changed.revision - 1, expected)
    return changed


def check_revision(revision: int, expected: Collection[int] | None) -> None:
    """Refuse a change to something else than what the writer has seen.

    Raises:
        PermanentError: PRECONDITION_FAILED.
    """
    if expected is not None and revision not in expected:
        raise PermanentError(
            ErrorCode.PRECONDITION_FAILED,
            "The conversation was changed meanwhile. Read it again, and send its new ETag.",
            param="If-Match",
        )


def remove(
    connection: Connection, tenant_id: str, conversation_id: str, *, expected: Collection[int] | None = None
) -> None:
    """Destroy a conversation's key, and with it every item; its responses, which say the same again, go as well.

    Raises:
        PermanentError: NOT_FOUND or PRECONDITION_FAILED.
    """
    # The conversation goes first: a turn that is being closed holds its row until its response can be seen below.
    removed = connection.execute(
        delete(conversations).where(_is(tenant_id, conversation_id)).returning(conversations.c.revision)
    ).scalar_one_or_none()
    if removed is None:
        raise not_found("conversation", conversation_id)
    check_revision(removed, expected)
    _forget_rest(connection, tenant_id, conversation_id)


def remove_expired(connection: Connection, tenant_id: str, conversation_id: str) -> None:
    """As `remove`, if the conversation's time is over still: a turn may just have begun."""
    mine = and_(conversations.c.tenant_id == tenant_id, conversations.c.id == conversation_id)
    removed = connection.execute(delete(conversations).where(mine, conversations.c.expires_at <= epoch_now()))
    if removed.rowcount == 1:
        _forget_rest(connection, tenant_id, conversation_id)


def take_turn(
    connection: Connection, tenant_id: str, conversation_id: str, holder: str, *, seconds: float
) -> Conversation:
    """Take the conversation's turn for one request; the same request may take it again.

    Returns:
        The conversation, with the turn's token, which closing must show.

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
    row = (
        connection.execute(
            update(conversations)
            .where(_is(tenant_id, conversation_id), free)
            .values(
                turn_token=conversations.c.turn_token + 1,
                turn_holder=holder,
                turn_expires_at=now + seconds,
                **_active(tenant_id, conversations.c.expires_after_seconds),
            )
            .returning(conversations)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        get(connection, tenant_id, conversation_id)
        raise RetryableError(
            ErrorCode.CONVERSATION_LOCKED,
            "Another turn of this conversation is being answered. Try again when it has ended.",
            param="conversation",
            retry_after_seconds=1,
        )
    return _stored(row)


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


def keep_summary(
    connection: Connection, tenant_id: str, conversation_id: str, *, after: int, before: int, sealed: bytes
) -> bool:
    """Put a summary of the items before position `before` in the place of the one that reached up to `after`.

    Returns:
        False if there is another one meanwhile, or the conversation is gone.
    """
    kept = connection.execute(
        update(conversations)
        .where(_is(tenant_id, conversation_id), conversations.c.summary_position == after)
        .values(sealed_summary=sealed, summary_position=before)
    )
    return kept.rowcount == 1


def inserting(connection: Connection, table: Table, *key: str) -> Insert:
    """An insert that passes over rows whose `key` columns are taken."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=key)
    return postgresql.insert(table).on_conflict_do_nothing(index_elements=key)


def _forget_rest(connection: Connection, tenant_id: str, conversation_id: str) -> None:
    connection.execute(
        delete(responses).where(responses.c.tenant_id == tenant_id, responses.c.conversation_id == conversation_id)
    )
    job_requests.drop(connection, tenant_id, conversation_id, job_requests.SUMMARY_TASKS)


def _stored(row: RowMapping) -> Conversation:
    return Conversation(**row)


def _active(tenant_id: str, own_seconds: object) -> dict[str, Any]:
    """What tells that a conversation is in use now, and until when it is kept therefore."""
    of_tenant = select(tenants.c.retention_seconds).where(tenants.c.id == tenant_id).scalar_subquery()
    kept_seconds = of_tenant if own_seconds is None else func.coalesce(own_seconds, of_tenant)
    return {"last_active_at": epoch_now(), "expires_at": epoch_now() + kept_seconds}


def _unexpired() -> ColumnElement[bool]:
    return or_(conversations.c.expires_at.is_(None), conversations.c.expires_at > epoch_now())


def _is(tenant_id: str, conversation_id: str) -> ColumnElement[bool]:
    return and_(conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id, _unexpired())
