"""Streams whose worker or gateway dies, and clients that leave, never read, or never finish their request."""

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.faults.client import Client, Stream, question
from tests.faults.harness import Harness, RowResult
from tests.faults.traffic import Traffic
from tests.faults.upstream import CHAT_MODEL, words

_LONG = "Hello [[tokens=80 pause=0.05 mark=long]]"


async def killed_mid_stream(harness: Harness) -> RowResult:
    """A chat worker dies under its streams, then a gateway under a stored response, which goes on elsewhere."""
    result = RowResult()
    client = harness.client()
    await _kill_chat_under_streams(harness, client, result)
    await _kill_chat_before_first_token(harness, client, result)
    await _kill_gateway_under_response(harness, client, result)
    result.take_errors(client)
    return result


async def _kill_chat_under_streams(harness: Harness, client: Client, result: RowResult) -> None:
    body = question(_LONG, stream=True)
    streams = [asyncio.create_task(client.stream("/v1/chat/completions", body=body)) for _ in range(8)]
    await asyncio.sleep(1.5)
    died_at = time.monotonic()
    await harness.kill("chat")
    seen: list[Stream] = await asyncio.gather(*streams)
    result.accepted += len(seen)
    result.hung += sum(not stream.ended for stream in seen)
    broken = [stream for stream in seen if stream.error]
    result.lost += sum(not stream.error and stream.text.strip() != words(80).strip() for stream in seen)
    late = max((stream.last_at - died_at for stream in broken), default=0.0)
    result.expect(late <= 5.0, f"the last error event came after {late:.1f} s")
    result.recovery_seconds = late
    result.detail = f"{len(broken)} of 8 streams broken, told after {late:.1f} s"
    await harness.wait_ready("chat")


async def _kill_chat_before_first_token(harness: Harness, client: Client, result: RowResult) -> None:
    """Nothing of the answer was sent yet: it comes from another worker, and the client never knows."""
    harness.upstream.script.extend(["hang"] * 4)
    body = question("Hello [[tokens=5 mark=unseen]]", stream=True)
    streams = [asyncio.create_task(client.stream("/v1/chat/completions", body=body)) for _ in range(4)]
    await harness.until(lambda: harness.upstream.calls["unseen"] == 4, 10.0, "the upstream was not asked")
    harness.upstream.script.clear()
    await asyncio.gather(harness.kill("chat"), harness.kill("chat-2"))
    seen: list[Stream] = await asyncio.gather(*streams)
    result.accepted += 4
    result.hung += sum(not stream.ended for stream in seen)
    shown = sum(bool(stream.error) for stream in seen)
    first = next((stream.error for stream in seen if stream.error), "")
    result.expect(shown == 0, f"{shown} of 4 streams failed though no token had been sent: {first[:120]}")


async def _kill_gateway_under_response(harness: Harness, client: Client, result: RowResult) -> None:
    """The same events, byte for byte, on the other gateway from where the stream broke."""
    await asyncio.gather(harness.wait_ready("chat"), harness.wait_ready("chat-2"))
    body = {"model": CHAT_MODEL, "input": _LONG.replace("mark=long", "mark=stored"), "stream": True, "store": True}
    streaming = asyncio.create_task(client.stream("/v1/responses", gateway=0, body=body))
    await harness.until(lambda: harness.upstream.streaming["stored"] > 0, 10.0, "the response did not begin")
    await asyncio.sleep(1.5)
    await harness.kill("gateway")
    begun = await streaming
    result.accepted += 1
    if not begun.events or begun.ended:
        result.problems.append("the response had not begun, or ended, when its gateway was killed")
        return
    response_id = begun.events[0]["response"]["id"]
    after = begun.events[-1]["sequence_number"]
    path = f"/v1/responses/{response_id}?stream=true"
    rest = await client.stream(f"{path}&starting_after={after}", gateway=1)
    whole = await client.stream(path, gateway=1)
    result.hung += not rest.ended
    result.lost += begun.events + rest.events != whole.events
    result.expect(whole.text.strip() == words(80).strip(), f"the text was {whole.text[:60]!r}")
    result.detail += f"; response resumed after event {after} of {len(whole.events)}"
    await harness.wait_ready("gateway")


