"""Queries on stored responses; every one names the tenant. Nothing here can read content."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select

from libs.common.errors import PermanentError, not_found
from libs.common.records.tables import responses
from services.conversations.store import inserting


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as stored."""

    id: str
    conversation_id: str | None
    previous_response_id: str | None
    wrapped_key: bytes
    sealed_body: bytes
    sealed_input: bytes


def insert(connection: Connection, tenant_id: str, response: StoredResponse, *, created_at: float) -> bool:
    """Record a response; False, and nothing is written, if there is one of this id: a repeated message."""
    row = {**asdict(response), "tenant_id": tenant_id, "created_at": created_at}
    inserted = connection.execute(inserting(connection, responses, "id").returning(responses.c.id), row)
    return inserted.one_or_none() is not None


def find(connection: Connection, tenant_id: str, response_id: str) -> StoredResponse | None:
    """One stored response, if the tenant has it."""
    row = connection.execute(
        select(responses).where(responses.c.id == response_id, responses.c.tenant_id == tenant_id)
    ).one_or_none()
    if row is None:
        return None
    return StoredResponse(
        row.id,
        row.conversation_id,
        row.previous_response_id,
        row.wrapped_key,
        row.sealed_body,
        row.sealed_input,
    )


def get(connection: Connection, tenant_id: str, response_id: str, *, param: str | None = None) -> StoredResponse:
    """One stored response.

    Raises:
        PermanentError: NOT_FOUND, for a missing response and a foreign one alike.
    """
    response = find(connection, tenant_id, response_id)
    if response is None:
        error = not_found("response", response_id)
        raise PermanentError(error.code, error.message, param=param)
    return response


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


def remove(connection: Connection, tenant_id: str, response_id: str) -> None:
    """Destroy a stored response's key.

    Raises:
        PermanentError: NOT_FOUND.
    """
    get(connection, tenant_id, response_id)
    connection.execute(delete(responses).where(responses.c.id == response_id, responses.c.tenant_id == tenant_id))
