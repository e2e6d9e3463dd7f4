"""Uploads in parts: their records. The bytes of a part are in the blob store, under its `blob_id`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select, update
from sqlalchemy import delete as delete_rows

from libs.common.errors import ErrorCode, PermanentError, not_found
from libs.common.records import files
from libs.common.records.database import epoch_now
from libs.common.records.files import File, NewFile
from libs.common.records.inserting import insert_if_absent
from libs.common.records.tables import upload_parts, uploads

PENDING: Final = "pending"
COMPLETED: Final = "completed"
CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"

UPLOAD_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that arrives in parts; `bytes` is how many it is to have, times are Unix seconds."""

    id: str
    tenant_id: str
    filename: str
    purpose: str
    bytes: int
    status: str
    created_at: float
    expires_at: float
    file_expires_after_seconds: int | None
    file_id: str | None


@dataclass(frozen=True, slots=True)
class UploadPart:
    """A part whose bytes are stored."""

    id: str
    upload_id: str
    blob_id: str
    bytes: int
    created_at: float


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload to be begun."""

    id: str
    filename: str
    purpose: str
    bytes: int
    file_expires_after_seconds: int | None = None


def insert(connection: Connection, tenant_id: str, new: NewUpload) -> Upload:
    """Begin an upload, or find the one that an earlier run of the same request began."""
    now = epoch_now()
    row = {
        "id": new.id,
        "tenant_id": tenant_id,
        "filename": new.filename,
        "purpose": new.purpose,
        "bytes": new.bytes,
        "status": PENDING,
        "created_at": now,
        "expires_at": now + UPLOAD_SECONDS,
        "file_expires_after_seconds": new.file_expires_after_seconds,
    }
    insert_if_absent(connection, uploads, row)
    return get(connection, tenant_id, new.id)


def get(connection: Connection, tenant_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """One upload; one whose time is over is shown as expired. With `lock`, nobody else changes it meanwhile.

    Raises:
        PermanentError: NOT_FOUND.
    """
    found = select(uploads, (uploads.c.expires_at <= epoch_now()).label("is_over")).where(
        uploads.c.id == upload_id, uploads.c.tenant_id == tenant_id
    )
    row = connection.execute(found.with_for_update() if lock else found).mappings().one_or_none()
    if row is None:
        raise not_found("upload", upload_id)
    fields = dict(row)
    if fields.pop("is_over") and fields["status"] == PENDING:
        fields["status"] = EXPIRED
    return Upload(**fields)


def require_pending(upload: Upload) -> None:
    """What can still be added to.

    Raises:
        PermanentError: INVALID_VALUE for an upload that has ended.
    """
    if upload.status != PENDING:
        raise PermanentError(ErrorCode.INVALID_VALUE, f"Upload '{upload.id}' has ended: it is {upload.status}.")


def add_part(connection: Connection, tenant_id: str, part: UploadPart) -> UploadPart:
    """Record a part, or find the one that an earlier run of the same request recorded: then with its blob.

    Raises:
        PermanentError: NOT_FOUND, or INVALID_VALUE when the upload has ended or would become larger than announced.
    """
    upload = get(connection, tenant_id, part.upload_id, lock=True)
    known = _parts(connection, tenant_id, upload.id, [part.id])
    if known:
        return known[0]
    require_pending(upload)
    so_far = select(func.coalesce(func.sum(upload_parts.c.bytes), 0)).where(upload_parts.c.upload_id == upload.id)
    # Twice as much in all, because a client may send a part again and leave the first one out.
    if part.bytes > upload.bytes or connection.execute(so_far).scalar_one() + part.bytes > 2 * upload.bytes:
        message = f"The parts have more bytes than the {upload.bytes} that were announced."
        raise PermanentError(ErrorCode.INVALID_VALUE, message, param="data")
    row = {
        "id": part.id,
        "tenant_id": tenant_id,
        "upload_id": part.upload_id,
        "blob_id": part.blob_id,
        "bytes": part.bytes,
        "created_at": epoch_now(),
    }
    insert_if_absent(connection, upload_parts, row)
    return _parts(connection, tenant_id, upload.id, [part.id])[0]


def parts_in_order(connection: Connection, tenant_id: str, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts of the whole file.

    Raises:
        PermanentError: INVALID_VALUE for an unknown part, one named twice, or another size than was announced.
    """
    by_id = {part.id: part for part in _parts(connection, tenant_id, upload.id, part_ids)}
    for index, part_id in enumerate(part_ids):
        if part_id not in by_id or part_id in part_ids[:index]:
            fault = "is named twice" if part_id in by_id else "is not a part of this upload"
            raise PermanentError(ErrorCode.INVALID_VALUE, f"The part {fault}.", param=f"part_ids[{index}]")
    total_bytes = sum(part.bytes for part in by_id.values())
    if total_bytes != upload.bytes:
        message = f"The parts have {total_bytes} bytes together, but {upload.bytes} were announced."
        raise PermanentError(ErrorCode.INVALID_VALUE, message, param="part_ids")
    return [by_id[part_id] for part_id in part_ids]


