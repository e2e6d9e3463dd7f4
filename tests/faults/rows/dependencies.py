"""What the services ask of others: Qdrant, the model upstream, a collector of telemetry."""

import asyncio
import statistics
import time

from tests.faults import workload
from tests.faults.client import Client, question
from tests.faults.harness import Harness, RowResult, eventually
from tests.faults.traffic import Traffic

_INTERNAL_ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_ASK = question("Hello [[tokens=5 mark=plain]]")


async def qdrant_broken(harness: Harness) -> RowResult:
    """Qdrant refuses, answers 500, and answers after ten seconds, while documents arrive and people ask."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    ask = question("What is topic 31? [[tokens=3]]", vector_store_ids=[reference.vector_store_id])
    proxy = harness.proxies["vectors"]
    await proxy.refuse()
    await workload.send_documents(client, documents, 10)
    result.detail = f"down: refused after {await _retrieval_refused(client, ask, result):.1f} s"
    await asyncio.sleep(max(6.0, 200 * harness.scale))
    await proxy.heal()
    proxy.canned_answer = _INTERNAL_ERROR
    proxy.cut()
    result.detail += f"; 500: after {await _retrieval_refused(client, ask, result):.1f} s"
    calls = await _calls_while_open(harness, client, ask, seconds=5.0)
    result.expect(calls <= 6, f"{calls} calls in 5 s while Qdrant answered 500: no breaker")
    await proxy.heal()
    proxy.delay_seconds = 10.0
    result.detail += f"; slow: after {await _retrieval_refused(client, ask, result):.1f} s"
    await proxy.heal()
    proxy.cut()

    async def answers() -> bool:
        response = await client.send("POST", "/v1/chat/completions", json=ask)
        return response is not None and response.is_success

    result.recovery_seconds = await eventually(answers, 30.0, "questions were not answered again")
    await workload.until_ingested(harness, documents)
    await workload.judge_documents(harness, documents, reference, result)
    result.take_errors(client)
    return result


async def _retrieval_refused(client: Client, ask: dict[str, object], result: RowResult) -> float:
    began = time.monotonic()
    response = await client.send("POST", "/v1/chat/completions", json=ask)
    text = "no answer" if response is None else f"{response.status_code} {response.text}"
    result.expect(text.startswith("503") and "retrieval_unavailable" in text, f"expected 503, got {text[:100]}")
    return time.monotonic() - began


async def _calls_while_open(harness: Harness, client: Client, ask: dict[str, object], seconds: float) -> int:
    """Connections to Qdrant while people keep asking."""
    before = harness.proxies["vectors"].connections
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        await client.send("POST", "/v1/chat/completions", json=ask)
        await asyncio.sleep(0.1)
    return harness.proxies["vectors"].connections - before


async def model_broken(harness: Harness) -> RowResult:
    """The model upstream fails in each of the ways there are, before and after the first token."""
    result = RowResult()
    client = harness.client()
    upstream = harness.upstream
    expected: dict[int | str, int] = {
        429: 503,
        500: 503,
        401: 502,
        "hang": 504,
        "cut": 502,
        "garbage": 502,
        "stall": 504,
    }
    for fault, status in expected.items():
        upstream.always = fault
        before = upstream.total_calls
        response = await client.send("POST", "/v1/chat/completions", json=_ASK)
        calls = upstream.total_calls - before
        got = response.status_code if response is not None else 0
        result.accepted += 1
        result.expect(got == status or (fault == "cut" and got == 503), f"{fault}: expected {status}, got {got}")
        result.expect(calls <= 2, f"{fault}: {calls} calls for one request")
        result.expect(fault != 401 or calls == 1, "401 was tried again")
        seen = await client.stream("/v1/chat/completions", body={**_ASK, "stream": True})
        result.hung += not seen.ended
        result.expect(bool(seen.error), f"{fault}: the stream ended without an error event")
    upstream.always = None
    await _refused_connection(harness, client, result)
    await _one_failure_then_well(harness, client, result)
    await _amplification(harness, client, result)
    result.take_errors(client)
    return result


async def _refused_connection(harness: Harness, client: Client, result: RowResult) -> None:
    await harness.proxies["models"].refuse()
    response = await client.send("POST", "/v1/chat/completions", json=_ASK)
    result.expect(response is not None and response.status_code == 503, "no connection: expected 503")
    await harness.proxies["models"].heal()


async def _one_failure_then_well(harness: Harness, client: Client, result: RowResult) -> None:
    """A single failure before the first byte is not shown; an answer without [DONE] is whole."""
    harness.upstream.script.append(500)
    response = await client.send("POST", "/v1/chat/completions", json=_ASK)
    result.expect(response is not None and response.is_success, "one failure before the first byte was shown")
    harness.upstream.script.append("no_done")
    response = await client.send("POST", "/v1/chat/completions", json=_ASK)
    result.expect(response is not None and response.is_success, "an answer without [DONE] was refused")


async def _amplification(harness: Harness, client: Client, result: RowResult) -> None:
    """How many calls reach an upstream that fails for good, per request."""
    harness.upstream.always = 500
    before = harness.upstream.total_calls
    await asyncio.gather(*(client.send("POST", "/v1/chat/completions", json=_ASK) for _ in range(50)))
    factor = (harness.upstream.total_calls - before) / 50
    harness.upstream.always = None
    result.expect(factor <= 1.2, f"amplification {factor:.2f} while the upstream fails")
    result.detail = f"amplification {factor:.2f}"


async def collector_broken(harness: Harness) -> RowResult:
    """The telemetry collector hangs, then is away; before that, two undisturbed times show what is mere noise."""
    result = RowResult()
    client = harness.client()
    proxy = harness.proxies["collector"]
    await _p99_ms(client, RowResult(), seconds=2)
    idle = [await _p99_ms(client, result), await _p99_ms(client, result)]
    proxy.freeze()
    hanging = await _p99_ms(client, result)
    await proxy.refuse()
    away = await _p99_ms(client, result)
    result.expect(proxy.connections > 0, "no service sent any telemetry")
    allowed = max(idle) + max(0.05 * max(idle), abs(idle[0] - idle[1]))
    result.expect(max(hanging, away) <= allowed, f"p99 rose to {max(hanging, away):.0f} ms, {allowed:.0f} were allowed")
    shown = [idle[0], idle[1], hanging, away]
    result.detail = "p99 ms: idle {:.0f} and {:.0f}, hanging {:.0f}, away {:.0f}".format(*shown)
    return result


async def _p99_ms(client: Client, result: RowResult, seconds: float = 5.0) -> float:
    traffic = Traffic(client, plain_only=True, pause_seconds=0).start(2)
    await asyncio.sleep(seconds)
    await traffic.stop()
    traffic.judge(result)
    result.expect(traffic.refused == 0, f"{traffic.refused} requests failed")
    return statistics.quantiles(traffic.seconds, n=100)[98] * 1000
