"""Requests that may arrive again: which are known, who runs them, and the replies they got.

A row's `seed` outlives every run of its request, and the ids of what the request makes follow from it. So a request
that is run again, because its process died or its reply was too large to keep, finds what it made the first time.
"""

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, select, tuple_, update

from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.records.database import epoch_now, read_clock
from libs.common.records.inserting import insert_if_absent
from libs.common.records.tables import idempotency

LEASE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that asks to be run.

    Args:
        key: the client's, or one made from the fingerprint.
        fingerprint: hex of the SHA-256 of route and body.
        keep_seconds: how long it is known.
        lease_seconds: how long others keep off; 0 where running it twice at once does no harm.
    """

    tenant_id: str
    key: str
    fingerprint: str
    keep_seconds: float
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Run:
    """The right to run a request; `attempt` counts from 1."""

    tenant_id: str
    key: str
    seed: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The reply that a request got; `seed` and `attempt` are of the run that made it."""

    status: int
    sealed_reply: bytes
    seed: str
    attempt: int


def reserve(connection: Connection, wanted: Wanted) -> Run | Kept:
    """Take a request to run it, or find its reply.

    Raises:
        PermanentError: IDEMPOTENCY_KEY_REUSED, the key was used for another request.
        RetryableError: IDEMPOTENCY_IN_PROGRESS.
    """
    seed = uuid.uuid4().hex
    if insert_if_absent(connection, idempotency, _new_row(connection, wanted, seed)):
        return Run(wanted.tenant_id, wanted.key, seed, 1)
    now = epoch_now()
    columns = idempotency.c
    row = connection.execute(
        select(idempotency, (columns.expires_at < now).label("expired"), (columns.lease_expires_at > now).label("held"))
        .where(_is(wanted.tenant_id, wanted.key))
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise _in_progress()  # cleared away this very moment: the next try begins anew
    if row.expired:
        return _renewed(connection, wanted, seed)
    return _known(connection, wanted, row)


def reserve_anew(connection: Connection, wanted: Wanted) -> Run:
    """Take a request to run it whatever is known of equal ones: from now on, a repeat is one of this."""
    seed = uuid.uuid4().hex
    if insert_if_absent(connection, idempotency, _new_row(connection, wanted, seed)):
        return Run(wanted.tenant_id, wanted.key, seed, 1)
    return _renewed(connection, wanted, seed)


def extend_lease(connection: Connection, run: Run) -> None:
    """Keep others off for longer."""
    _change(connection, run, lease_expires_at=epoch_now() + LEASE_SECONDS)


def release(connection: Connection, run: Run) -> None:
    """Let the next repeat run the request again, with the same seed."""
    _change(connection, run, lease_expires_at=0.0)


def keep_reply(connection: Connection, run: Run, status: int, sealed_reply: bytes) -> None:
    """Keep the reply, unless another run has taken the place of this one."""
    _change(connection, run, status=status, sealed_reply=sealed_reply)


def clear_expired(connection: Connection, *, limit: int) -> int:
    """Forget requests whose time is over.

    Returns:
        How many there were, at most `limit`.
    """
    key = (idempotency.c.tenant_id, idempotency.c.key)
    expired = idempotency.c.expires_at < epoch_now()
    found = connection.execute(select(*key).where(expired).limit(limit)).all()
    if not found:
        return 0
    rows = [tuple(row) for row in found]
    return connection.execute(delete(idempotency).where(tuple_(*key).in_(rows), expired)).rowcount


def _known(connection: Connection, wanted: Wanted, row: Row[Any]) -> Run | Kept:
    if row.fingerprint != wanted.fingerprint:
        message = "This Idempotency-Key was used for another request. Use a new key for every request."
        raise PermanentError(ErrorCode.IDEMPOTENCY_KEY_REUSED, message, param="Idempotency-Key")
    if row.status is not None:
        return Kept(row.status, row.sealed_reply, row.seed, row.attempt)
    if row.held:
        raise _in_progress()
    run = Run(wanted.tenant_id, wanted.key, row.seed, row.attempt + 1)
    changes = {"attempt": run.attempt, "lease_expires_at": epoch_now() + wanted.lease_seconds}
    connection.execute(update(idempotency).where(_is(run.tenant_id, run.key)).values(**changes))
    return run


def _renewed(connection: Connection, wanted: Wanted, seed: str) -> Run:
    row = _new_row(connection, wanted, seed)
    connection.execute(update(idempotency).where(_is(wanted.tenant_id, wanted.key)).values(**row))
    return Run(wanted.tenant_id, wanted.key, seed, 1)


def _new_row(connection: Connection, wanted: Wanted, seed: str) -> dict[str, Any]:
    now = read_clock(connection)
    return {
        "tenant_id": wanted.tenant_id,
        "key": wanted.key,
        "fingerprint": wanted.fingerprint,
        "seed": seed,
        "attempt": 1,
        "lease_expires_at": now + wanted.lease_seconds,
        "status": None,
        "sealed_reply": None,
        "expires_at": now + wanted.keep_seconds,
    }


def _change(connection: Connection, run: Run, **values: object) -> None:
    mine = (_is(run.tenant_id, run.key), idempotency.c.seed == run.seed, idempotency.c.attempt == run.attempt)
    connection.execute(update(idempotency).where(*mine, idempotency.c.status.is_(None)).values(**values))


def _is(tenant_id: str, key: str) -> ColumnElement[bool]:
    return (idempotency.c.tenant_id == tenant_id) & (idempotency.c.key == key)


def _in_progress() -> RetryableError:
    message = "The first request with this key or body is still being answered. Try again in a moment."
    return RetryableError(ErrorCode.IDEMPOTENCY_IN_PROGRESS, message, retry_after_seconds=1)
