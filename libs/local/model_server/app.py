"""The routes. The event loop only moves bytes; models run in threads."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from libs.common.errors import ErrorCode, PermanentError, PlatformError
from libs.local.model_server import errors
from libs.local.model_server.completions import Completion, as_events, as_object, complete
from libs.local.model_server.embeddings import EmbeddingService, MiniLM, Vectors
from libs.local.model_server.wire import ChatRequest, EmbeddingRequest

EMBEDDING_MODEL: Final = "all-minilm-l6-v2"
CHAT_MODEL: Final = "docent-extractive"
BODY_LIMIT_BYTES: Final = 32 * 1024 * 1024
_MODELS: Final = {
    name: {"id": name, "object": "model", "created": 1_750_000_000, "owned_by": "docent"}
    for name in (CHAT_MODEL, EMBEDDING_MODEL)
}

BodyT = TypeVar("BodyT", bound=BaseModel)


def create_app() -> Starlette:
    """The application; it loads and checks the weights at start-up."""
    return Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/v1/models", _list_models),
            Route("/v1/models/{id:path}", _get_model),
            Route("/v1/embeddings", _create_embeddings, methods=["POST"]),
            Route("/v1/chat/completions", _create_chat_completion, methods=["POST"]),
        ],
        lifespan=_lifespan,
        exception_handlers={
            PlatformError: errors.refused,
            HTTPException: errors.no_such_route,
            Exception: errors.crashed,
        },
    )


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.model = await run_in_threadpool(MiniLM)
    app.state.embeddings = EmbeddingService(app.state.model)
    try:
        yield
    finally:
        await run_in_threadpool(app.state.embeddings.close)


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _list_models(_: Request) -> Response:
    return _json({"object": "list", "data": list(_MODELS.values())})


async def _get_model(request: Request) -> Response:
    name: str = request.path_params["id"]
    if name not in _MODELS:
        raise _model_not_found(name)
    return _json(_MODELS[name])


async def _create_embeddings(request: Request) -> Response:
    wanted = await _parse(EmbeddingRequest, request)
    _require_model(wanted.model, EMBEDDING_MODEL)
    service: EmbeddingService = request.app.state.embeddings
    vectors, tokens = await service.embed(wanted.input)
    encoded = _base64(vectors) if wanted.encoding_format == "base64" else vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(encoded)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage})


async def _create_chat_completion(request: Request) -> Response:
    wanted = await _parse(ChatRequest, request)
    _require_model(wanted.model, CHAT_MODEL)
    completion = await run_in_threadpool(complete, wanted, request.app.state.model)
    if wanted.stream:
        return StreamingResponse(_events(completion, wanted), media_type="text/event-stream")
    return Response(as_object(completion), media_type="application/json")


async def _events(completion: Completion, wanted: ChatRequest) -> AsyncIterator[bytes]:
    # An async generator, because Starlette would take a thread for every event of a plain one.
    for event in as_events(completion, include_usage=wanted.includes_usage):
        yield event


async def _parse(model: type[BodyT], request: Request) -> BodyT:
    body = await _read(request)
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise PermanentError(ErrorCode.INVALID_JSON, f"The request body is not valid JSON: {error}.") from error
    except ValidationError as error:
        raise errors.invalid(error) from error


async def _read(request: Request) -> bytes:
    """The body; `request_too_large` as soon as it is too long, whatever its declared length."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT_BYTES:
            raise PermanentError(ErrorCode.BODY_TOO_LARGE, f"A request body is limited to {BODY_LIMIT_BYTES} bytes.")
    return bytes(body)


def _require_model(name: str, served: str) -> None:
    if name != served:
        raise _model_not_found(name)


def _model_not_found(name: str) -> PermanentError:
    message = f"The model '{name}' does not exist or does not serve this path."
    return PermanentError(ErrorCode.MODEL_NOT_FOUND, message, param="model")


def _base64(vectors: Vectors) -> list[str]:
    """Each vector as base64 of little-endian float32."""
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
