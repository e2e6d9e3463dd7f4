"""What becomes of a batch that is being ended: its items' results go into files, and it ends with them."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, select, update

from libs.common.records.batches import get, is_batch, items_of, move
from libs.common.records.database import epoch_now
from libs.common.records.tables import batch_items, batches, files

_CLOSING: Final = ("finalizing", "cancelling")

Outcome = Literal["completed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class EndedItem:
    """An item that will not change. `sealed_result` is there if it ran: one line of a file."""

    position: int
    custom_id: str
    status: str
    sealed_result: bytes | None


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A written output or error file."""

    id: str
    blob_id: str
    filename: str
    bytes: int
    sha256: str


def closing_outcome(row: Row[Any]) -> Outcome | None:
    """How a batch that is being ended will have ended; None for any other batch."""
    if row.status not in _CLOSING:
        return None
    if row.status == "cancelling":
        return "cancelled"
    return "expired" if row.expired_at is not None else "completed"


def ended_items(
    connection: Connection, tenant_id: str, batch_id: str, *, succeeded: bool, after: int, limit: int
) -> list[EndedItem] | None:
    """The next items for the output file (`succeeded`) or the error file, in order of position.

    None once the batch has ended: its items hold no results any more, and its files are written.
    """
    of = batch_items.c
    rows = connection.execute(
        select(of.position, of.custom_id, of.status, of.sealed_result)
        .where(items_of(tenant_id, batch_id), of.position > after)
        .where(of.status == "succeeded" if succeeded else of.status != "succeeded")
        .order_by(of.position)
        .limit(limit)
    ).all()
    # Asked after the items were read: if it has not ended now, they were whole then.
    status = connection.execute(select(batches.c.status).where(is_batch(tenant_id, batch_id))).scalar_one_or_none()
    if status not in _CLOSING:
        return None
    return [EndedItem(row.position, row.custom_id, row.status, row.sealed_result) for row in rows]


def close(
    connection: Connection, tenant_id: str, batch_id: str, *, output: ResultFile | None, errors: ResultFile | None
) -> bool:
    """End a batch with its files. False, and nothing is written, if that was done before."""
    row = get(connection, tenant_id, batch_id)
    outcome = closing_outcome(row)
    if outcome is None:
        return False
    ended_at = {} if outcome == "expired" else {f"{outcome}_at": epoch_now()}
    file_ids = {
        "output_file_id": output.id if output else None,
        "error_file_id": errors.id if errors else None,
    }
    if not move(connection, tenant_id, batch_id, (row.status,), status=outcome, **file_ids, **ended_at):
        return False
    for file in (output, errors):
        if file is not None:
            _insert_file(connection, tenant_id, file, row.output_expires_after)
    # From here on the files alone hold texts, so that deleting the files deletes the texts.
    emptied = update(batch_items).where(items_of(tenant_id, batch_id)).values(sealed_request=b"", sealed_result=None)
    connection.execute(emptied)
    return True


def _insert_file(
    connection: Connection, tenant_id: str, file: ResultFile, expires_after: dict[str, Any] | None
) -> None:
    now = epoch_now()
    row = asdict(file) | {"tenant_id": tenant_id, "purpose": "batch_output", "status": "processed", "created_at": now}
    expires_at = now + expires_after["seconds"] if expires_after else None
    connection.execute(insert(files).values(**row, expires_at=expires_at))
