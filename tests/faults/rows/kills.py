"""Processes killed with SIGKILL, which no process can prepare for."""

import asyncio
import time
from typing import Final

from tests.faults import background, workload
from tests.faults.deaths import Deaths
from tests.faults.harness import Harness, RowResult

_VICTIMS: Final = ("ingest", "ingest-2", "batch", "chat", "chat-2", "conversations")
_IN_BACKGROUND: Final = 4
_PATIENCE_SECONDS: Final = 90.0
# The full load, and behind it the suspects, of which one after the other runs.
_FULL_PATIENCE_SECONDS: Final = 1500.0
# With answers as slow as a model's, most kills meet work that is under way; embeddings come from the cache.
_MODEL_SECONDS: Final = 0.3
_VECTORS_SECONDS: Final = 0.2


async def workers_at_random(harness: Harness) -> RowResult:
    """Workers die at random points while documents are ingested, and a batch and background responses answered."""
    result = RowResult()
    client = harness.client()
    reference, idle_seconds = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    kills = max(3, round(50 * harness.scale))
    per_kill = max(10, round(1000 * harness.scale)) // kills
    count, in_background = per_kill * kills, _IN_BACKGROUND * kills
    patience_seconds = _PATIENCE_SECONDS + _FULL_PATIENCE_SECONDS * harness.scale
    harness.proxies["models"].delay_seconds = _MODEL_SECONDS
    harness.proxies["vectors"].delay_seconds = _VECTORS_SECONDS
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.5")
    deaths = Deaths(harness)
    response_ids: list[str] = []
    for number in range(kills):
        victim = harness.random.choice(_VICTIMS)
        await harness.wait_ready(victim)
        sending = asyncio.create_task(workload.send_documents(client, documents, per_kill, number * per_kill))
        asking = asyncio.create_task(background.ask_in_background(client, _IN_BACKGROUND, 0.2, number * _IN_BACKGROUND))
        await asyncio.sleep(harness.random.uniform(0.1, 2.0))
        await deaths.kill(victim)
        await sending
        response_ids += await asking
    harness.proxies["models"].delay_seconds = harness.proxies["vectors"].delay_seconds = 0.0
    ended_at = time.monotonic()
    await workload.until_ingested(harness, documents, patience_seconds)
    await workload.judge_batch(client, batch_id, count, result, patience_seconds)
    await background.judge_responses(harness, client, response_ids, result, patience_seconds)
    result.recovery_seconds = time.monotonic() - ended_at
    await workload.until_quiet(harness, patience_seconds)
    await deaths.judge(result)
    await workload.judge_documents(harness, documents, reference, result)
    result.expect(bool(deaths.held), "no kill met any work")
    result.take_errors(client)
    repeated = harness.upstream.total_calls - count - in_background
    result.detail = f"{deaths.detail}; {repeated} model calls repeated; undisturbed {idle_seconds:.1f} s for 10"
    return result
