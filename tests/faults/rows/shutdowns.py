"""Processes asked to stop: by the signals that Celery knows, and one after the other in a rolling update."""

import asyncio
import signal
import time

from tests.faults import workload
from tests.faults.harness import Harness, RowResult
from tests.faults.traffic import Traffic

_ROUNDS = {
    "SIGTERM": (signal.SIGTERM,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
    "SIGQUIT": (signal.SIGQUIT,),
}
_WORKERS = ("chat", "ingest", "batch", "conversations")


async def stop_signals(harness: Harness) -> RowResult:
    """Each worker gets each signal under load; the supervisor starts it again."""
    result = RowResult()
    client, asking = harness.client(), harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    count = max(30, round(600 * harness.scale))
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.1")
    traffic = Traffic(asking).start()
    for name, numbers in _ROUNDS.items():
        sending = asyncio.create_task(workload.send_documents(client, documents, count // 3))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await asyncio.gather(*(_stop_once(harness, worker, numbers) for worker in _WORKERS))
        result.detail += f"{name}: back after {time.monotonic() - began:.1f} s; "
        await sending
    await traffic.stop()
    traffic.judge(result)
    result.recovery_seconds = await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, batch_id, count, result)
    await workload.judge_documents(harness, documents, reference, result)
    result.expect(result.recovery_seconds <= 5, "leases were not handed back: recovery took longer than 5 s")
    result.take_errors(client, asking)
    result.detail += f"{traffic.refused} requests ended with an error"
    return result


async def _stop_once(harness: Harness, worker: str, numbers: tuple[signal.Signals, ...]) -> None:
    pid = harness.child(worker).pid
    for number in numbers:
        harness.signal(worker, number)
        await asyncio.sleep(0.2)
    await harness.until(lambda: harness.child(worker).pid != pid, 30.0, f"{worker} did not stop")
    await harness.wait_ready(worker)


async def rolling_restart(harness: Harness) -> RowResult:
    """Every service in turn, workers first, gateways last, while people ask and a batch runs."""
    result = RowResult()
    client, asking = harness.client(), harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    count = max(30, round(300 * harness.scale))
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.2")
    sending = asyncio.create_task(workload.send_documents(client, documents, count))
    traffic = Traffic(asking, tokens=20, pause_seconds=0.05).start(6)
    for name in ("chat", "chat-2", "ingest", "ingest-2", "batch", "conversations", "gateway", "gateway-2"):
        await harness.restart(name)
    await sending
    await traffic.stop()
    traffic.judge(result)
    await workload.until_ingested(harness, documents)
    await workload.judge_batch(client, batch_id, count, result)
    await workload.judge_documents(harness, documents, reference, result)
    failed = traffic.refused + traffic.silent + client.seen.refused
    result.expect(failed == 0, f"{failed} requests failed, such as {[*traffic.errors, '-'][0]}")
    result.expect(len(documents.accepted) == count, f"{count - len(documents.accepted)} submissions were refused")
    result.take_errors(client, asking)
    result.detail = f"{traffic.complete} answers while 8 processes were replaced"
    return result
