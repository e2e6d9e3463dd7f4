"""Batches and their items.

A batch leaves `validating` and `in_progress` exactly once, whoever gets there first: the last of its shards, a person
who cancels it, or its window's end. Whoever moves it out submits the finalizing job in the same transaction, and from
then on no item changes. So that these meet one another in order, each locks the batch's row before it touches items;
one who also moves jobs moves those first.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, tuple_, update

from libs.common.errors import ErrorCode, PermanentError, not_found
from libs.common.records.database import epoch_now
from libs.common.records.inserting import insert_if_absent
from libs.common.records.tables import batch_items, batches

RUNNING: Final = frozenset({"validating", "in_progress"})

Ending = Literal["cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch as the client asked for it. `output_expires_after` is OpenAI's object, checked."""

    id: str
    tenant_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    output_expires_after: dict[str, str | int] | None


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line of a batch's input. `position` counts the requests from 0."""

    position: int
    custom_id: str
    sealed_request: bytes


@dataclass(frozen=True, slots=True)
class PendingItem:
    """An item to be answered; its request is a sealed `BatchItem`."""

    position: int
    sealed_request: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """How the items of a batch fared; `failed` are all that did not succeed, those never run included."""

    total: int = 0
    completed: int = 0
    failed: int = 0


def create(connection: Connection, batch: NewBatch, *, window_seconds: float) -> bool:
    """Record a batch that waits for its validation; False if an earlier run of the same request made it."""
    now = epoch_now()
    row = asdict(batch) | {"status": "validating", "total": 0, "created_at": now, "expires_at": now + window_seconds}
    return insert_if_absent(connection, batches, row)


def get(connection: Connection, tenant_id: str, batch_id: str) -> Row[Any]:
    """One batch's row.

    Raises:
        PermanentError: NOT_FOUND, for a missing batch and a foreign one alike.
    """
    row = connection.execute(select(batches).where(is_batch(tenant_id, batch_id))).one_or_none()
    if row is None:
        raise not_found("batch", batch_id)
    return row


def page(connection: Connection, tenant_id: str, *, after: str | None, limit: int) -> list[Row[Any]]:
    """Batches after the one with id `after`, newest first.

    Raises:
        PermanentError: INVALID_CURSOR when there is no batch `after`.
    """
    query = select(batches).where(batches.c.tenant_id == tenant_id)
    if after is not None:
        last = connection.execute(select(batches).where(is_batch(tenant_id, after))).one_or_none()
        if last is None:
            raise PermanentError(ErrorCode.INVALID_CURSOR, "There is no batch with the id in 'after'.", param="after")
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(last.created_at, last.id))
    newest_first = query.order_by(batches.c.created_at.desc(), batches.c.id.desc())
    return list(connection.execute(newest_first.limit(limit)))


def counts(connection: Connection, tenant_id: str, batch_ids: Sequence[str]) -> dict[str, Counts]:
    """The counts of each batch that has items; before it is in progress it shows none."""
    of = batch_items.c
    rows = connection.execute(
        select(of.batch_id, of.status, func.count().label("number"))
        .join(batches, batches.c.id == of.batch_id)
        .where(of.tenant_id == tenant_id, of.batch_id.in_(batch_ids), batches.c.total > 0)
        .group_by(of.batch_id, of.status)
    ).all()
    by_batch: dict[str, dict[str, int]] = {}
    for row in rows:
        by_batch.setdefault(row.batch_id, {})[row.status] = row.number
    return {batch_id: _counts(by_status) for batch_id, by_status in by_batch.items()}


def add_items(connection: Connection, tenant_id: str, batch_id: str, items: Sequence[NewItem]) -> bool:
    """Record items of a batch under validation; False, and nothing is written, if it is so no longer."""
    if _locked_status(connection, tenant_id, batch_id) != "validating":
        return False
    rows = [asdict(item) | {"tenant_id": tenant_id, "batch_id": batch_id, "status": "pending"} for item in items]
    connection.execute(insert(batch_items), rows)
    return True


def clear_items(connection: Connection, tenant_id: str, batch_id: str) -> bool:
    """Forget what an earlier attempt at the validation recorded; False as for `add_items`."""
    if _locked_status(connection, tenant_id, batch_id) != "validating":
        return False
    connection.execute(delete(batch_items).where(items_of(tenant_id, batch_id)))
    return True


def accept(connection: Connection, tenant_id: str, batch_id: str, total: int) -> bool:
    """The file is valid and every item recorded: the batch is in progress. False if it was ended meanwhile."""
    return move(
        connection, tenant_id, batch_id, ("validating",), status="in_progress", total=total, in_progress_at=epoch_now()
    )


