"""Whether a program answers, asked in its own protocol, without a client library to import."""

import asyncio
import contextlib
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 2.0


async def answers(url: str) -> bool:
    """Ask once.

    Args:
        url: `redis://host:port`, ready when PING gets PONG, so not while it loads its data; or `http://…`, ready when
            a GET of it gets status 200.
    """
    parts = urlsplit(url)
    if parts.scheme == "redis":
        line = await _first_line(parts.hostname, parts.port, b"PING\r\n")
        return line.startswith(b"+PONG")
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    line = await _first_line(parts.hostname, parts.port, request.encode())
    return line.startswith(b"HTTP/1.") and line.split()[1:2] == [b"200"]


async def listens(url: str) -> bool:
    """Whether anything at all accepts connections there."""
    parts = urlsplit(url)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.close()
            return True
    return False


async def _first_line(host: str | None, port: int | None, request: bytes) -> bytes:
    """The first line of the reply; empty if there is none in time."""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    return b""
