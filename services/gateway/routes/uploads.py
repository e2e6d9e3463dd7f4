"""Uploads: files too large for one request, in parts."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field
from sqlalchemy import Connection

from libs.common.blobs import BlobStore
from libs.common.contracts.requests import Body, new_id
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records import files, uploads
from libs.common.records.files import File, NewFile
from libs.common.records.uploads import NewUpload, Upload, UploadPart
from services.gateway import attachments
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import AdmittedDep, Gateway, GatewayDep
from services.gateway.file_views import file_object
from services.gateway.idempotency import ReplayedRoute, Unkeyed, client_key, once
from services.gateway.streams import json_response
from services.gateway.uploads import ExpiresAfter, Purpose, discard, display_name, receive_part

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=ReplayedRoute)
# A part is read as it arrives, so that its route cannot be guarded by its whole body.
parts_router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_MAX_PARTS: Final = 10_000


class CreateUpload(Body):
    """POST /v1/uploads."""

    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    purpose: Purpose
    bytes: Annotated[int, Field(ge=0)]
    mime_type: Annotated[str, Field(max_length=256)]  # types are sniffed, never believed
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(min_length=1, max_length=_MAX_PARTS)]
    md5: Annotated[str, Field(max_length=64)] | None = None


@router.post("", openapi_extra=body_schema(CreateUpload))
async def create_upload(
    gateway: GatewayDep, principal: AdmittedDep, body: Annotated[CreateUpload, Depends(json_body(CreateUpload))]
) -> Response:
    """Begin an upload, open for an hour."""
    if body.bytes > gateway.settings.max_upload_bytes:
        message = f"An upload may have at most {gateway.settings.max_upload_bytes} bytes."
        raise PermanentError(ErrorCode.BODY_TOO_LARGE, message, param="bytes")
    new = NewUpload(
        id=new_id("upload"),
        filename=display_name(body.filename),
        purpose=body.purpose,
        bytes=body.bytes,
        file_expires_after_seconds=body.expires_after.seconds if body.expires_after else None,
    )
    upload = await gateway.database.write(lambda connection: uploads.insert(connection, principal.tenant_id, new))
    return json_response(_object(upload))


@parts_router.post("/{upload_id}/parts")
async def add_part(upload_id: str, request: Request, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Store one part, sealed as it arrives. Parts may come side by side and in any order."""
    tenant_id = principal.tenant_id
    client_key(request)  # refused before its bytes are read if it is none
    upload = await gateway.database.read(lambda connection: uploads.get(connection, tenant_id, upload_id))
    uploads.require_pending(upload)
    blob_id, stored = await receive_part(request, gateway.blobs, tenant_id, gateway.settings.max_part_bytes)
    kept = False

    async def record() -> Response:
        nonlocal kept
        new = UploadPart(new_id("part"), upload_id, blob_id, stored.bytes, 0.0)
        part = await gateway.database.write(lambda connection: uploads.add_part(connection, tenant_id, new))
        kept = part.blob_id == blob_id
        return json_response(_part_object(part))

    try:
        content = stored.sha256.encode()
        response = await once(request, gateway, principal, content, record, unkeyed=Unkeyed.IDS)
    except Exception:
        # Not when cancelled: the commit may still happen then, and a record must never lose its bytes.
        if not kept:
            await discard(gateway.blobs, tenant_id, blob_id)
        raise
    if not kept:
        await discard(gateway.blobs, tenant_id, blob_id)
    return response


@router.post("/{upload_id}/complete", openapi_extra=body_schema(CompleteUpload))
async def complete_upload(
    upload_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[CompleteUpload, Depends(json_body(CompleteUpload))],
) -> Response:
    """Join the parts, in the order given, to a file."""
    tenant_id, file_id = principal.tenant_id, new_id("file")

    def read(connection: Connection) -> tuple[Upload, list[UploadPart]]:
        found = uploads.get(connection, tenant_id, upload_id)
        if found.file_id == file_id:  # an earlier run of this request got so far
            return found, []
        uploads.require_pending(found)
        return found, uploads.parts_in_order(connection, tenant_id, found, body.part_ids)

    upload, parts = await gateway.database.read(read)
    if upload.file_id == file_id:
        file = await gateway.database.read(lambda connection: files.get(connection, tenant_id, file_id))
        return json_response(_object(upload, file))
    new = await _joined(gateway.blobs, upload, parts, file_id, body.md5)

    def record(connection: Connection) -> tuple[Upload, File]:
        file, blob_ids = uploads.complete(connection, tenant_id, upload_id, new)
        attachments.purge_blobs(connection, gateway.messages, tenant_id, upload_id, blob_ids)
        return uploads.get(connection, tenant_id, upload_id), file

    kept = False
    try:
        upload, file = await gateway.database.write(record)
        kept = file.blob_id == new.blob_id
    finally:
        # Not when cancelled: the commit may still happen then, and a record must never lose its bytes.
        if not kept and not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            await discard(gateway.blobs, tenant_id, new.blob_id)
    gateway.dispatcher.nudge()
    return json_response(_object(upload, file))


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Give an upload up; its parts are removed."""
    return json_response(_object(await _cancelled(gateway, principal.tenant_id, upload_id)))


async def _cancelled(gateway: Gateway, tenant_id: str, upload_id: str) -> Upload:
    def cancel(connection: Connection) -> Upload:
        blob_ids = uploads.cancel(connection, tenant_id, upload_id)
        attachments.purge_blobs(connection, gateway.messages, tenant_id, upload_id, blob_ids)
        return uploads.get(connection, tenant_id, upload_id)

    upload = await gateway.database.write(cancel)
    gateway.dispatcher.nudge()
    return upload


async def _joined(
    blobs: BlobStore, upload: Upload, parts: Sequence[UploadPart], file_id: str, md5: str | None
) -> NewFile:
    """The whole file, in a blob of its own."""
    if not upload.bytes:
        raise PermanentError(ErrorCode.EMPTY_FILE, "The file is empty (0 bytes).", param="bytes")
    digest = hashlib.md5(usedforsecurity=False)
    blob_id = new_id("blob")

    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            async for chunk in blobs.read(upload.tenant_id, part.blob_id):
                digest.update(chunk)
                yield chunk

    stored = await blobs.write(upload.tenant_id, blob_id, content())
    if md5 is not None and digest.hexdigest() != md5.lower():
        await discard(blobs, upload.tenant_id, blob_id)
        raise PermanentError(ErrorCode.INVALID_VALUE, "The bytes that arrived have another MD5.", param="md5")
    return NewFile(
        id=file_id,
        filename=upload.filename,
        purpose=upload.purpose,
        bytes=stored.bytes,
        sha256=stored.sha256,
        blob_id=blob_id,
        expires_after_seconds=upload.file_expires_after_seconds,
    )


def _object(upload: Upload, file: File | None = None) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_object(file),
    }


def _part_object(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created_at),
        "upload_id": part.upload_id,
    }
