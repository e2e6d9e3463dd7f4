"""Streams and appends whose worker or gateway dies."""

import asyncio
import time
from itertools import pairwise
from typing import Any

from tests.faults.client import Client, Stream, question
from tests.faults.harness import Harness, RowResult
from tests.faults.upstream import CHAT_MODEL, words

_LONG = "Hello [[tokens=80 pause=0.05 mark=long]]"
_CUT = "Hello [[tokens=80 pause=0.1 mark=cut]]"
_CUT_AT_ONCE = 6
_MANY = 300


async def killed_mid_stream(harness: Harness) -> RowResult:
    """A chat worker dies under its streams, then a gateway under responses, which go on elsewhere."""
    result = RowResult()
    client = harness.client()
    await _kill_chat_under_streams(harness, client, result)
    await _kill_chat_before_first_token(harness, client, result)
    await _kill_chat_under_background(harness, client, result)
    await _kill_gateway_under_responses(harness, client, result)
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
    # One after the other: whichever of them had a stream, there is always one that can take it over.
    for name in ("chat", "chat-2"):
        await harness.kill(name)
        await harness.wait_ready(name)
    seen: list[Stream] = await asyncio.gather(*streams)
    result.accepted += 4
    result.hung += sum(not stream.ended for stream in seen)
    shown = sum(bool(stream.error) for stream in seen)
    first = next((stream.error for stream in seen if stream.error), "")
    result.expect(shown == 0, f"{shown} of 4 streams failed though no token had been sent: {first[:120]}")


async def _kill_chat_under_background(harness: Harness, client: Client, result: RowResult) -> None:
    """Background responses are made again by another worker; who streams them sees each event once, none left out."""
    # Several words at a time: the second attempt sends others together than the first did.
    text = f"Hello [[tokens={_MANY} pause=0.01 mark=again]]"
    body = {"model": CHAT_MODEL, "input": text, "stream": True, "background": True}
    streams = [asyncio.create_task(client.stream("/v1/responses", gateway=at, body=body)) for at in range(_CUT_AT_ONCE)]
    begun = len(streams)
    await harness.until(lambda: harness.upstream.calls["again"] >= begun, 20.0, "the responses did not begin")
    await asyncio.sleep(harness.random.uniform(0.5, 1.5))
    await harness.kill("chat")
    seen: list[Stream] = await asyncio.gather(*streams)
    result.accepted += len(seen)
    for stream in seen:
        numbers = [int(event.get("sequence_number", -1)) for event in stream.events]
        whole = numbers == list(range(len(numbers))) and stream.text.strip() == words(_MANY).strip()
        result.hung += not stream.ended
        result.lost += not whole
        result.expect(
            whole, f"of {len(numbers)} events {_out_of_order(numbers)} were out of order: {stream.error[:100]}"
        )
    repeated = harness.upstream.calls["again"] - len(seen)
    result.expect(repeated > 0, "no background response was made again")
    result.detail += f"; {repeated} of {len(seen)} background responses made again"
    await harness.wait_ready("chat")


def _out_of_order(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbours that do not follow one another."""
    return [(before, after) for before, after in pairwise(numbers) if after != before + 1]


async def _kill_gateway_under_responses(harness: Harness, client: Client, result: RowResult) -> None:
    """Stored and background streams, cut anywhere: the same bytes on the other gateway from where each broke."""
    cuts: list[int] = []
    for _ in range(max(2, round(10 * harness.scale))):
        await asyncio.gather(*(harness.wait_ready(name) for name in ("chat", "chat-2", "gateway", "gateway-2")))
        begun = await _cut_streams(harness, client)
        cuts += await asyncio.gather(*(_resume(client, stream, result) for stream in begun))
    result.detail += f"; {len(cuts)} responses resumed after events {min(cuts)} to {max(cuts)}"
    await harness.wait_ready("gateway")


async def _cut_streams(harness: Harness, client: Client) -> list[Stream]:
    """Every second one of a background response; all have begun when their gateway is killed."""
    streaming: list[asyncio.Task[Stream]] = []
    asked = harness.upstream.calls["cut"] + _CUT_AT_ONCE
    for number in range(_CUT_AT_ONCE):
        body = {"model": CHAT_MODEL, "input": _CUT, "stream": True, "background": number % 2 == 1}
        streaming.append(asyncio.create_task(client.stream("/v1/responses", gateway=0, body=body)))
        await asyncio.sleep(harness.random.uniform(0.0, 0.5))
    await harness.until(lambda: harness.upstream.calls["cut"] >= asked, 20.0, "the responses did not begin")
    await asyncio.sleep(harness.random.uniform(0.2, 1.0))
    await harness.kill("gateway")
    return list(await asyncio.gather(*streaming))


async def _resume(client: Client, begun: Stream, result: RowResult) -> int:
    """Read the rest of a stream elsewhere, and then the whole of it; the number of the event it was cut after."""
    result.accepted += 1
    before = _events_of(begun)
    if not before or begun.ended:
        result.problems.append("a response had not begun, or ended, when its gateway was killed")
        return -1
    response_id = begun.events[0]["response"]["id"]
    after: int = begun.events[len(before) - 1]["sequence_number"]
    path = f"/v1/responses/{response_id}?stream=true"
    rest = await client.stream(f"{path}&starting_after={after}", gateway=1)
    whole = await client.stream(path, gateway=1)
    result.hung += not rest.ended
    got, wanted = before + _events_of(rest), _events_of(whole)
    result.lost += got != wanted
    result.expect(got == wanted, f"cut after event {after} of {len(wanted)}: {_difference(got, wanted)}")
    result.expect(whole.text.strip() == words(80).strip(), f"the text was {whole.text[:60]!r}")
    return after


def _difference(got: list[str], wanted: list[str]) -> str:
    """The first event that is not the same."""
    at = next((at for at, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"{len(got)} events came"
    return f"as event {at} came {got[at][:150]!r} instead of {wanted[at][:150]!r}"


def _events_of(stream: Stream) -> list[str]:
    """The blocks that are events, byte for byte; comments only keep the connection."""
    return [block for block in stream.blocks if "data:" in block]


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
