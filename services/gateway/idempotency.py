"""One effect for each request, however often it arrives: by the client's key, or as an SDK's retry of an equal one.

A reply with a key is kept for a day. Without a key, only a request that says it is a retry can be a repeat; fifty
equal requests sent on purpose stay fifty. Whatever a request makes has ids that follow from its seed, so running it
again after a crash finds what is there.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from enum import Enum
from typing import Any, Final, TypeVar

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from libs.common import keys
from libs.common.contracts.ids import call_id_of, new_hex, seeded_ids
from libs.common.errors import ErrorCode, PermanentError, PlatformError
from libs.common.logs import get_logger
from libs.common.records import idempotency
from libs.common.records.idempotency import Kept, Run, Wanted
from services.gateway import background
from services.gateway.auth import Principal
from services.gateway.dependencies import Gateway, get_gateway, get_principal
from services.gateway.errors import error_response, unexpected_response
from services.gateway.streams import ClientLeftError, event_stream

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])
Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_log = get_logger(__name__)
_KEY: Final = re.compile(r"[!-~]{1,255}")
_KEY_SECONDS: Final = 86_400.0
_REPEAT_SECONDS: Final = 600.0
_MAX_REPLY_BYTES: Final = 1024 * 1024
_STREAM: Final = "text/event-stream"
# Errors after which the same request may be run as if it had never come.
_NOTHING_DONE: Final = frozenset(
    {
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.INSUFFICIENT_QUOTA,
        ErrorCode.QUEUE_FULL,
        ErrorCode.QUEUE_UNAVAILABLE,
        ErrorCode.TOO_MANY_STREAMS,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.CONVERSATION_LOCKED,
        ErrorCode.STORAGE_UNAVAILABLE,
        ErrorCode.STORAGE_FULL,
    }
)


class Unkeyed(Enum):
    """What is remembered of a request without a key, for the case that the SDK sends it again."""

    NOTHING = "nothing"  # a repeat has no effect beyond its cost
    IDS = "ids"  # a repeat runs again and finds what the first one made
    REPLY = "reply"  # a repeat gets the first one's reply


class IdempotentRoute(APIRoute):
    """Routes whose POSTs find what an earlier run of them made: safe to be run again, even at the same time."""

    unkeyed = Unkeyed.IDS

    def get_route_handler(self) -> Handler:
        """The route's handler, with every POST guarded."""
        handle = super().get_route_handler()
        if "POST" not in (self.methods or ()):
            return handle
        unkeyed = Unkeyed.NOTHING if getattr(self.endpoint, "is_stateless", False) else self.unkeyed

        async def guarded(request: Request) -> Response:
            if unkeyed is Unkeyed.NOTHING and "idempotency-key" not in request.headers:
                return await handle(request)
            gateway = await get_gateway(request)
            principal = await get_principal(request, gateway)
            body = await request.body()
            streams = unkeyed is Unkeyed.REPLY and _asks_for_stream(body)
            guard = Unkeyed.NOTHING if streams else unkeyed
            return await once(request, gateway, principal, body, lambda: handle(request), unkeyed=guard)

        return guarded


class ReplayedRoute(IdempotentRoute):
    """Routes whose POSTs must not be run twice: a repeat gets the first reply."""

    unkeyed = Unkeyed.REPLY


class StatelessRoute(IdempotentRoute):
    """Routes whose POSTs leave nothing behind: guarded only where a client asks for it by a key."""

    unkeyed = Unkeyed.NOTHING


def stateless(endpoint: EndpointT) -> EndpointT:
    """Marks a POST that leaves nothing behind, among others that do."""
    endpoint.is_stateless = True  # type: ignore[attr-defined]  # functions take attributes
    return endpoint


async def once(
    request: Request,
    gateway: Gateway,
    principal: Principal,
    body: bytes,
    run: Callable[[], Awaitable[Response]],
    *,
    unkeyed: Unkeyed,
) -> Response:
    """Run a request unless it is a repeat, which gets the reply of the first.

    Args:
        body: what tells it from other requests to the same path.

    Raises:
        PermanentError: INVALID_VALUE for the key, or IDEMPOTENCY_KEY_REUSED.
        RetryableError: IDEMPOTENCY_IN_PROGRESS.
        ClientLeftError: the client left.
    """
    key = client_key(request)
    if key is None and unkeyed is Unkeyed.NOTHING:
        return await run()
    wanted = _wanted(request, principal, key, body, unkeyed)
    is_new = key is None and not is_retry(request)
    reserve = idempotency.reserve_anew if is_new else idempotency.reserve
    found = await gateway.database.write(lambda connection: reserve(connection, wanted))
    if isinstance(found, Kept):
        return await _replayed(gateway, wanted, found)
    with seeded_ids(found.seed, found.attempt):
        if key is None and unkeyed is Unkeyed.IDS:
            return await run()
        return await _Guarded(gateway, found, keyed=key is not None).answer(run)


