"""What the gateway's server bounds: heads and bodies in time and size, readers, and half-open connections."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from services.gateway import errors
from services.gateway.connections import ConnectionLimits, bounded_protocol
from services.gateway.middleware import RequestFrame
from services.gateway.settings import GatewaySettings

pytestmark = pytest.mark.timeout(60)
_LINE = b"GET / HTTP/1.1\r\nhost: x\r\n"


class Server:
    """A small application behind the gateway's own protocol and outermost layer.

    Attributes:
        left: how often an endless answer was given up.
    """

    def __init__(self, **settings: Any) -> None:
        bounds: dict[str, Any] = {"header_seconds": 0.5, "body_seconds": 0.5, "write_seconds": 0.5, "idle_seconds": 1}
        self.settings = GatewaySettings(**{**bounds, **settings})
        self.left = 0
        self.clients: list[asyncio.StreamWriter] = []
        self.release = asyncio.Event()
        app = FastAPI(
            routes=[
                Route("/", self._hello),
                Route("/body", self._body, methods=["POST"]),
                Route("/refuse", self._refuse, methods=["POST"]),
                Route("/endless", self._endless),
                Route("/large", self._large),
                Route("/hang", self._hang),
                Route("/healthz", self._hello),
            ]
        )
        errors.install(app)
        config = uvicorn.Config(
            RequestFrame(app, self.settings),
            port=0,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=self.settings.idle_seconds,
            timeout_graceful_shutdown=1,
            http=bounded_protocol(ConnectionLimits.of(self.settings)),
        )
        self._server = uvicorn.Server(config)

    async def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve())
        await until(lambda: self._server.started)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.release.set()
        for writer in self.clients:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self.clients), return_exceptions=True)
        self._server.should_exit = True
        await self._serving

    @property
    def open_connections(self) -> set[Any]:
        return self._server.server_state.connections

    async def _hello(self, _request: Request) -> Response:
        return PlainTextResponse("hello")

    async def _body(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def _refuse(self, _request: Request) -> Response:
        return PlainTextResponse("no", 401)

    async def _hang(self, _request: Request) -> Response:
        await self.release.wait()
        return PlainTextResponse("hello")

    async def _large(self, _request: Request) -> Response:
        return PlainTextResponse("x" * (20 << 20), headers={"connection": "close"})

    async def _endless(self, _request: Request) -> Response:
        return StreamingResponse(self._blocks())

    async def _blocks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            self.left += 1


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Server]:
    server = Server(**settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Connection:
    """A client that sends exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, server: Server, *, buffer_bytes: int | None = None) -> "Connection":
        plain = socket.socket()
        if buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
        server.clients.append(writer)
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split()[1]), await self._reader.readexactly(int(length.split(b":")[1]))

    async def interim(self) -> bytes:
        """The head of an answer without a body."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        try:
            return await self._reader.read()
        except ConnectionResetError:
            return b""


async def until(holds: Callable[[], bool]) -> None:
    """The test's own limit of time ends it otherwise."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


def _code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


async def test_a_head_that_does_not_come_is_refused_and_the_connection_closed() -> None:
    async with running() as server:
        connection = await Connection.open(server)
        await connection.send(_LINE + b"x-slow:")
        status, body = await connection.answer()
        assert (status, _code(body)) == (408, "request_timeout")
        assert await connection.rest() == b""


async def test_dripping_a_head_wins_no_time() -> None:
    async with running() as server:
        connection = await Connection.open(server)

        async def drip() -> None:
            await connection.send(b"\r\n" + _LINE)
            for number in range(1000):
                await connection.send(b"x-%d: y\r\n" % number)
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert (await connection.answer())[0] == 408
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
async def test_a_silent_connection_is_closed(sent: bytes) -> None:
    async with running() as server:
        connection = await Connection.open(server)
        await connection.send(sent)
        assert await connection.rest() == b""


async def test_a_head_without_end_is_refused_as_it_arrives() -> None:
    async with running(header_seconds=30) as server:
        connection = await Connection.open(server)
        await connection.send(_LINE)
        for number in range(40):
            await connection.send(b"x-%d: %s\r\n" % (number, b"y" * 1000))
            await asyncio.sleep(0)
        status, body = await connection.answer()
        assert (status, _code(body)) == (431, "headers_too_large")


