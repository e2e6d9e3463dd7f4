"""The broker and the cache: killed, emptied, frozen, full."""

import asyncio
import signal
import statistics
import time
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from tests.faults import workload
from tests.faults.client import Client, question, settle
from tests.faults.harness import Harness, RowResult, eventually
from tests.faults.traffic import Traffic

_ASK = question("Hello [[tokens=3]]")


async def broker_killed_and_flushed(harness: Harness) -> RowResult:
    """The broker dies and comes back, and is emptied, while work is under way and more arrives."""
    result = RowResult()
    client, asking = harness.client(), harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    count = max(10, round(600 * harness.scale))
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.05")
    sending = asyncio.create_task(workload.send_documents(client, documents, count))
    traffic = Traffic(asking).start()
    await asyncio.sleep(1)
    await _broker_away(harness, asking, result, seconds=4.0)
    result.recovery_seconds = await _answers_again(asking)
    with harness.redis("broker") as broker:
        broker.flushall()
    await sending
    await asyncio.sleep(1)
    await traffic.stop()
    traffic.judge(result)
    await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, batch_id, count, result)
    await workload.judge_documents(harness, documents, reference, result)
    result.expect(len(documents.accepted) == count, f"{count - len(documents.accepted)} submissions were refused")
    result.expect(result.recovery_seconds <= 15, "recovery took longer than 15 s")
    result.take_errors(client, asking)
    result.detail += f"; {traffic.refused} requests refused meanwhile"
    return result


async def _broker_away(harness: Harness, asking: Client, result: RowResult, seconds: float) -> None:
    """Kill the broker and keep it away for a while; interactive requests must be refused soon."""
    await harness.proxies["broker"].refuse()
    await harness.kill("broker")
    await asyncio.sleep(0.5)
    began = time.monotonic()
    response = await asking.send("POST", "/v1/chat/completions", json=_ASK)
    took = time.monotonic() - began
    _expect_refusal(result, response, took, "queue_unavailable", within_seconds=2.0)
    await asyncio.sleep(max(0.0, seconds - took))
    await harness.wait_ready("broker")
    await harness.proxies["broker"].heal()


def _expect_refusal(
    result: RowResult, response: httpx.Response | None, took: float, code: str, *, within_seconds: float
) -> None:
    status = response.status_code if response is not None else 0
    text = response.text if response is not None else ""
    result.expect(status == 503 and code in text, f"expected 503 {code}, got {status} {text[:100]}")
    result.expect(took <= within_seconds, f"the refusal took {took:.1f} s")
    result.expect(status != 503 or "retry-after" in (response.headers if response else {}), "503 without Retry-After")
    result.detail = f"503 after {took:.2f} s"


async def _answers_again(client: Client) -> float:
    async def answers() -> bool:
        response = await client.send("POST", "/v1/chat/completions", json=_ASK)
        return response is not None and response.is_success

    return await eventually(answers, 60.0, "chat did not answer again")


async def broker_frozen(harness: Harness) -> RowResult:
    """The broker is stopped with SIGSTOP: connections stay open and nothing is answered."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    frozen_seconds = min(20.0, max(6.0, 200 * harness.scale))
    harness.signal("broker", signal.SIGSTOP)
    thaw_at = time.monotonic() + frozen_seconds
    health: list[float] = []
    probing = asyncio.create_task(_probe_health(harness, health))
    began = time.monotonic()
    response = await client.send("POST", "/v1/chat/completions", json=_ASK)
    _expect_refusal(result, response, time.monotonic() - began, "queue_unavailable", within_seconds=3.0)
    await workload.send_documents(client, documents, 10)
    batch_id = await workload.start_batch(client, 10)
    result.expect(len(documents.accepted) == 10, f"{10 - len(documents.accepted)} submissions were refused")
    result.expect(time.monotonic() < thaw_at, "submissions waited for the broker")
    await asyncio.sleep(max(0.0, thaw_at - time.monotonic()))
    harness.signal("broker", signal.SIGCONT)
    await settle(probing)
    result.recovery_seconds = await _answers_again(client)
    await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, batch_id, 10, result)
    await workload.judge_documents(harness, documents, reference, result)
    p99 = statistics.quantiles(health, n=100)[98]
    result.expect(p99 <= 0.1, f"/healthz p99 {p99 * 1000:.0f} ms")
    result.take_errors(client)
    result.detail += f"; /healthz p99 {p99 * 1000:.0f} ms of {len(health)}; frozen {frozen_seconds:.0f} s"
    return result


async def _probe_health(harness: Harness, seconds: list[float]) -> None:
    url = f"{harness.child('gateway').program.url}/healthz"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        while True:
            began = time.monotonic()
            await http.get(url)
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.05)


async def broker_full(harness: Harness) -> RowResult:
    """The broker has no memory left: new requests are refused, and what is queued stays."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    for name in ("ingest", "ingest-2"):
        await harness.child(name).stop()
    await workload.send_documents(client, documents, 20)
    with harness.redis("broker") as broker:

        async def queued() -> bool:
            return int(broker.llen("ingest")) > 0  # without a worker the others wait in the ledger

        await eventually(queued, 10.0, "the jobs were not dispatched")
        before = int(broker.llen("ingest"))
        broker.config_set("maxmemory", 1_000_000)
        began = time.monotonic()
        response = await client.send("POST", "/v1/chat/completions", json=_ASK)
        _expect_refusal(result, response, time.monotonic() - began, "queue_full", within_seconds=3.0)
        result.lost += max(0, before - int(broker.llen("ingest")))
        evicted = int(broker.info("stats")["evicted_keys"])
        result.expect(evicted == 0, f"{evicted} keys were evicted")
        more = await workload.start_batch(client, 5)
        result.expect(more is not None, "a batch was refused")
        broker.config_set("maxmemory", 0)
    for name in ("ingest", "ingest-2"):
        harness.child(name).start()
    result.recovery_seconds = await _answers_again(client)
    await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, more, 5, result)
    await workload.judge_documents(harness, documents, reference, result)
    result.take_errors(client)
    return result


