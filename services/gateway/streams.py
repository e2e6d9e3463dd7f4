"""Interactive calls over HTTP: one reply or a stream, given up when the client leaves."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse

from libs.common import metrics
from libs.common.contracts.base import Message, TaskSpec
from libs.common.contracts.chat import Answer
from libs.common.contracts.conversations import Body
from libs.common.contracts.ids import call_id_of
from libs.common.errors import PlatformError
from libs.common.tasks.open_call import Call, OpenCall
from libs.common.tasks.publisher import Admission
from libs.common.tasks.replies import error_block
from services.gateway.auth import Principal
from services.gateway.dependencies import Gateway, GatewayDep, PrincipalDep

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)
BodyT = TypeVar("BodyT", Answer, Body)

KEEP_ALIVE: Final = b": keep-alive\n\n"
# Where an answer came from: hit, semantic or miss; absent where it may not be cached.
CACHE_HEADER: Final = "x-docent-cache"
_HEADER_VALUE: Final = re.compile(r"[!-~]{1,256}")
EVENT_STREAM: Final = "text/event-stream"
NO_BUFFERING: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}


class ClientLeftError(Exception):
    """The client closed the connection before the answer began: nobody is there to be told."""


def json_response(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401
    """A JSON response by orjson."""
    return Response(orjson.dumps(body), status, headers, "application/json")


def event_stream(blocks: AsyncIterator[bytes], *, headers: dict[str, str] | None = None) -> Response:
    """A response of server-sent events that proxies neither store nor hold back."""
    return StreamingResponse(blocks, headers=NO_BUFFERING | (headers or {}), media_type=EVENT_STREAM)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, cancelling it when the client closes the connection. The body must have been read.

    Raises:
        ClientLeftError: the client left first.
    """
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([running, leaving], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientLeftError
    finally:
        running.cancel()
        leaving.cancel()
        await asyncio.gather(running, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class Interactive:
    """One client's request that goes into a queue. Its body must have been read before a method is awaited."""

    request: Request
    gateway: Gateway
    principal: Principal

    async def answer(
        self,
        spec: TaskSpec[RequestT, ReplyT],
        message: RequestT,
        *,
        call_id: str | None = None,
        admission: Admission | None = None,
    ) -> tuple[ReplyT, dict[str, str]]:
        """Make a call and wait for its reply.

        Args:
            admission: of a request that was counted before.

        Returns:
            The reply, and the headers that tell the client its limits.

        Raises:
            PlatformError: the call failed.
            ClientLeftError: the client left first; the call was cancelled.
        """
        call = self._call(spec, message, call_id, stream=False, admission=admission)

        async def make() -> tuple[ReplyT, dict[str, str]]:
            async with self.gateway.caller.open(call) as open_call:
                return await open_call.reply(), _headers(open_call)

        return await while_connected(self.request, make())

    async def body(
        self,
        spec: TaskSpec[RequestT, BodyT],
        message: RequestT,
        *,
        call_id: str | None = None,
        admission: Admission | None = None,
    ) -> Response:
        """Make a call whose reply holds the whole body of the response."""
        reply, headers = await self.answer(spec, message, call_id=call_id, admission=admission)
        if isinstance(reply, Answer):
            model = str(reply.body.get("model", ""))
            headers |= author_headers(model, degraded=reply.body.get("degraded") is True)
        return json_response(reply.body, headers=headers)

    async def stream(
        self,
        spec: TaskSpec[RequestT, ReplyT],
        message: RequestT,
        *,
        call_id: str,
        keep_events: bool = False,
        admission: Admission | None = None,
    ) -> Response:
        """Make a call and stream its events. Errors before the first event are plain HTTP errors.

        Raises:
            PlatformError: the call failed before its first event.
            ClientLeftError: the client left before the first event; the call was cancelled.
        """
        call = self._call(spec, message, call_id, stream=True, keep_events=keep_events, admission=admission)
        stack = AsyncExitStack()

        async def begin() -> tuple[OpenCall[ReplyT], AsyncIterator[bytes], bytes | None]:
            open_call = await stack.enter_async_context(self.gateway.caller.open(call))
            events = open_call.events()
            return open_call, events, await anext(events, None)

        try:
            open_call, events, first = await while_connected(self.request, begin())
        except BaseException as error:
            await stack.__aexit__(type(error), error, error.__traceback__)
            raise
        blocks = _blocks(stack, first, events, self.gateway.settings.keep_alive_seconds)
        author = author_headers(open_call.model, degraded=open_call.degraded)
        return event_stream(blocks, headers=_headers(open_call) | author)

    def _call(
        self,
        spec: TaskSpec[RequestT, ReplyT],
        message: RequestT,
        call_id: str | None,
        *,
        stream: bool,
        keep_events: bool = False,
        admission: Admission | None = None,
    ) -> Call[RequestT, ReplyT]:
        return Call(
            spec,
            message,
            call_id_of(call_id) if call_id else uuid.uuid4().hex,
            self.principal.limits,
            self.gateway.settings.interactive_deadline_seconds,
            keep_events=keep_events,
            stream=stream,
            admission=admission,
        )


async def get_interactive(request: Request, gateway: GatewayDep, principal: PrincipalDep) -> Interactive:
    """For routes whose work goes into a queue; they are admitted as they are pushed."""
    return Interactive(request, gateway, principal)


InteractiveDep = Annotated[Interactive, Depends(get_interactive)]


async def _blocks(
    stack: AsyncExitStack, first: bytes | None, events: AsyncIterator[bytes], keep_alive_seconds: float
) -> AsyncIterator[bytes]:
    """The whole body of a stream; it ends with its last event or with an error event."""
    metrics.STREAMS_IN_FLIGHT.inc()
    try:
        async with stack:
            if first is not None:
                yield first
            async for block in with_keep_alive(events, keep_alive_seconds):
                yield block
    except PlatformError as error:
        yield error_block(error)
    finally:
        metrics.STREAMS_IN_FLIGHT.dec()


async def with_keep_alive(events: AsyncIterator[bytes], keep_alive_seconds: float) -> AsyncIterator[bytes]:
    """`events`, with a comment whenever nothing came for a while, so that proxies keep the connection."""
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait([upcoming], timeout=keep_alive_seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            block = upcoming.result()
            if block is None:
                return
            upcoming = asyncio.ensure_future(anext(events, None))
            yield block
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


def _headers(open_call: OpenCall[ReplyT]) -> dict[str, str]:
    from_cache = {CACHE_HEADER: "semantic"} if open_call.from_cache else {}
    return limit_headers(open_call.admission) | from_cache


def author_headers(model: str, *, degraded: bool) -> dict[str, str]:
    """Who answered: a model's name, unless it is unknown or cannot stand in a header; and whether no model did."""
    named = {"x-docent-model": model} if _HEADER_VALUE.fullmatch(model) else {}
    return named | ({"x-docent-degraded": "true"} if degraded else {})


def limit_headers(admission: Admission | None) -> dict[str, str]:
    """What a client may know of its limit, by OpenAI's header names."""
    if admission is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(admission.limit_requests),
        "x-ratelimit-remaining-requests": str(admission.remaining_requests),
        "x-ratelimit-reset-requests": f"{admission.reset_seconds:.3f}s",
    }
