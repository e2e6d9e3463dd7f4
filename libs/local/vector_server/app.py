"""The REST API as a Starlette application. Every engine call runs in a thread; the event loop only moves bytes."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from libs.local.vector_server import reads, writes
from libs.local.vector_server.collection import Collection
from libs.local.vector_server.errors import QdrantError
from libs.local.vector_server.storage import Catalog

BODY_LIMIT_BYTES: Final = 64 * 1024 * 1024
FLUSH_INTERVAL_SECONDS: Final = 10.0
# qdrant-client compares minor versions and accepts a difference of one.
VERSION: Final = {"title": "vector server on the qdrant-edge engine", "version": "1.19.0"}

Endpoint = Callable[[Request], Awaitable[Response]]
BodyT = TypeVar("BodyT", bound=BaseModel)

_log = logging.getLogger("docent.vector_server")


def create_app(path: Path) -> Starlette:
    """The application over the directory, which it opens at start-up and closes at shutdown."""
    return Starlette(
        routes=_service_routes() + _catalog_routes() + _point_routes(),
        lifespan=partial(_lifespan, path),
        exception_handlers={QdrantError: _refused, HTTPException: _no_such_route, Exception: _crashed},
    )


@asynccontextmanager
async def _lifespan(path: Path, app: Starlette) -> AsyncIterator[None]:
    app.state.catalog = catalog = await run_in_threadpool(Catalog, path)
    flushing = asyncio.create_task(_flush_periodically(catalog))
    try:
        yield
    finally:
        flushing.cancel()
        with suppress(asyncio.CancelledError):
            await flushing
        await run_in_threadpool(catalog.close)


async def _flush_periodically(catalog: Catalog) -> None:
    while True:
        await asyncio.sleep(FLUSH_INTERVAL_SECONDS)
        try:
            await run_in_threadpool(catalog.flush)
        except QdrantError as error:
            # The write-ahead log still holds everything; a full disk may have room again next time.
            _log.error("flush failed: %s", error.message)


def _service_routes() -> list[Route]:
    async def root(_: Request) -> Response:
        return Response(orjson.dumps(VERSION), media_type="application/json")

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("healthz check passed")

    return [Route("/", root), *(Route(path, healthy) for path in ("/healthz", "/livez", "/readyz"))]


def _catalog_routes() -> list[Route]:
    name = "/collections/{name}"
    return [
        Route("/collections", _endpoint(_list_collections)),
        Route("/aliases", _endpoint(_list_aliases)),
        Route("/collections/aliases", _endpoint(_update_aliases), methods=["POST"]),
        Route(name, _endpoint(lambda request, _: _collection(request).info()), methods=["GET"]),
        Route(name, _endpoint(_create_collection), methods=["PUT"]),
        Route(name, _endpoint(lambda request, _: _catalog(request).delete(_name(request))), methods=["DELETE"]),
        Route(f"{name}/exists", _endpoint(_exists)),
        Route(f"{name}/aliases", _endpoint(_list_aliases)),
        Route(f"{name}/index/{{field:path}}", _endpoint(_delete_index), methods=["DELETE"]),
    ]


def _point_routes() -> list[Route]:
    return [
        _operation("PUT", "/index", writes.CreateIndex, Collection.create_index),
        _operation("PUT", "/points", writes.Upsert, Collection.upsert),
        _operation("POST", "/points", reads.Retrieve, Collection.retrieve),
        _operation("POST", "/points/delete", writes.Selector, Collection.delete),
        _operation("POST", "/points/payload", writes.SetPayload, Collection.set_payload),
        _operation("PUT", "/points/payload", writes.SetPayload, Collection.overwrite_payload),
        _operation("POST", "/points/payload/delete", writes.DeletePayload, Collection.delete_payload),
        _operation("POST", "/points/count", reads.Count, Collection.count),
        _operation("POST", "/points/scroll", reads.Scroll, Collection.scroll),
        _operation("POST", "/points/query", reads.QueryRequest, Collection.query),
        _operation("POST", "/points/query/batch", reads.QueryBatch, Collection.query_batch),
    ]


def _operation(method: str, path: str, model: type[BodyT], operation: Callable[[Collection, BodyT], object]) -> Route:
    def run(request: Request, body: bytes) -> object:
        collection = _collection(request)
        return operation(collection, _parse(model, body))

    return Route(f"/collections/{{name}}{path}", _endpoint(run), methods=[method])


def _endpoint(run: Callable[[Request, bytes], object]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        body = await _read(request)

        def respond() -> bytes:
            result = run(request, body)
            return orjson.dumps({"result": result, "status": "ok", "time": time.perf_counter() - started})

        return Response(await run_in_threadpool(respond), media_type="application/json")

    return endpoint


def _list_collections(request: Request, _: bytes) -> object:
    return {"collections": [{"name": name} for name in _catalog(request).names()]}


def _create_collection(request: Request, body: bytes) -> bool:
    _catalog(request).create(_name(request), _parse(writes.CollectionSpec, body))
    return True


def _exists(request: Request, _: bytes) -> object:
    return {"exists": _catalog(request).find(_name(request)) is not None}


def _list_aliases(request: Request, _: bytes) -> object:
    aliases = _catalog(request).aliases(request.path_params.get("name"))
    return {"aliases": [{"alias_name": alias, "collection_name": target} for alias, target in aliases.items()]}


def _update_aliases(request: Request, body: bytes) -> bool:
    _catalog(request).update_aliases(_parse(writes.UpdateAliases, body).actions)
    return True


def _delete_index(request: Request, _: bytes) -> object:
    return _collection(request).delete_index(request.path_params["field"])


def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


def _collection(request: Request) -> Collection:
    return _catalog(request).collection(_name(request))


async def _read(request: Request) -> bytes:
    """The body; QdrantError 413 as soon as it is too long, whatever its declared length."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT_BYTES:
            raise QdrantError(413, f"Payload too large: a request body is limited to {BODY_LIMIT_BYTES} bytes")
    return bytes(body)


def _parse(model: type[BodyT], body: bytes) -> BodyT:
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise QdrantError(400, f"Format error in JSON body: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise QdrantError(400, f"Format error in JSON body: {where}: {first['msg']}") from error


def _failure(status: int, message: str) -> Response:
    body = orjson.dumps({"status": {"error": message}, "time": 0.0})
    return Response(body, status_code=status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, QdrantError):
        raise error
    if error.status >= 500:
        _log.error("engine failure: %s", error.message)
    return _failure(error.status, error.message)


async def _no_such_route(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _failure(error.status_code, error.detail)


async def _crashed(_: Request, error: Exception) -> Response:
    return _failure(500, f"Service internal error: {type(error).__name__}")