async def cache_broken(harness: Harness) -> RowResult:
    """The cache is flushed, refuses, is frozen and is full: people must not notice.

    Half of the questions are new ones, which are timed: they are looked up in vain, embedded, answered and kept. The
    other half are the same again, and show that the cache is in use.
    """
    result = RowResult()
    client = harness.client()
    store_id = await _store(harness, client)
    idle = await _ask_about(client, store_id, result)
    proxy = harness.proxies["cache"]
    seen: dict[str, _Asked] = {}
    with harness.redis("cache") as cache:
        limit = cache.config_get("maxmemory")["maxmemory"]
        cache.flushall()
        seen["flushed"] = await _ask_about(client, store_id, result)
        await proxy.refuse()
        seen["down"] = await _ask_about(client, store_id, result)
        await proxy.heal()
        proxy.freeze()
        seen["frozen"] = await _ask_about(client, store_id, result)
        await proxy.heal()
        cache.config_set("maxmemory", 1)
        seen["full"] = await _ask_about(client, store_id, result)
        cache.config_set("maxmemory", limit)
    await eventually(lambda: _hits(client, store_id), 30.0, "nothing was given from the cache again")
    worst = max(asked.median_seconds for asked in seen.values())
    longer = worst - idle.median_seconds
    result.expect(longer <= 0.1, f"requests took {longer * 1000:.0f} ms longer")
    result.expect(idle.hits > 0, "nothing was given from the cache")
    result.take_errors(client)
    shown = ", ".join(f"{name} {asked.median_seconds * 1000:.0f}" for name, asked in seen.items())
    slowest = max(asked.slowest_seconds for asked in seen.values())
    result.detail = (
        f"median ms: idle {idle.median_seconds * 1000:.0f}, {shown}; slowest {slowest * 1000:.0f}, "
        f"idle {idle.slowest_seconds * 1000:.0f}; hits idle {idle.hits}"
    )
    return result


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the new ones of a round of questions took; `hits` of the others were given from the cache."""

    median_seconds: float
    slowest_seconds: float
    hits: int


async def _store(harness: Harness, client: Client) -> str:
    """A vector store with a document, so that questions are embedded and versions are looked at."""
    documents = await workload.new_store(client)
    await workload.send_documents(client, documents, 1)
    await workload.until_ingested(harness, documents)
    return documents.vector_store_id


async def _ask_about(client: Client, store_id: str, result: RowResult) -> _Asked:
    took: list[float] = []
    hits = 0
    for number in range(10):
        for text in (uuid.uuid4().hex, "again"):
            began = time.monotonic()
            body = _cacheable(store_id, f"{text} [[tokens=3]]")
            response = await client.send("POST", "/v1/chat/completions", gateway=number, json=body)
            if text != "again":
                took.append(time.monotonic() - began)
            ok = response is not None and response.is_success
            result.accepted += ok
            result.lost += not ok
            hits += response is not None and response.headers.get("x-docent-cache") == "hit"
    return _Asked(statistics.median(took), max(took), hits)


async def _hits(client: Client, store_id: str) -> bool:
    response = await client.send("POST", "/v1/chat/completions", json=_cacheable(store_id, "after all"))
    return response is not None and response.headers.get("x-docent-cache") == "hit"


def _cacheable(store_id: str, text: str) -> dict[str, Any]:
    return question(text, temperature=0, vector_store_ids=[store_id])
