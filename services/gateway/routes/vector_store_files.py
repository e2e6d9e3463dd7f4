"""Files in vector stores: attaching one makes it searchable by a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import ValidationInfo, field_validator

from libs.common.contracts.file_content import READ_FILE, ReadFile
from libs.common.contracts.requests import Body
from libs.common.records import vector_store_files
from libs.common.records.paging import listing
from libs.common.records.vector_store_files import AttachedFile, FileKey, Status
from services.gateway import attachments
from services.gateway.attachments import Wanted
from services.gateway.bodies import body_schema, json_body
from services.gateway.chunking_bodies import AUTO, AttributesBody, ChunkingBody, FileId, chunking_json
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.file_views import POLL_HEADERS, attached_object
from services.gateway.idempotency import IdempotentRoute
from services.gateway.parameters import PageDep
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(
    prefix="/v1/vector_stores/{store_id}/files", tags=["vector store files"], route_class=IdempotentRoute
)


class AttachFile(Body):
    """POST /v1/vector_stores/{id}/files."""

    file_id: FileId
    attributes: AttributesBody | None = None
    chunking_strategy: ChunkingBody = AUTO
    replaces: FileId | None = None  # beyond OpenAI's

    @field_validator("replaces")
    @classmethod
    def _is_another(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value == info.data.get("file_id"):
            raise ValueError("must be another file than file_id")
        return value


class UpdateAttributes(Body):
    """POST /v1/vector_stores/{id}/files/{file}."""

    attributes: AttributesBody | None


@router.post("", openapi_extra=body_schema(AttachFile))
async def attach_file(
    store_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[AttachFile, Depends(json_body(AttachFile))],
) -> Response:
    """Attach a file; once its status is `completed` it can be found, and no longer the one that it replaces."""
    wanted = Wanted(body.file_id, body.attributes or {}, chunking_json(body.chunking_strategy), body.replaces)
    attached = await gateway.database.write(
        lambda connection: attachments.attach_file(connection, gateway.messages, principal.tenant_id, store_id, wanted)
    )
    gateway.dispatcher.nudge()
    return _shown(attached)


@router.get("")
async def list_attached_files(
    store_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    query: PageDep,
    status: Annotated[Status | None, Query(alias="filter")] = None,
) -> Response:
    """A page of a vector store's files, newest first."""
    page = await gateway.database.read(
        lambda connection: vector_store_files.list_page(connection, principal.tenant_id, store_id, query, status=status)
    )
    return json_response(listing(page.of(attached_object)))


@router.get("/{file_id}")
async def retrieve_attached_file(store_id: str, file_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """One file of a vector store."""
    key = FileKey(principal.tenant_id, store_id, file_id)
    return _shown(await gateway.database.read(lambda connection: vector_store_files.get(connection, key)))


@router.get("/{file_id}/content")
async def retrieve_content(store_id: str, file_id: str, interactive: InteractiveDep) -> Response:
    """The text of a file as it was extracted, in pieces that follow one another."""
    reply, headers = await interactive.answer(READ_FILE, ReadFile(vector_store_id=store_id, file_id=file_id))
    page = {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": piece} for piece in reply.pieces],
        "has_more": False,
        "next_page": None,
    }
    return json_response(page, headers=headers)


@router.post("/{file_id}", openapi_extra=body_schema(UpdateAttributes))
async def update_attributes(
    store_id: str,
    file_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[UpdateAttributes, Depends(json_body(UpdateAttributes))],
) -> Response:
    """Replace a file's attributes; searches follow within moments."""
    key = FileKey(principal.tenant_id, store_id, file_id)
    attached = await gateway.database.write(
        lambda connection: attachments.update_attributes(connection, gateway.messages, key, body.attributes or {})
    )
    gateway.dispatcher.nudge()
    return _shown(attached)


@router.delete("/{file_id}")
async def detach_file(store_id: str, file_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Take a file out of a vector store; the file itself stays."""
    key = FileKey(principal.tenant_id, store_id, file_id)
    await gateway.database.write(lambda connection: attachments.detach_file(connection, gateway.messages, key))
    gateway.dispatcher.nudge()
    return json_response({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})


def _shown(attached: AttachedFile) -> Response:
    in_progress = attached.status == vector_store_files.IN_PROGRESS
    return json_response(attached_object(attached), headers=POLL_HEADERS if in_progress else None)