def refuse(connection: Connection, tenant_id: str, batch_id: str, errors: list[dict[str, Any]]) -> bool:
    """The file is not valid: nothing of it runs. False if the batch was ended meanwhile."""
    if not clear_items(connection, tenant_id, batch_id):
        return False
    return move(connection, tenant_id, batch_id, ("validating",), status="failed", errors=errors, failed_at=epoch_now())


def pending_items(connection: Connection, tenant_id: str, batch_id: str, first: int, last: int) -> list[PendingItem]:
    """Items with positions in [first, last] still to be answered, in order; none once the batch is being ended."""
    of = batch_items.c
    rows = connection.execute(
        select(of.position, of.sealed_request)
        .join(batches, batches.c.id == of.batch_id)
        .where(items_of(tenant_id, batch_id), of.position.between(first, last), of.status == "pending")
        .where(batches.c.status == "in_progress")
        .order_by(of.position)
    )
    return [PendingItem(row.position, row.sealed_request) for row in rows]


def complete_item(
    connection: Connection, tenant_id: str, batch_id: str, position: int, *, succeeded: bool, sealed_result: bytes
) -> bool:
    """Record an item's result; False, and nothing is written, if it has one or the batch is being ended."""
    if _locked_status(connection, tenant_id, batch_id) != "in_progress":
        return False
    done = connection.execute(
        update(batch_items)
        .where(items_of(tenant_id, batch_id), batch_items.c.position == position, batch_items.c.status == "pending")
        .values(status="succeeded" if succeeded else "failed", sealed_result=sealed_result)
    )
    return done.rowcount == 1


def begin_finalizing(connection: Connection, tenant_id: str, batch_id: str) -> bool:
    """Whether the caller has found the last item done; True for one caller only, who submits the finalizing job."""
    # The lock comes first: of two who finish the last two items at once, the second must see the first one's.
    if _locked_status(connection, tenant_id, batch_id) != "in_progress":
        return False
    waiting = select(batch_items.c.position).where(items_of(tenant_id, batch_id), batch_items.c.status == "pending")
    if connection.execute(waiting.limit(1)).first() is not None:
        return False
    return move(connection, tenant_id, batch_id, ("in_progress",), status="finalizing", finalizing_at=epoch_now())


def end_early(connection: Connection, tenant_id: str, batch_id: str, ending: Ending) -> bool:
    """Stop a batch: what was not answered counts as `ending`. True for one caller only, who submits the finalizing job.

    The items of an unfinished validation are forgotten, since they may be only some of the file's.
    """
    status = _locked_status(connection, tenant_id, batch_id)
    if status not in RUNNING:
        return False
    now = epoch_now()
    if ending == "cancelled":
        moved = move(connection, tenant_id, batch_id, (status,), status="cancelling", cancelling_at=now)
    else:
        moved = move(connection, tenant_id, batch_id, (status,), status="finalizing", finalizing_at=now, expired_at=now)
    if status == "validating":
        connection.execute(delete(batch_items).where(items_of(tenant_id, batch_id)))
    else:
        unanswered = and_(items_of(tenant_id, batch_id), batch_items.c.status == "pending")
        connection.execute(update(batch_items).where(unanswered).values(status=ending))
    return moved


def _locked_status(connection: Connection, tenant_id: str, batch_id: str) -> str | None:
    query = select(batches.c.status).where(is_batch(tenant_id, batch_id)).with_for_update()
    return connection.execute(query).scalar_one_or_none()


def move(connection: Connection, tenant_id: str, batch_id: str, statuses: tuple[str, ...], **values: object) -> bool:
    """Change a batch that has one of these statuses; False if it has another."""
    moved = connection.execute(
        update(batches).where(is_batch(tenant_id, batch_id), batches.c.status.in_(statuses)).values(**values)
    )
    return moved.rowcount == 1


def is_batch(tenant_id: str, batch_id: str) -> ColumnElement[bool]:
    """The one batch, as a condition on `batches`."""
    return and_(batches.c.id == batch_id, batches.c.tenant_id == tenant_id)


def items_of(tenant_id: str, batch_id: str) -> ColumnElement[bool]:
    """Its items, as a condition on `batch_items`."""
    return and_(batch_items.c.batch_id == batch_id, batch_items.c.tenant_id == tenant_id)


def _counts(by_status: dict[str, int]) -> Counts:
    total, pending = sum(by_status.values()), by_status.get("pending", 0)
    completed = by_status.get("succeeded", 0)
    return Counts(total, completed, total - pending - completed)
