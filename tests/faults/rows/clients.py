"""Clients that leave, that never read, and that never finish their requests; the others must not notice."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import orjson

from tests.faults.client import question
from tests.faults.harness import Harness, RowResult
from tests.faults.traffic import Traffic

# Short, so that the row is; and fewer waiting connections than half-open ones come.
BOUNDS: Final = {
    "*": {"HEADER_SECONDS": "5", "BODY_SECONDS": "5", "WRITE_SECONDS": "5"}
    | {"IDLE_SECONDS": "5", "WAITING_CONNECTIONS": "200"},
}
_HALF_OPEN: Final = 300
_UNREAD: Final = 20
_CLOSED_SECONDS: Final = 30.0
_STREAM_BYTES: Final = 1 << 20
_LAST_CHUNK: Final = b"0\r\n\r\n"
_HEAD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


async def bad_clients(harness: Harness) -> RowResult:
    """One kind after the other, with ordinary requests all the while."""
    result = RowResult()
    client = harness.client()
    traffic = Traffic(client).start()
    await _disconnect(harness, result)
    await _half_open(harness, result)
    await _drip(harness, result)
    await _never_read(harness, result)
    await traffic.stop()
    traffic.judge(result)
    result.expect(traffic.refused == 0, f"{traffic.refused} requests of others failed: {traffic.errors[:1]}")
    result.take_errors(client)
    return result


async def _disconnect(harness: Harness, result: RowResult) -> None:
    """Leave in the middle of a stream; the upstream's own must end soon."""
    leaving = harness.client()
    body = question("Hello [[tokens=400 pause=0.1 mark=leaving]]", stream=True)
    streams = [asyncio.create_task(leaving.stream("/v1/chat/completions", body=body)) for _ in range(5)]
    await harness.until(lambda: harness.upstream.streaming["leaving"] == 5, 10.0, "the streams did not begin")
    await asyncio.sleep(0.5)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    result.recovery_seconds = await harness.until(
        lambda: harness.upstream.streaming["leaving"] == 0, 15.0, "the upstream went on streaming"
    )
    result.expect(result.recovery_seconds <= 1.0, f"the upstream stopped after {result.recovery_seconds:.1f} s")


async def _half_open(harness: Harness, result: RowResult) -> None:
    """Hundreds of requests whose headers never end, and as many connections that say nothing at all."""
    for sent in (_HEAD + b"x-slow:", b""):
        connections = [await _connect(harness) for _ in range(_HALF_OPEN)]
        for _, writer in connections:
            writer.write(sent)
        closed = await asyncio.gather(*(_is_closed(reader) for reader, _ in connections))
        result.expect(all(closed), f"{closed.count(False)} of {_HALF_OPEN} half-open connections stayed")
        _abort(connections)


async def _drip(harness: Harness, result: RowResult) -> None:
    """Headers, and bodies, of which a byte comes now and then."""
    key = f"authorization: Bearer {harness.api_key}\r\ncontent-type: application/json\r\n".encode()
    starts = {"headers": _HEAD + b"x-slow: ", "a body": _HEAD + key + b"content-length: 1000\r\n\r\n"}
    for what, start in starts.items():
        answers = await asyncio.gather(*(_drip_one(harness, start) for _ in range(20)))
        open_still = sum(answer is None for answer in answers)
        result.expect(not open_still, f"{open_still} of 20 clients that dripped {what} were let go on")
        told = sum(answer is not None and b" 408 " in answer and b"request_timeout" in answer for answer in answers)
        result.expect(told == 20, f"{told} of 20 clients that dripped {what} were told 408: {answers[0]!r}")


async def _drip_one(harness: Harness, start: bytes) -> bytes | None:
    """What the server said before it closed; None: it did not close."""
    reader, writer = await _connect(harness)

    async def send() -> None:
        writer.write(start)
        while True:
            await asyncio.sleep(0.5)
            writer.write(b"a")
            await writer.drain()

    dripping = asyncio.create_task(send())
    try:
        return await _read_to_end(reader)
    except TimeoutError:
        return None
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        writer.transport.abort()


async def _never_read(harness: Harness, result: RowResult) -> None:
    """Streams of many megabytes that nobody reads: a bounded buffer each, and an end."""
    before = _resident_bytes(harness)
    unread = [await _ask_and_not_read(harness) for _ in range(_UNREAD)]
    await harness.until(lambda: harness.upstream.calls["unread"] == _UNREAD, 20.0, "the unread streams did not begin")
    highest = before

    def is_over() -> bool:
        nonlocal highest
        highest = max(highest, _resident_bytes(harness))
        return harness.upstream.streaming["unread"] == 0

    seconds = await harness.until(is_over, 60.0, "the upstream went on for clients that do not read")
    grown = (highest - before) / _UNREAD
    result.expect(grown <= _STREAM_BYTES, f"a stream that nobody reads took {grown / 1e6:.1f} MB")
    result.detail = f"{grown / 1e3:.0f} kB for a stream that nobody reads, given up after {seconds:.1f} s"

    rests = await asyncio.gather(*(_read_to_end(reader) for reader, _ in unread), return_exceptions=True)
    result.hung += sum(isinstance(rest, TimeoutError) for rest in rests)
    whole = sum(isinstance(rest, bytes) and rest.endswith(_LAST_CHUNK) and b"[DONE]" in rest[-99:] for rest in rests)
    result.expect(not whole, f"{whole} of {_UNREAD} streams were kept whole for clients that did not read")
    _abort(unread)


async def _ask_and_not_read(harness: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = orjson.dumps(question("[[tokens=4000 padding=4000 pause=0.01 mark=unread]]", stream=True))
    reader, writer = await _connect(harness, buffer_bytes=4096)
    head = _HEAD + f"authorization: Bearer {harness.api_key}\r\ncontent-type: application/json\r\n".encode()
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    return reader, writer


async def _connect(
    harness: Harness, *, buffer_bytes: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A plain connection to the first gateway, with little room for what is not read."""
    plain = socket.socket()
    plain.setblocking(False)
    if buffer_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", harness.ports.gateway))
    return await asyncio.open_connection(sock=plain, limit=1024)


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        await _read_to_end(reader)
    except TimeoutError:
        return False
    return True


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server ends the connection, in whichever way; TimeoutError where it does not."""
    read = bytearray()
    async with asyncio.timeout(_CLOSED_SECONDS):
        try:
            while data := await reader.read(65536):
                read += data
        except OSError:
            pass  # a reset is an end, too
    return bytes(read)


def _abort(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for _, writer in connections:
        writer.transport.abort()


def _resident_bytes(harness: Harness) -> int:
    """What the first gateway holds in memory."""
    return int(Path(f"/proc/{harness.child('gateway').pid}/statm").read_text().split()[1]) * 4096
