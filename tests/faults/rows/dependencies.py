"""What the services ask of others: Qdrant, the model upstream, a collector of telemetry."""

import asyncio
import statistics
import time
from typing import Any, Final

from libs.common.contracts.ingest import INGEST_FILE
from tests.faults import workload
from tests.faults.client import Client, question
from tests.faults.harness import Harness, RowResult, eventually
from tests.faults.traffic import Traffic
from tests.faults.upstream import words

_INTERNAL_ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_ASK = question("Hello [[tokens=5 mark=plain]]")
# Of one model alone: all others have nobody to stand in for them.
FALLBACKS: Final = {"CHAT_FALLBACK_MODELS": "fragile=sturdy"}
_WITH_QDRANT: Final = ("chat", "chat-2", "ingest", "ingest-2")
_TURNS = 4
# How many times as long requests may take; see `collector_broken`.
_P50_BAR = 1.25
_P99_BAR = 2.0


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
    await _calls_meanwhile(harness, client, ask, seconds=max(6.0, 200 * harness.scale))
    await _judge_waiting(harness, client, result)
    await proxy.heal()
    proxy.canned_answer = _INTERNAL_ERROR
    proxy.cut()
    result.detail += f"; 500: after {await _retrieval_refused(client, ask, result):.1f} s"
    seconds = max(10.0, 20 * harness.scale)
    calls = await _calls_meanwhile(harness, client, ask, seconds)
    result.expect(calls <= seconds, f"{calls} calls in {seconds:g} s though every breaker was open")
    result.detail += f", {calls} calls in {seconds:g} s"
    await proxy.heal()
    result.recovery_seconds = await _answered_again(client, ask)
    result.detail += f"; ingestion resumed within {await workload.until_ingested(harness, documents):.1f} s"
    proxy.delay_seconds = 10.0
    result.detail += f"; slow: refused after {await _retrieval_refused(client, ask, result):.1f} s"
    await proxy.heal()
    proxy.cut()
    result.recovery_seconds = max(result.recovery_seconds, await _answered_again(client, ask))
    await workload.judge_documents(harness, documents, reference, result)
    charged = [job for job in await _jobs(client) if job["failures"]]
    result.expect(not charged, f"{len(charged)} jobs were charged with an outage")
    result.take_errors(client)
    return result


async def _answered_again(client: Client, ask: dict[str, object]) -> float:
    async def answers() -> bool:
        response = await client.send("POST", "/v1/chat/completions", json=ask)
        return response is not None and response.is_success

    return await eventually(answers, 30.0, "questions were not answered again")


async def _jobs(client: Client, **query: str) -> list[dict[str, Any]]:
    response = await client.send("GET", "/v1/jobs", params={"limit": "100", **query})
    assert response is not None
    found: list[dict[str, Any]] = response.json()["data"]
    return [job for job in found if job["type"] == INGEST_FILE.name]


async def _judge_waiting(harness: Harness, client: Client, result: RowResult) -> None:
    """In the middle of the outage: every breaker is open, and jobs wait and say what for."""
    states = [await harness.metric(name, "docent_breaker_state", dependency="qdrant") for name in _WITH_QDRANT]
    result.expect(all(states), f"breakers of {_WITH_QDRANT} are {states}")
    waiting = await _jobs(client, state="queued")
    result.expect(bool(waiting), "no job waited for Qdrant")
    told = {(job["error"] or {}).get("code") for job in waiting}
    result.expect(told <= {"retrieval_unavailable"}, f"jobs that wait give as the reason {told}")


async def _retrieval_refused(client: Client, ask: dict[str, object], result: RowResult) -> float:
    began = time.monotonic()
    response = await client.send("POST", "/v1/chat/completions", json=ask)
    text = "no answer" if response is None else f"{response.status_code} {response.text}"
    result.expect(text.startswith("503") and "retrieval_unavailable" in text, f"expected 503, got {text[:100]}")
    return time.monotonic() - began


async def _calls_meanwhile(harness: Harness, client: Client, ask: dict[str, object], seconds: float) -> int:
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
    await _never_kept(harness, client, result)
    await _stood_in_for(harness, client, result)
    await _degraded(harness, client, result)
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


async def _never_kept(harness: Harness, client: Client, result: RowResult) -> None:
    """The part of an answer that broke off is not given to whoever asks the same later."""
    ask = question("Say it whole. [[tokens=5 mark=whole]]", temperature=0)
    for broken in ("cut", "garbage"):
        harness.upstream.script.append(broken)
        response = await client.send("POST", "/v1/chat/completions", json=ask)
        result.expect(response is not None and not response.is_success, f"{broken}: an answer that broke off was given")
    response = await client.send("POST", "/v1/chat/completions", json=ask)
    shown = "" if response is None or not response.is_success else response.json()["choices"][0]["message"]["content"]
    result.expect(shown == words(5), f"after answers that broke off came {shown!r}")