def complete(connection: Connection, tenant_id: str, upload_id: str, new: NewFile) -> tuple[File, list[str]]:
    """Make the upload a file.

    Returns:
        The file, which an earlier run of the same request may have made, and the blobs of parts, needed no longer.

    Raises:
        PermanentError: NOT_FOUND, or INVALID_VALUE when the upload has ended.
    """
    upload = get(connection, tenant_id, upload_id, lock=True)
    if upload.file_id == new.id:
        return files.get(connection, tenant_id, new.id), []
    require_pending(upload)
    file = files.insert(connection, tenant_id, new)
    return file, _end(connection, tenant_id, upload_id, COMPLETED, file_id=file.id)


def cancel(connection: Connection, tenant_id: str, upload_id: str) -> list[str]:
    """Give an upload up; one that was cancelled before stays so.

    Returns:
        The blobs of its parts, needed no longer.

    Raises:
        PermanentError: NOT_FOUND, or INVALID_VALUE when the upload has ended otherwise.
    """
    upload = get(connection, tenant_id, upload_id, lock=True)
    if upload.status == CANCELLED:
        return []
    require_pending(upload)
    return _end(connection, tenant_id, upload_id, CANCELLED)


def expire(connection: Connection, *, limit: int) -> list[tuple[str, str, list[str]]]:
    """End uploads whose time is over.

    Returns:
        (tenant id, upload id, blobs of its parts) of each.
    """
    over = select(uploads.c.tenant_id, uploads.c.id).where(
        uploads.c.status == PENDING, uploads.c.expires_at <= epoch_now()
    )
    rows = connection.execute(over.limit(limit).with_for_update(skip_locked=True)).all()
    return [(row.tenant_id, row.id, _end(connection, row.tenant_id, row.id, EXPIRED)) for row in rows]


def _end(
    connection: Connection, tenant_id: str, upload_id: str, status: str, *, file_id: str | None = None
) -> list[str]:
    mine = (uploads.c.id == upload_id, uploads.c.tenant_id == tenant_id)
    connection.execute(update(uploads).where(*mine).values(status=status, file_id=file_id))
    removed = delete_rows(upload_parts).where(
        upload_parts.c.upload_id == upload_id, upload_parts.c.tenant_id == tenant_id
    )
    return list(connection.execute(removed.returning(upload_parts.c.blob_id)).scalars())


def _parts(connection: Connection, tenant_id: str, upload_id: str, part_ids: Sequence[str]) -> list[UploadPart]:
    found = select(
        upload_parts.c.id,
        upload_parts.c.upload_id,
        upload_parts.c.blob_id,
        upload_parts.c.bytes,
        upload_parts.c.created_at,
    ).where(
        upload_parts.c.tenant_id == tenant_id,
        upload_parts.c.upload_id == upload_id,
        upload_parts.c.id.in_(list(part_ids)),
    )
    return [UploadPart(**row) for row in connection.execute(found).mappings()]
