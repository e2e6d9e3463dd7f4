"""A TCP proxy on the loopback address that misbehaves on demand, put in front of each dependency."""

import asyncio
from typing import Final

from libs.local.ports import LOOPBACK

_CHUNK_BYTES: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 512


class Proxy:
    """Passes bytes to `target_port`, until told to do otherwise; `heal` ends every fault.

    Attributes:
        port: where it listens; the same for its whole life.
        connections: how many were opened to it so far.
        delay_seconds: waited before each chunk, in both directions.
        bytes_per_second: how fast each direction of a connection passes; 0: unlimited.
        canned_answer: given to whoever sends anything, instead of the target's.
    """

    def __init__(self, target_port: int, port: int) -> None:
        self.port = port
        self.connections = 0
        self.delay_seconds = 0.0
        self.bytes_per_second = 0.0
        self.canned_answer: bytes | None = None
        self._target_port = target_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def stop(self) -> None:
        """Listen no more and end every connection."""
        await self.refuse()
        for serving in self._serving:
            serving.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5.0)

    async def refuse(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def freeze(self) -> None:
        """Keep every connection open, and accept new ones, but pass nothing."""
        self._flowing.clear()

    def cut(self) -> None:
        """End every open connection with a reset; new ones pass."""
        for writer in list(self._open):
            writer.transport.abort()

    async def heal(self) -> None:
        """End every fault."""
        self.delay_seconds = self.bytes_per_second = 0.0
        if self.canned_answer is not None:
            self.canned_answer = None
            self.cut()
        self._flowing.set()
        await self.start()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.connections += 1
        try:
            if len(self._open) < _MAX_CONNECTIONS:
                await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a side went away, or the proxy stops
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.canned_answer is not None:
            await reader.read(_CHUNK_BYTES)
            writer.write(self.canned_answer)
            await writer.drain()
            return
        target_reader, target_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        self._open |= {writer, target_writer}
        try:
            ways = [
                asyncio.create_task(self._pass(reader, target_writer)),
                asyncio.create_task(self._pass(target_reader, writer)),
            ]
            _, unfinished = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in unfinished:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open -= {writer, target_writer}
            target_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._flowing.wait()
            pause_seconds = self.delay_seconds
            if self.bytes_per_second:
                pause_seconds += len(chunk) / self.bytes_per_second
            if pause_seconds:
                await asyncio.sleep(pause_seconds)
            writer.write(chunk)
            await writer.drain()
        await asyncio.sleep(0)  # what was written goes out before the connection ends