async def _stood_in_for(harness: Harness, client: Client, result: RowResult) -> None:
    """Where the settings name another model, that one answers, and is named."""
    ask = question("Hello [[tokens=5 mark=fragile]]", model="fragile")
    for fault in (500, 429, "hang"):
        harness.upstream.failing["fragile"] = fault
        response = await client.send("POST", "/v1/chat/completions", json=ask)
        named = "" if response is None or not response.is_success else response.json()["model"]
        header = "" if response is None else response.headers.get("x-docent-model", "")
        result.expect((named, header) == ("sturdy", "sturdy"), f"{fault}: {named!r}, {header!r} stood in for a model")
        seen = await client.stream("/v1/chat/completions", body={**ask, "stream": True})
        models = {event["model"] for event in seen.events}
        result.expect(not seen.error and models == {"sturdy"}, f"{fault}: a stream came from {models or seen.error}")
    harness.upstream.failing.clear()


async def _degraded(harness: Harness, client: Client, result: RowResult) -> None:
    """Where no model is there, passages answer a question over documents, once: later the model does."""
    documents = await workload.new_store(client)
    await workload.send_document(client, documents, 0)
    await workload.until_ingested(harness, documents)
    found = await workload.statuses(harness, documents)
    result.expect(list(found.values()) == ["completed"], f"the document to answer from: {found}")
    ask = question("Which paragraph speaks of topic 3?", vector_store_ids=[documents.vector_store_id], temperature=0)
    harness.upstream.always = 500
    response = await client.send("POST", "/v1/chat/completions", json=ask)
    body = {} if response is None or not response.is_success else response.json()
    text = body["choices"][0]["message"]["content"] if body else ""
    result.expect(body.get("degraded") is True and "topic 3. [" in text, f"without a model the answer was {body}")
    header = None if response is None else response.headers.get("x-docent-degraded")
    result.expect(header == "true", "a degraded answer was not marked in its headers")
    harness.upstream.always = None

    async def by_the_model() -> bool:
        again = await client.send("POST", "/v1/chat/completions", json=ask)
        return again is not None and again.is_success and "degraded" not in again.json()

    await eventually(by_the_model, 30.0, "the model was well, and answers were still degraded")


async def _amplification(harness: Harness, client: Client, result: RowResult) -> None:
    """How many calls reach a model that begins to fail for good, per request."""
    harness.upstream.failing["doomed"] = 500
    before = harness.upstream.total_calls
    asks = [question(f"Hello {number} [[tokens=5]]", model="doomed") for number in range(50)]
    await asyncio.gather(*(client.send("POST", "/v1/chat/completions", json=ask) for ask in asks))
    factor = (harness.upstream.total_calls - before) / 50
    harness.upstream.failing.clear()
    result.expect(factor <= 1.2, f"amplification {factor:.2f} while the upstream fails")
    result.detail = f"amplification {factor:.2f}"


async def collector_broken(harness: Harness) -> RowResult:
    """The telemetry collector hangs, and is away, in turns with times when it is neither.

    On a small machine the p99 of a few seconds is several times as long in one quiet turn as in the next, so 5 % cannot
    be told from that. What is judged, of medians over all turns: no request fails, half of them take no longer, and the
    slowest hundredth no longer than in a bad quiet turn. A single wait for a collector takes seconds.
    """
    result = RowResult()
    client = harness.client()
    await _latency_ms(client, RowResult())  # the first requests open connections
    turns: dict[str, list[tuple[float, float]]] = {"idle": [], "hanging": [], "away": []}
    for _ in range(max(_TURNS, round(10 * harness.scale))):
        for name, measured in turns.items():
            await _set_collector(harness, name)
            measured.append(await _latency_ms(client, result))
    result.expect(harness.proxies["collector"].connections > 0, "no service sent any telemetry")
    typical = {
        name: (statistics.median(p50 for p50, _ in each), statistics.median(p99 for _, p99 in each))
        for name, each in turns.items()
    }
    quiet = [p99 for _, p99 in turns["idle"]]
    allowed = _P50_BAR * typical["idle"][0], max(_P99_BAR * typical["idle"][1], *quiet)
    for name in ("hanging", "away"):
        for quantile, bar, value in zip(("p50", "p99"), allowed, typical[name], strict=True):
            result.expect(value <= bar, f"{quantile} while {name}: {value:.0f} ms, {bar:.0f} were allowed")
    shown = ", ".join(f"{name} {p50:.0f} and {p99:.0f}" for name, (p50, p99) in typical.items())
    change = max(typical["hanging"][1], typical["away"][1]) / typical["idle"][1] - 1
    result.detail = f"p50 and p99 ms: {shown}; p99 change {change:+.0%}, idle turns {min(quiet):.0f}-{max(quiet):.0f}"
    return result


async def _set_collector(harness: Harness, state: str) -> None:
    """A moment passes, so that what services had begun to send has met the collector as it is now."""
    proxy = harness.proxies["collector"]
    await proxy.heal()
    if state == "hanging":
        proxy.freeze()
    elif state == "away":
        await proxy.refuse()
    await asyncio.sleep(0.5)


async def _latency_ms(client: Client, result: RowResult, seconds: float = 5.0) -> tuple[float, float]:
    """The median of requests, and their 99th percentile."""
    traffic = Traffic(client, plain_only=True, pause_seconds=0).start(2)
    await asyncio.sleep(seconds)
    await traffic.stop()
    traffic.judge(result)
    result.expect(traffic.refused == 0, f"{traffic.refused} requests failed")
    quantiles = statistics.quantiles(traffic.seconds, n=100)
    return quantiles[49] * 1000, quantiles[98] * 1000
