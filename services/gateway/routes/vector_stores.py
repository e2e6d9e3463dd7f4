"""Vector stores: their records, and searching them."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from sqlalchemy import Connection

from libs.common.contracts.chat import SEARCH, SearchRequest
from libs.common.contracts.filters import Filter
from libs.common.contracts.requests import Body, Metadata, RankingOptions, new_id, retrieval_of
from libs.common.records import vector_stores
from libs.common.records.paging import Page, listing
from libs.common.records.vector_stores import VectorStore
from services.gateway import attachments, reindexing
from services.gateway.attachments import Wanted
from services.gateway.auth import Principal
from services.gateway.bodies import body_schema, json_body
from services.gateway.chunking_bodies import AUTO, ChunkingBody, FileId, chunking_json
from services.gateway.dependencies import AdmittedDep, Gateway, GatewayDep
from services.gateway.file_views import search_object, store_object
from services.gateway.idempotency import IdempotentRoute, stateless
from services.gateway.parameters import PageDep
from services.gateway.routes.jobs import shown_job
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"], route_class=IdempotentRoute)

# A use is noted at most once in so many seconds: searching should not wait for a disk.
_ACTIVE_SECONDS: Final = 60.0

Name = Annotated[str, Field(max_length=256)]
Instructions = Annotated[str, Field(max_length=16_000)]
Text = Annotated[str, Field(min_length=1, max_length=16_384)]


class ExpiresAfter(Body):
    """How long after its last use a vector store expires."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Field(ge=1, le=365)]


class CreateVectorStore(Body):
    """POST /v1/vector_stores. `instructions` are ours: to the model, with every answer that searches the store."""

    name: Name | None = None
    description: Annotated[str, Field(max_length=512)] | None = None  # accepted; OpenAI's replies have none either
    file_ids: Annotated[tuple[FileId, ...], Field(max_length=500)] = ()
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: ChunkingBody = AUTO
    instructions: Instructions | None = None


class UpdateVectorStore(Body):
    """POST /v1/vector_stores/{id}. `instructions` of null are removed."""

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    instructions: Instructions | None = None


class ReindexVectorStore(Body):
    """POST /v1/vector_stores/{id}/reindex; without a model, the one that the store has."""

    model: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class SearchBody(Body):
    """POST /v1/vector_stores/{id}/search."""

    query: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=16)]
    filters: Filter | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = False  # accepted; questions are searched as they are

    @property
    def queries(self) -> tuple[str, ...]:
        return (self.query,) if isinstance(self.query, str) else self.query


async def require_stores(gateway: Gateway, principal: Principal, store_ids: Sequence[str]) -> None:
    """Make sure that these can be searched, and note that they are in use.

    Raises:
        PermanentError: NOT_FOUND, for a missing, foreign or expired one alike.
    """
    tenant_id = principal.tenant_id
    stores = await gateway.database.read(
        lambda connection: vector_stores.require_stores(connection, tenant_id, store_ids)
    )
    idle = [store.id for store in stores if store.last_active_at < time.time() - _ACTIVE_SECONDS]
    if idle:
        await gateway.database.write(lambda connection: vector_stores.touch(connection, tenant_id, idle))


@router.post("", openapi_extra=body_schema(CreateVectorStore))
async def create_vector_store(
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[CreateVectorStore, Depends(json_body(CreateVectorStore))],
) -> Response:
    """Make a vector store, with files in it if some are named."""
    tenant_id, store_id = principal.tenant_id, new_id("vs")
    chunking = chunking_json(body.chunking_strategy)

    def create(connection: Connection) -> dict[str, Any]:
        created = vector_stores.create(
            connection,
            tenant_id,
            store_id=store_id,
            name=body.name or "",
            metadata=body.metadata or {},
            embedding_model=gateway.settings.embedding_model,
            instructions=body.instructions,
            expires_after_days=body.expires_after.days if body.expires_after else None,
        )
        for file_id in dict.fromkeys(body.file_ids if created else ()):
            wanted = Wanted(file_id, {}, chunking)
            attachments.attach_file(connection, gateway.messages, tenant_id, store_id, wanted)
        return _shown(connection, tenant_id, store_id)

    reply = await gateway.database.write(create)
    gateway.dispatcher.nudge()
    return json_response(reply)