def client_key(request: Request) -> str | None:
    """The client's key, if it sent one.

    Raises:
        PermanentError: INVALID_VALUE.
    """
    sent = request.headers.getlist("idempotency-key")
    if not sent:
        return None
    if len(sent) > 1 or not _KEY.fullmatch(sent[0]):
        message = "An Idempotency-Key is 1 to 255 visible ASCII characters, sent once."
        raise PermanentError(ErrorCode.INVALID_VALUE, message, param="Idempotency-Key")
    return sent[0]


def is_retry(request: Request) -> bool:
    """Whether the SDK says that it sent this before."""
    return re.fullmatch(r"[1-9][0-9]?", request.headers.get("x-stainless-retry-count", "")) is not None


def fingerprint_of(path: str, body: bytes, scope: str = "") -> str:
    """What tells requests apart: hex of a SHA-256."""
    digest = hashlib.sha256()
    for part in (scope.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def _wanted(request: Request, principal: Principal, key: str | None, body: bytes, unkeyed: Unkeyed) -> Wanted:
    path = request.url.path
    if key is not None:
        return Wanted(principal.tenant_id, key, fingerprint_of(path, body), _KEY_SECONDS)
    fingerprint = fingerprint_of(path, body, principal.key_id)
    lease_seconds = idempotency.LEASE_SECONDS if unkeyed is Unkeyed.REPLY else 0.0
    # The space keeps it apart from clients' keys, which have none.
    return Wanted(principal.tenant_id, f" {fingerprint}", fingerprint, _REPEAT_SECONDS, lease_seconds)


def _asks_for_stream(body: bytes) -> bool:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("stream") is True


class _Guarded:
    """One run of a request whose reply is to be kept."""

    def __init__(self, gateway: Gateway, run: Run, *, keyed: bool) -> None:
        self._gateway = gateway
        self._run = run
        self._keyed = keyed

    async def answer(self, run: Callable[[], Awaitable[Response]]) -> Response:
        """Run it. Cancelled, or with its process dead, it can be run again when its lease is over."""
        async with self._held():
            try:
                response = await run()
            except (ClientLeftError, HTTPException, RequestValidationError):
                await self._release()
                raise
            except PlatformError as error:
                response = error_response(error)
                if error.code in _NOTHING_DONE:
                    await self._release()
                    return response
            except Exception as error:  # noqa: BLE001 - what the client is told of it is a reply like any other
                response = unexpected_response(error)
            if not isinstance(response, StreamingResponse):
                await self._keep(response.status_code, response.media_type or "", bytes(response.body))
                return response
        response.body_iterator = self._stream(response.body_iterator)
        return response

    async def _stream(self, blocks: Any) -> AsyncIterator[bytes]:  # noqa: ANN401 - Starlette's own type
        # What streams is read outside of the run's context.
        async with self._held(), aclosing(blocks):
            async for block in blocks:
                yield block
            with seeded_ids(self._run.seed, self._run.attempt):
                response_id = call_id_of(f"resp_{new_hex('resp')}")
            await self._keep(200, _STREAM, response_id.encode())

    async def _keep(self, status: int, media_type: str, body: bytes) -> None:
        if len(body) > _MAX_REPLY_BYTES or (status >= 400 and not self._keyed):
            await self._release()  # a repeat runs again, and finds what this made
            return
        sealer = self._gateway.keyring.sealer(keys.IDEMPOTENCY_PURPOSE)
        sealed = sealer.seal(media_type.encode() + b"\n" + body, self._run.tenant_id, self._run.key)
        await self._change(lambda connection: idempotency.keep_reply(connection, self._run, status, sealed))

    async def _release(self) -> None:
        await self._change(lambda connection: idempotency.release(connection, self._run))

    async def _change(self, change: Callable[[Any], None]) -> None:
        try:
            await self._gateway.database.write(change)
        except PlatformError as error:
            # The request is done: its client is told so, and a repeat runs it again when the lease is over.
            _log.warning("a reply could not be kept", code=error.code.value)

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Keeps others off for as long as this process lives."""
        renewing = asyncio.create_task(self._renew(), name="idempotency lease")
        try:
            yield
        finally:
            renewing.cancel()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(idempotency.LEASE_SECONDS / 3)
            await self._change(lambda connection: idempotency.extend_lease(connection, self._run))


async def _replayed(gateway: Gateway, wanted: Wanted, kept: Kept) -> Response:
    sealer = gateway.keyring.sealer(keys.IDEMPOTENCY_PURPOSE)
    media_type, _, body = sealer.open(kept.sealed_reply, wanted.tenant_id, wanted.key).partition(b"\n")
    headers = {"idempotent-replayed": "true"}
    if media_type.decode() == _STREAM:
        response_id = body.decode()
        if not await gateway.events.exists(wanted.tenant_id, response_id):
            message = "The stream of the first request with this key has ended and is not kept. Use a new key."
            raise PermanentError(ErrorCode.IDEMPOTENCY_KEY_REUSED, message, param="Idempotency-Key")
        return event_stream(background.events(gateway, wanted.tenant_id, response_id, after=-1), headers=headers)
    if kept.status >= 400:
        headers["x-should-retry"] = "false"  # the reply stays what it is
    return Response(body, kept.status, headers, media_type.decode())
