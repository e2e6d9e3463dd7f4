"""Processes killed with SIGKILL, which no process can prepare for."""

import asyncio
import time

from tests.faults import workload
from tests.faults.harness import Harness, RowResult

_VICTIMS = ("ingest", "ingest-2", "batch", "chat", "chat-2")


async def workers_at_random(harness: Harness) -> RowResult:
    """Workers die at random points while documents are ingested and a batch is answered."""
    result = RowResult()
    client = harness.client()
    reference, idle_seconds = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    count, kills = max(10, round(1000 * harness.scale)), max(3, round(50 * harness.scale))
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.02")
    sending = asyncio.create_task(workload.send_documents(client, documents, count))
    died = [await _kill_one(harness) for _ in range(kills)]
    await sending
    ended_at = time.monotonic()
    await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, batch_id, count, result)
    result.recovery_seconds = time.monotonic() - ended_at
    await workload.judge_documents(harness, documents, reference, result)
    result.take_errors(client)
    repeated = harness.upstream.total_calls - count
    result.detail = f"{len(died)} kills, {repeated} model calls repeated, undisturbed {idle_seconds:.1f} s for 10"
    return result


async def _kill_one(harness: Harness) -> str:
    await asyncio.sleep(harness.random.uniform(0.3, 1.5))
    name = harness.random.choice(_VICTIMS)
    await harness.kill(name)
    return name