@router.get("")
async def list_vector_stores(
    gateway: GatewayDep,
    principal: AdmittedDep,
    query: PageDep,
) -> Response:
    """A page of vector stores, newest first."""

    def read(connection: Connection) -> Page[dict[str, Any]]:
        page = vector_stores.list_page(connection, principal.tenant_id, query)
        counts = vector_stores.counts(connection, principal.tenant_id, [store.id for store in page.items])
        return page.of(lambda store: store_object(store, counts[store.id]))

    return json_response(listing(await gateway.database.read(read)))


@router.get("/{store_id}")
async def retrieve_vector_store(store_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """One vector store."""
    return json_response(
        await gateway.database.read(lambda connection: _shown(connection, principal.tenant_id, store_id))
    )


@router.post("/{store_id}", openapi_extra=body_schema(UpdateVectorStore))
async def update_vector_store(
    store_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[UpdateVectorStore, Depends(json_body(UpdateVectorStore))],
) -> Response:
    """Change what is given; the rest stays. `expires_after` of null means never, `instructions` of null are removed."""
    days = body.expires_after.days if body.expires_after else 0
    change_expiry = "expires_after" in body.model_fields_set

    def change(connection: Connection) -> dict[str, Any]:
        vector_stores.update(
            connection,
            principal.tenant_id,
            store_id,
            name=body.name,
            metadata=body.metadata,
            instructions=(body.instructions or "") if "instructions" in body.model_fields_set else None,
            expires_after_days=days if change_expiry else None,
        )
        return _shown(connection, principal.tenant_id, store_id)

    return json_response(await gateway.database.write(change))


@router.delete("/{store_id}")
async def delete_vector_store(store_id: str, gateway: GatewayDep, principal: AdmittedDep) -> Response:
    """Delete a vector store; the files in it stay."""
    await gateway.database.write(
        lambda connection: attachments.delete_store(connection, gateway.messages, principal.tenant_id, store_id)
    )
    gateway.dispatcher.nudge()
    return json_response({"id": store_id, "object": "vector_store.deleted", "deleted": True})


@router.post("/{store_id}/search", openapi_extra=body_schema(SearchBody))
@stateless
async def search_vector_store(
    store_id: str,
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[SearchBody, Depends(json_body(SearchBody))],
) -> Response:
    """The passages of a vector store that fit a question best."""
    await require_stores(gateway, interactive.principal, [store_id])
    retrieval = retrieval_of((store_id,), body.filters, body.max_num_results, body.ranking_options)
    reply, headers = await interactive.answer(SEARCH, SearchRequest(queries=body.queries, retrieval=retrieval))
    page = {
        "object": "vector_store.search_results.page",
        "search_query": list(body.queries),
        "data": [search_object(result) for result in reply.results],
        "has_more": False,
        "next_page": None,
    }
    return json_response(page, headers=headers)


@router.post("/{store_id}/reindex", openapi_extra=body_schema(ReindexVectorStore))
async def reindex_vector_store(
    store_id: str,
    gateway: GatewayDep,
    principal: AdmittedDep,
    body: Annotated[ReindexVectorStore, Depends(json_body(ReindexVectorStore))],
) -> Response:
    """Build a vector store anew while it answers as before, with another embedding model or the same.

    The reply is the job.
    """
    tenant_id, offered = principal.tenant_id, gateway.settings.dimensions_by_model()

    def begin(connection: Connection) -> dict[str, Any]:
        job_id = reindexing.begin(connection, gateway.messages, tenant_id, store_id, model=body.model, offered=offered)
        return shown_job(connection, tenant_id, job_id)

    job = await gateway.database.write(begin)
    gateway.dispatcher.nudge()
    return json_response(job, status=202, headers={"location": f"/v1/jobs/{job['id']}"})


def _shown(connection: Connection, tenant_id: str, store_id: str) -> dict[str, Any]:
    store: VectorStore = vector_stores.get(connection, tenant_id, store_id)
    return store_object(store, vector_stores.counts(connection, tenant_id, [store_id])[store_id])
