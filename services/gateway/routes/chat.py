"""Chat completions and embeddings: questions that keep no state."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from libs.common.contracts.chat import ANSWER, EMBED
from libs.common.contracts.requests import ChatCompletionBody, EmbeddingBody, embedding_page
from libs.common.errors import ErrorCode, PermanentError
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import GatewayDep
from services.gateway.idempotency import StatelessRoute
from services.gateway.routes.models import model_not_found, require_chat_model
from services.gateway.streams import InteractiveDep, json_response

router = APIRouter(prefix="/v1", tags=["chat"], route_class=StatelessRoute)


@router.post("/chat/completions", openapi_extra=body_schema(ChatCompletionBody))
async def create_chat_completion(
    gateway: GatewayDep,
    interactive: InteractiveDep,
    body: Annotated[ChatCompletionBody, Depends(json_body(ChatCompletionBody))],
) -> Response:
    """Answer a chat, from vector stores where `vector_store_ids` names some."""
    require_chat_model(gateway, body.model)
    if body.store:
        raise PermanentError(
            ErrorCode.INVALID_VALUE, "Stored chat completions are not offered; use the responses API.", param="store"
        )
    question = body.to_answer()
    if question.stream:
        return await interactive.stream(ANSWER, question, call_id=question.id)
    return await interactive.body(ANSWER, question, call_id=question.id)


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
