"""Chat completions and embeddings: questions that keep no state, unless a completion is to be stored."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.chat import ANSWER, EMBED
from libs.common.contracts.chat_requests import ChatCompletionBody
from libs.common.contracts.requests import EmbeddingBody, embedding_page
from libs.common.errors import ErrorCode, PermanentError
from services.gateway.answer_cache import answered
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import GatewayDep
from services.gateway.idempotency import StatelessRoute, Unkeyed, client_key, once
from services.gateway.routes.models import model_not_found, require_chat_model
from services.gateway.streams import Interactive, InteractiveDep, json_response

router = APIRouter(prefix="/v1", tags=["chat"], route_class=StatelessRoute)


@router.post("/chat/completions", openapi_extra=body_schema(ChatCompletionBody))
async def create_chat_completion(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[ChatCompletionBody, Depends(json_body(ChatCompletionBody))],
) -> Response:
    """Answer a chat, from vector stores where `vector_store_ids` names some, and store the answer where asked to."""
    require_chat_model(gateway, body.model)
    return await (_stored(interactive, body) if body.store else answered(interactive, body.to_answer()))


async def _stored(interactive: Interactive, body: ChatCompletionBody) -> Response:
    request = interactive.request

    async def run() -> Response:
        question = body.to_answer()  # here, where its id follows from the request's seed
        if question.stream:
            return await interactive.stream(ANSWER, question, call_id=question.id)
        return await interactive.body(ANSWER, question, call_id=question.id)

    # Whoever sent a key is guarded by it already, and streams are not remembered without one.
    if body.stream or client_key(request) is not None:
        return await run()
    whole = await request.body()
    return await once(request, interactive.gateway, interactive.principal, whole, run, unkeyed=Unkeyed.REPLY)


@router.post("/embeddings", openapi_extra=body_schema(EmbeddingBody))
async def create_embeddings(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[EmbeddingBody, Depends(json_body(EmbeddingBody))],
) -> Response:
    """Embed texts by the platform's embedding model."""
    settings = gateway.settings
    if body.model != settings.embedding_model:
        raise model_not_found()
    if body.dimensions not in (None, settings.embedding_dimensions):
        raise PermanentError(
            ErrorCode.INVALID_VALUE,
            f"This model has {settings.embedding_dimensions} dimensions and no other number.",
            param="dimensions",
        )
    reply, headers = await interactive.answer(EMBED, body.to_embed())
    page = embedding_page(body.model, reply.vectors, reply.tokens, encoding_format=body.encoding_format)
    return json_response(page, headers=headers)