async def conversations_killed(harness: Harness) -> RowResult:
    """The conversations service dies while items are appended: all or nothing of each, in order, none twice."""
    result = RowResult()
    client = harness.client()
    created = await client.send("POST", "/v1/conversations", json={})
    path = f"/v1/conversations/{created.json()['id'] if created else ''}/items"
    acknowledged: list[str] = []
    sent: list[str] = []
    writing = asyncio.create_task(_append_for_ever(client, path, acknowledged, sent))
    for _ in range(max(3, round(20 * harness.scale))):
        await asyncio.sleep(harness.random.uniform(0.5, 1.5))
        await harness.kill("conversations")
        await harness.wait_ready("conversations")
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    stored = await _items(client, path)
    result.accepted = len(acknowledged)
    result.lost = len(set(acknowledged) - set(stored))
    result.duplicates = len(stored) - len(set(stored))
    order = [text for text in sent if text in set(stored)]
    result.expect(stored == order, "the order was not kept")
    pairs = all(stored[at].partition(":")[0] == stored[at + 1].partition(":")[0] for at in range(0, len(stored) - 1, 2))
    result.expect(len(stored) % 2 == 0 and pairs, "half of an append was kept")
    result.take_errors(client)
    return result


async def _append_for_ever(client: Client, path: str, acknowledged: list[str], sent: list[str]) -> None:
    """Two items in each request, with texts of their own."""
    number = 0
    while True:
        texts = [f"{number}:a", f"{number}:b"]
        sent += texts
        items = [{"type": "message", "role": "user", "content": text} for text in texts]
        response = await client.send("POST", path, json={"items": items})
        if response is not None and response.is_success:
            acknowledged += texts
        number += 1


async def _items(client: Client, path: str) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        response = await client.send("GET", f"{path}?order=asc&limit=100{after}")
        assert response is not None
        page: dict[str, Any] = response.json()
        found += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


async def bad_clients(harness: Harness) -> RowResult:
    """Clients that disconnect, that never read, and that never finish their request; others must not notice."""
    result = RowResult()
    client = harness.client()
    traffic = Traffic(client).start()
    await _disconnect(harness, result)
    silent = [await _never_read(harness) for _ in range(20)]
    before = _resident_bytes(harness)
    await asyncio.sleep(5)
    grown = max(0, _resident_bytes(harness) - before) / 20
    result.expect(grown <= 1 << 20, f"a stream that nobody reads took {grown / 1e6:.1f} MB")
    slow = [await _half_request(harness) for _ in range(20)]
    closed = await asyncio.gather(*(_is_closed(reader) for reader, _ in slow))
    result.expect(all(closed), f"{closed.count(False)} of 20 half-sent requests were still open after 30 s")
    for _, writer in [*silent, *slow]:
        writer.transport.abort()
    await traffic.stop()
    traffic.judge(result)
    result.expect(traffic.refused == 0, f"{traffic.refused} requests of others failed")
    result.take_errors(client)
    return result


async def _disconnect(harness: Harness, result: RowResult) -> None:
    """Leave in the middle of a stream; the upstream's own must end soon."""
    leaving = harness.client()
    open_before = harness.upstream.calls["leaving"]
    body = question("Hello [[tokens=400 pause=0.1 mark=leaving]]", stream=True)
    streams = [asyncio.create_task(leaving.stream("/v1/chat/completions", body=body)) for _ in range(5)]
    await harness.until(lambda: harness.upstream.calls["leaving"] == open_before + 5, 10.0, "the streams did not begin")
    await asyncio.sleep(0.5)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    result.recovery_seconds = await harness.until(
        lambda: harness.upstream.streaming["leaving"] == 0, 15.0, "the upstream went on streaming"
    )
    result.expect(result.recovery_seconds <= 1.0, f"the upstream stopped after {result.recovery_seconds:.1f} s")


async def _never_read(harness: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream of some megabytes whose reader does not read."""
    body = b'{"model":"stub-chat","stream":true,"messages":[{"role":"user","content":"[[tokens=20000 mark=unread]]"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.ports.gateway, limit=1024)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {harness.api_key}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    return reader, writer


async def _half_request(harness: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.ports.gateway)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow:")
    await writer.drain()
    return reader, writer


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(30):
            await reader.read()
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _resident_bytes(harness: Harness) -> int:
    """What the first gateway holds in memory."""
    return int(Path(f"/proc/{harness.child('gateway').pid}/statm").read_text().split()[1]) * 4096
