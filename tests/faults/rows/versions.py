"""Writers that went on though somebody else had their work: frozen, overtaken, and then alive again."""

import asyncio
import signal
from typing import Any, Final

from sqlalchemy import func, select

from libs.common import ledger
from libs.common.records.tables import jobs
from tests.faults import workload
from tests.faults.client import Client
from tests.faults.harness import Harness, RowFailedError, RowResult
from tests.faults.workload import Documents

_FILES: Final = 6
_WORKERS: Final = ("ingest", "ingest-2")
# Makes an attempt long enough to be met at any of its points; embeddings come from the cache by then.
_SLOW_SECONDS: Final = 0.8
_FREEZE_TRIES: Final = 30


async def stale_writers(harness: Harness, client: Client, result: RowResult) -> None:
    """A worker freezes over its files and goes on when others have made them, as the same version or as a newer one."""
    reference = await workload.new_store(client)
    files = [await workload.upload(client, f"long-{number}.txt", _long_document(number)) for number in range(_FILES)]
    names = {str(file_id): number for number, file_id in enumerate(files)}
    await _attach(client, reference, names)
    await workload.until_ingested(harness, reference)
    stale = 0
    for number in range(max(2, round(10 * harness.scale))):
        documents = await workload.new_store(client)
        stale += await _freeze_over(harness, client, documents, names, overtake=number % 2 == 0)
        await workload.judge_documents(harness, documents, reference, result)
    result.expect(stale > 0, "no worker was frozen over a file")
    result.detail += f"; {stale} attempts went on after others had done their work"


async def _freeze_over(
    harness: Harness, client: Client, documents: Documents, names: dict[str, int], *, overtake: bool
) -> int:
    """How many attempts of the frozen worker had lost their jobs when it went on."""
    harness.proxies["vectors"].delay_seconds = _SLOW_SECONDS
    await _attach(client, documents, names)
    frozen, stale = await _freeze(harness)
    try:
        if overtake:
            await _attach(client, documents, names, {"edition": 2})
        harness.proxies["vectors"].delay_seconds = 0.0
        await workload.until_ingested(harness, documents)
        await workload.until_quiet(harness)
    finally:
        harness.signal(frozen, signal.SIGCONT)
    # It has given up each of its attempts once it takes part in the upkeep again, and a moment later.
    await asyncio.sleep(3.0)
    await workload.until_quiet(harness)
    return stale


async def _freeze(harness: Harness) -> tuple[str, int]:
    """Stop a worker at a random point while it makes files; its name, and how many it was at."""
    for _ in range(_FREEZE_TRIES):
        await asyncio.sleep(harness.random.uniform(0.1, 1.5))
        name = harness.random.choice(_WORKERS)
        harness.signal(name, signal.SIGSTOP)
        try:
            # Frozen inside a transaction it would hold SQLite's only lock, and then everybody waits, not it alone.
            async with asyncio.timeout(1.0):
                await harness.database.write(lambda _connection: None)
                if held := await _running(harness, name):
                    return name, held
        except TimeoutError:
            pass
        harness.signal(name, signal.SIGCONT)
    raise RowFailedError("no worker could be frozen over a file")


async def _running(harness: Harness, name: str) -> int:
    """How many jobs a worker is at."""
    mine = jobs.c.worker.endswith(f".{harness.child(name).pid}")
    query = select(func.count()).where(jobs.c.state == ledger.RUNNING, mine)
    return await harness.database.read(lambda connection: connection.execute(query).scalar_one())


async def _attach(
    client: Client, documents: Documents, names: dict[str, int], attributes: dict[str, Any] | None = None
) -> None:
    """Attach the files, or with other attributes than before: as a new version."""
    path = f"/v1/vector_stores/{documents.vector_store_id}/files"
    for number, (file_id, variant) in enumerate(names.items()):
        body = {"file_id": file_id, "attributes": attributes or {}}
        response = await client.send("POST", path, gateway=number, json=body)
        if response is not None and response.is_success:
            documents.accepted[file_id] = variant


def _long_document(number: int) -> bytes:
    """More chunks than are stored at a time."""
    paragraphs = [
        " ".join(f"Sentence {at} of paragraph {paragraph} in text {number} says what it says." for at in range(8))
        for paragraph in range(150)
    ]
    return "\n\n".join(paragraphs).encode()
