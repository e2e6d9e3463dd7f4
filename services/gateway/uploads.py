"""An upload: from the form's bytes to a sealed blob and a file's record, or to nothing at all."""

import re
import unicodedata
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from fastapi import Request
from pydantic import Field
from starlette.requests import ClientDisconnect

from libs.common.blobs import BlobInfo, BlobStore
from libs.common.contracts.requests import Body, new_id
from libs.common.contracts.validation import validated
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.records.files import NewFile
from services.gateway.multipart import Form
from services.gateway.streams import ClientLeftError

_MAX_NAME_CHARACTERS: Final = 255
_FORM_BYTES: Final = 1024 * 1024  # of a form, beside the file
_FIELD: Final = re.compile(r"(\w+)\[(\w+)\]")
# Controls, and what shows as nothing or turns the text around it: bidi marks, zero-width and tag characters.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class ExpiresAfter(Body):
    """When a file is to be deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class UploadFields(Body):
    """POST /v1/files, without the file itself."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


async def receive_file(request: Request, blobs: BlobStore, tenant_id: str, limit_bytes: int) -> NewFile:
    """Store the file of a form under a blob id of its own; whatever goes wrong, no blob is left.

    Raises:
        PermanentError: EMPTY_FILE, BODY_TOO_LARGE, MISSING_FIELD or another fault of the form.
        ClientLeftError: the client left in the middle of it.
    """
    form = Form(request.headers.get("content-type", ""), _body(request), limit_bytes + _FORM_BYTES)
    blob_id = new_id("blob")
    try:
        filename, stored, fields = await _read(form, "file", blobs, tenant_id, blob_id, limit_bytes)
        options = validated(UploadFields, fields)
    except BaseException:
        await discard(blobs, tenant_id, blob_id)
        raise
    return NewFile(
        id=new_id("file"),
        filename=filename,
        purpose=options.purpose,
        bytes=stored.bytes,
        sha256=stored.sha256,
        blob_id=blob_id,
        expires_after_seconds=options.expires_after.seconds if options.expires_after else None,
    )


async def receive_part(request: Request, blobs: BlobStore, tenant_id: str, limit_bytes: int) -> tuple[str, BlobInfo]:
    """Store the part of a larger file under a blob id of its own; whatever goes wrong, no blob is left.

    Returns:
        The blob's id, and what it holds.

    Raises: as `receive_file`.
    """
    form = Form(request.headers.get("content-type", ""), _body(request), limit_bytes + _FORM_BYTES)
    blob_id = new_id("blob")
    try:
        _, stored, fields = await _read(form, "data", blobs, tenant_id, blob_id, limit_bytes)
        validated(Body, fields)
    except BaseException:
        await discard(blobs, tenant_id, blob_id)
        raise
    return blob_id, stored


def content_of(new: NewFile) -> bytes:
    """What tells one upload from another: two forms of one file differ in their boundaries."""
    return "\0".join((new.filename, new.purpose, new.sha256, str(new.expires_after_seconds))).encode()


async def discard(blobs: BlobStore, tenant_id: str, blob_id: str) -> None:
    """Remove the bytes of an upload that came to nothing, if the store allows it just now."""
    with suppress(RetryableError):
        await blobs.delete(tenant_id, blob_id)


async def _read(
    form: Form, field: str, blobs: BlobStore, tenant_id: str, blob_id: str, limit_bytes: int
) -> tuple[str, BlobInfo, dict[str, Any]]:
    """Name and content of the file in `field`, and the form's other fields, in whichever order they come."""
    filename, stored = "", None
    fields: dict[str, Any] = {}
    async for part in form.parts():
        if part.name != field:
            _set_field(fields, part.name, await form.text())
        elif stored is None:
            filename = display_name(part.filename or "")
            stored = await blobs.write(tenant_id, blob_id, form.chunks(limit_bytes))
        else:
            raise PermanentError(ErrorCode.INVALID_VALUE, "The form holds more than one file.", param=field)
    if stored is None:
        raise PermanentError(ErrorCode.MISSING_FIELD, f"Missing required parameter: '{field}'.", param=field)
    if stored.bytes == 0:
        raise PermanentError(ErrorCode.EMPTY_FILE, "The file is empty (0 bytes).", param=field)
    return filename, stored, fields


def _set_field(fields: dict[str, Any], name: str, value: str) -> None:
    """`expires_after[seconds]` is a field of an object."""
    nested = _FIELD.fullmatch(name)
    if nested is None:
        fields[name] = value
    elif isinstance(inner := fields.setdefault(nested[1], {}), dict):
        inner[nested[2]] = value


def display_name(name: str) -> str:
    """A file's name as it may be shown: its last part, without what cannot be seen, at most 255 characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in last if unicodedata.category(character) not in _HIDDEN).strip()
    if shown in ("", ".", ".."):
        return "file"
    stem, dot, suffix = shown.rpartition(".")
    if dot and len(suffix) <= 16:
        return stem[: _MAX_NAME_CHARACTERS - len(suffix) - 1] + dot + suffix
    return shown[:_MAX_NAME_CHARACTERS]


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for data in request.stream():
            if data:
                yield data
    except ClientDisconnect:
        raise ClientLeftError from None
