"""Many files attached to a vector store by one request."""

from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field, model_validator
from sqlalchemy import Connection

from libs.common.contracts.requests import Body, new_id
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records import file_batches, vector_store_files
from libs.common.records.paging import Page, listing
from libs.common.records.vector_store_files import AttachedFile, Status
from services.gateway import attachments
from services.gateway.attachments import Wanted
from services.gateway.bodies import body_schema, json_body
from services.gateway.chunking_bodies import AUTO, AttributesBody, ChunkingBody, FileId, chunking_json
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.file_views import POLL_HEADERS, attached_object, file_batch_object
from services.gateway.idempotency import IdempotentRoute
from services.gateway.parameters import PageDep
from services.gateway.streams import json_response

router = APIRouter(
    prefix="/v1/vector_stores/{store_id}/file_batches", tags=["vector store file batches"], route_class=IdempotentRoute
)

_MAX_FILES: Final = 2000


class BatchFile(Body):
    """One file of a batch, with options of its own."""

    file_id: FileId
    attributes: AttributesBody | None = None
    chunking_strategy: ChunkingBody | None = None


class CreateFileBatch(Body):
    """POST /v1/vector_stores/{id}/file_batches. A batch of no files is complete at once."""

    file_ids: Annotated[tuple[FileId, ...], Field(max_length=_MAX_FILES)] | None = None
    files: Annotated[tuple[BatchFile, ...], Field(max_length=_MAX_FILES)] | None = None
    attributes: AttributesBody | None = None
    chunking_strategy: ChunkingBody = AUTO

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.file_ids or ()) + len(self.files or ()) > _MAX_FILES:
            raise ValueError(f"has more than {_MAX_FILES} files")
        return self

    def wanted(self) -> list[Wanted]:
        """Each file once, with its own options or else the batch's; where both lists name it, `files` counts."""
        named = (*(BatchFile(file_id=file_id) for file_id in self.file_ids or ()), *(self.files or ()))
        return [
            Wanted(
                file.file_id,
                (self.attributes if file.attributes is None else file.attributes) or {},
                chunking_json(file.chunking_strategy or self.chunking_strategy),
            )
            for file in {file.file_id: file for file in named}.values()
        ]


@router.post("", openapi_extra=body_schema(CreateFileBatch))
async def create_file_batch(
    store_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[CreateFileBatch, Depends(json_body(CreateFileBatch))],
) -> Response:
    """Attach files, all or none."""
    tenant_id, file_batch_id = principal.tenant_id, new_id("vsfb")

    def create(connection: Connection) -> dict[str, Any]:
        if file_batches.exists(connection, tenant_id, file_batch_id):
            return _shown(connection, tenant_id, store_id, file_batch_id)  # by an earlier run of the same request
        attachments.attach_files(connection, gateway.messages, tenant_id, store_id, body.wanted(), file_batch_id)
        file_batches.create(connection, tenant_id, store_id, file_batch_id)
        return _shown(connection, tenant_id, store_id, file_batch_id)

    reply = await gateway.database.write(create)
    gateway.dispatcher.nudge()
    return json_response(reply, headers=POLL_HEADERS)


@router.get("/{file_batch_id}")
async def retrieve_file_batch(
    store_id: str, file_batch_id: str, gateway: GatewayDep, principal: AdmittedDep
) -> Response:
    """One batch with the counts of its files."""
    reply = await gateway.database.read(
        lambda connection: _shown(connection, principal.tenant_id, store_id, file_batch_id)
    )
    return json_response(reply, headers=POLL_HEADERS if reply["status"] == "in_progress" else None)


@router.post("/{file_batch_id}/cancel")
async def cancel_file_batch(store_id: str, file_batch_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Stop what is still being made searchable; files that are so already stay."""
    tenant_id = principal.tenant_id

    def cancel(connection: Connection) -> dict[str, Any]:
        batch = file_batches.get(connection, tenant_id, store_id, file_batch_id)
        if file_batches.counts(connection, tenant_id, file_batch_id).in_progress == 0 and not batch.cancelled:
            raise PermanentError(ErrorCode.JOB_NOT_CANCELLABLE, f"File batch '{file_batch_id}' has ended already.")
        for job_id in file_batches.cancel(connection, batch):
            attachments.cancel_job(connection, gateway.messages, tenant_id, job_id)
        return _shown(connection, tenant_id, store_id, file_batch_id)

    return json_response(await gateway.database.write(cancel))


@router.get("/{file_batch_id}/files")
async def list_batch_files(
    store_id: str,
    file_batch_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    query: PageDep,
    status: Annotated[Status | None, Query(alias="filter")] = None,
) -> Response:
    """A page of a batch's files, newest first."""

    def read(connection: Connection) -> Page[AttachedFile]:
        file_batches.get(connection, principal.tenant_id, store_id, file_batch_id)
        return vector_store_files.list_page(
            connection, principal.tenant_id, store_id, query, status=status, file_batch_id=file_batch_id
        )

    return json_response(listing((await gateway.database.read(read)).of(attached_object)))


def _shown(connection: Connection, tenant_id: str, store_id: str, file_batch_id: str) -> dict[str, Any]:
    batch = file_batches.get(connection, tenant_id, store_id, file_batch_id)
    counts = file_batches.counts(connection, tenant_id, file_batch_id)
    return file_batch_object(batch.id, store_id, batch.created_at, counts, cancelled=batch.cancelled)