async def test_what_is_not_http_gets_our_error_body() -> None:
    async with running() as server:
        connection = await Connection.open(server)
        await connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
        head, _, body = (await connection.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: req_" in head
        assert _code(body) == "invalid_value"


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
async def test_a_body_that_stops_is_refused(expect: bytes) -> None:
    async with running() as server:
        connection = await Connection.open(server)
        await connection.send(b"POST /body HTTP/1.1\r\nhost: x\r\n" + expect + b"content-length: 100\r\n\r\n")
        if expect:
            assert (await connection.interim()).startswith(b"HTTP/1.1 100 ")
        else:
            await connection.send(b"part")
        status, body = await connection.answer()
        assert (status, _code(body)) == (408, "request_timeout")
        assert await connection.rest() == b""


async def test_a_body_below_the_least_rate_is_refused() -> None:
    async with running(body_bytes_per_second=1000) as server:
        connection = await Connection.open(server)
        await connection.send(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")

        async def drip() -> None:
            for _ in range(1000):
                await connection.send(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert (await connection.answer())[0] == 408
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_a_body_above_the_least_rate_may_take_longer_than_a_silence() -> None:
    async with running(body_bytes_per_second=100) as server:
        connection = await Connection.open(server)
        await connection.send(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 8000\r\n\r\n")
        for _ in range(8):
            await connection.send(b"x" * 1000)
            await asyncio.sleep(0.1)
        assert await connection.answer() == (200, b"8000")


async def test_a_connection_is_kept_for_the_next_request_and_closed_when_idle() -> None:
    async with running() as server:
        connection = await Connection.open(server)
        for _ in range(3):
            await connection.send(_LINE + b"\r\n")
            assert await connection.answer() == (200, b"hello")
            await asyncio.sleep(0.6)  # longer than a head may take: between requests nothing is late
        assert await connection.rest() == b""


async def test_a_second_head_must_come_in_time_too() -> None:
    async with running(idle_seconds=30) as server:
        connection = await Connection.open(server)
        await connection.send(_LINE + b"\r\n" + _LINE)
        assert await connection.answer() == (200, b"hello")
        assert (await connection.answer())[0] == 408


async def test_the_rest_of_a_body_nobody_wants_does_not_spoil_the_next_request() -> None:
    async with running(max_header_bytes=2000) as server:
        connection = await Connection.open(server)
        await connection.send(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n")
        assert await connection.answer() == (401, b"no")
        for _ in range(9):
            await connection.send(b"x" * 1000)
            await asyncio.sleep(0)
        await connection.send(_LINE + b"\r\n")
        assert await connection.answer() == (200, b"hello")


async def test_half_open_connections_keep_nobody_out() -> None:
    async with running(header_seconds=30, waiting_connections=10) as server:
        halves = [await Connection.open(server) for _ in range(40)]
        for half in halves:
            await half.send(_LINE)
        for _ in range(20):
            connection = await Connection.open(server)
            await connection.send(_LINE + b"\r\n")
            assert await connection.answer() == (200, b"hello")
        assert await halves[0].rest() == b"", "the oldest goes first"


async def test_requests_beyond_the_limit_are_told_so_and_probes_are_not() -> None:
    async with running(parallel_requests=3) as server:
        hanging = [await Connection.open(server) for _ in range(3)]
        for connection in hanging:
            await connection.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        connection = await Connection.open(server)
        await connection.send(_LINE + b"\r\n")
        status, body = await connection.answer()
        assert (status, _code(body)) == (503, "too_many_streams")
        await connection.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await connection.answer() == (200, b"hello")
        server.release.set()
        for connection in hanging:
            assert await connection.answer() == (200, b"hello")


async def test_a_client_that_does_not_read_a_stream_is_cut_off() -> None:
    async with running() as server:
        connection = await Connection.open(server, buffer_bytes=4096)
        await connection.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: server.left == 1)


async def test_a_client_that_reads_slowly_but_steadily_gets_all() -> None:
    async with running(write_seconds=5) as server:
        connection = await Connection.open(server, buffer_bytes=65536)
        await connection.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        assert len((await connection.answer())[1]) == 20 << 20


async def test_an_unread_answer_does_not_keep_a_closed_connection() -> None:
    async with running() as server:
        connection = await Connection.open(server, buffer_bytes=4096)
        await connection.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: len(server.open_connections) == 1)
        await until(lambda: not server.open_connections)
