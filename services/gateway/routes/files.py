"""Files: bytes in and out, and their records."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from libs.common.contracts.requests import new_id
from libs.common.records import files
from libs.common.records.paging import PageQuery, listing
from services.gateway import attachments
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.file_views import file_object
from services.gateway.idempotency import Unkeyed, client_key, once
from services.gateway.parameters import Cursor
from services.gateway.streams import json_response
from services.gateway.uploads import content_of, discard, receive_file

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("")
async def create_file(request: Request, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Store a file, sealed as it arrives."""
    tenant_id = principal.tenant_id
    client_key(request)  # refused before its bytes are read if it is none
    new = await receive_file(request, gateway.blobs, tenant_id, gateway.settings.max_file_bytes)
    kept = False

    async def record() -> Response:
        nonlocal kept
        # The id is made here, where it follows from the request's seed.
        named = replace(new, id=new_id("file"))
        file = await gateway.database.write(lambda connection: files.insert(connection, tenant_id, named))
        kept = file.blob_id == new.blob_id
        return json_response(file_object(file))

    try:
        response = await once(request, gateway, principal, content_of(new), record, unkeyed=Unkeyed.IDS)
    except Exception:
        # Not when cancelled: the commit may still happen then, and a record must never lose its bytes.
        if not kept:
            await discard(gateway.blobs, tenant_id, new.blob_id)
        raise
    if not kept:
        await discard(gateway.blobs, tenant_id, new.blob_id)
    return response


@router.get("")
async def list_files(
    gateway: GatewayDep,
    principal: AdmittedDep,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=32)] = None,
) -> Response:
    """A page of files, newest first."""
    query = PageQuery(after, limit, order)
    page = await gateway.database.read(
        lambda connection: files.list_page(connection, principal.tenant_id, query, purpose=purpose)
    )
    return json_response(listing(page.of(file_object)))


@router.get("/{file_id}")
async def retrieve_file(file_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """One file."""
    file = await gateway.database.read(lambda connection: files.get(connection, principal.tenant_id, file_id))
    return json_response(file_object(file))


@router.delete("/{file_id}")
async def delete_file(file_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Delete a file; it answers no longer in any vector store."""
    await gateway.database.write(
        lambda connection: attachments.delete_file(connection, gateway.messages, principal.tenant_id, file_id)
    )
    gateway.dispatcher.nudge()
    return json_response({"id": file_id, "object": "file", "deleted": True})


@router.get("/{file_id}/content")
async def retrieve_content(file_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """The bytes of a file."""
    tenant_id = principal.tenant_id
    file = await gateway.database.read(lambda connection: files.get(connection, tenant_id, file_id))
    content = gateway.blobs.read(tenant_id, file.blob_id)
    # Read before the response begins, so that a file that cannot be read is a plain error.
    first = await anext(content, b"")
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_whole(first, content), headers=headers, media_type="application/octet-stream")


async def _whole(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
