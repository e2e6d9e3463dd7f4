"""Queries on stored answers; every one names the tenant. Nothing here can read content.

Stored chat completions are rows of another shape among the responses, and neither is found as the other. An answer
whose time is over is not found any more, even before its key is destroyed. One of a conversation goes with that
conversation instead.
"""

from dataclasses import asdict, dataclass, fields
from typing import Final

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, or_, select, tuple_, update

from libs.common.contracts.chat import Shape
from libs.common.errors import PermanentError, not_found
from libs.common.records.database import epoch_now
from libs.common.records.paging import Page, PageQuery, read_page
from libs.common.records.tables import responses, tenants
from services.conversations.store import inserting

_NOUNS: Final = {Shape.RESPONSE: "response", Shape.CHAT: "chat completion"}


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response or chat completion as stored."""

    id: str
    shape: Shape
    conversation_id: str | None
    previous_response_id: str | None
    wrapped_key: bytes
    sealed_body: bytes
    sealed_input: bytes
    created_at: float


def insert(connection: Connection, tenant_id: str, response: StoredResponse) -> bool:
    """Record an answer; False, and nothing is written, if there is one of this id: a repeated message."""
    kept_seconds = select(tenants.c.retention_seconds).where(tenants.c.id == tenant_id).scalar_subquery()
    insert = inserting(connection, responses, "id").values(
        **asdict(response),
        tenant_id=tenant_id,
        expires_at=None if response.conversation_id else epoch_now() + kept_seconds,
    )
    return connection.execute(insert.returning(responses.c.id)).one_or_none() is not None


def find(
    connection: Connection, tenant_id: str, response_id: str, shape: Shape = Shape.RESPONSE, *, lock: bool = False
) -> StoredResponse | None:
    """One stored answer, if the tenant has it; held until the transaction ends if asked for."""
    query = select(responses).where(_is(tenant_id, response_id, shape))
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    return None if row is None else _stored(row)


def get(
    connection: Connection,
    tenant_id: str,
    response_id: str,
    shape: Shape = Shape.RESPONSE,
    *,
    lock: bool = False,
    param: str | None = None,
) -> StoredResponse:
    """One stored answer.

    Raises:
        PermanentError: NOT_FOUND, for a missing answer, a foreign one and one of another shape alike.
    """
    response = find(connection, tenant_id, response_id, shape, lock=lock)
    if response is None:
        raise missing(response_id, shape, param=param)
    return response


def missing(response_id: str, shape: Shape = Shape.RESPONSE, *, param: str | None = None) -> PermanentError:
    """The error for an answer that nobody stored, or not for the one who asks."""
    error = not_found(_NOUNS[shape], response_id)
    return PermanentError(error.code, error.message, param=param)


def page(
    connection: Connection, tenant_id: str, shape: Shape, query: PageQuery, *, behind: StoredResponse | None = None
) -> Page[StoredResponse]:
    """One page of a tenant's stored answers of one shape, by time of creation.

    Args:
        behind: where an earlier page ended; it may be gone meanwhile.

    Raises:
        PermanentError: INVALID_CURSOR.
    """
    keys = (responses.c.created_at, responses.c.id)
    filters = [_unexpired()]
    if behind is not None:
        last = tuple_(behind.created_at, behind.id)
        filters.append(tuple_(*keys) > last if query.order == "asc" else tuple_(*keys) < last)
    scope = [responses.c.tenant_id == tenant_id, responses.c.shape == shape]
    return read_page(connection, select(responses), keys, query, scope=scope, filters=filters).of(_stored)


def replace_body(connection: Connection, tenant_id: str, response: StoredResponse, sealed_body: bytes) -> None:
    """Write another body of a stored answer."""
    mine = _is(tenant_id, response.id, response.shape)
    connection.execute(update(responses).where(mine).values(sealed_body=sealed_body))


def chain(connection: Connection, tenant_id: str, response_id: str, *, limit: int) -> list[StoredResponse]:
    """A response and those before it, newest first, each once, at most `limit`; ends quietly at a deleted one.

    Raises:
        PermanentError: NOT_FOUND when there is no response `response_id`.
    """
    response: StoredResponse | None = get(connection, tenant_id, response_id, param="previous_response_id")
    found: dict[str, StoredResponse] = {}
    while response is not None and response.id not in found and len(found) < limit:
        found[response.id] = response
        before = response.previous_response_id
        response = find(connection, tenant_id, before) if before else None
    return list(found.values())


def remove(connection: Connection, tenant_id: str, response_id: str, shape: Shape = Shape.RESPONSE) -> None:
    """Destroy a stored answer's key.

    Raises:
        PermanentError: NOT_FOUND.
    """
    get(connection, tenant_id, response_id, shape)
    connection.execute(delete(responses).where(_is(tenant_id, response_id, shape)))


def _stored(row: RowMapping) -> StoredResponse:
    columns = {field.name: row[field.name] for field in fields(StoredResponse)}
    return StoredResponse(**columns | {"shape": Shape(row["shape"])})


def _unexpired() -> ColumnElement[bool]:
    return or_(responses.c.expires_at.is_(None), responses.c.expires_at > epoch_now())


def _is(tenant_id: str, response_id: str, shape: Shape) -> ColumnElement[bool]:
    mine = and_(responses.c.id == response_id, responses.c.tenant_id == tenant_id)
    return and_(mine, responses.c.shape == shape, _unexpired())
