"""Submissions: interrupted, repeated, and far too many."""

import asyncio
import time
import uuid
from statistics import median
from typing import Final

import httpx

from tests.faults import workload
from tests.faults.client import Client
from tests.faults.harness import GATEWAYS, Harness, RowResult
from tests.faults.rows import versions


async def gateway_killed(harness: Harness) -> RowResult:
    """A gateway dies in the middle of an upload, and after it recorded a job that it could not enqueue."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    uploading = asyncio.create_task(_upload_slowly(harness))
    await asyncio.sleep(0.5)
    await harness.kill("gateway")
    broken = await uploading
    result.expect(not broken, "the broken upload was accepted")
    await harness.wait_ready("gateway")
    await harness.proxies["broker"].refuse()
    await workload.send_documents(client, documents, 10)
    result.expect(len(documents.accepted) == 10, f"{10 - len(documents.accepted)} submissions were refused")
    await asyncio.gather(*(harness.kill(name) for name in GATEWAYS))
    await harness.proxies["broker"].heal()
    result.recovery_seconds = await workload.until_ingested(harness, documents)
    result.expect(result.recovery_seconds <= 30, "recovery took longer than 30 s")
    await asyncio.gather(*(harness.wait_ready(name) for name in GATEWAYS))
    await workload.judge_documents(harness, documents, reference, result)
    result.take_errors(client)
    return result


async def _upload_slowly(harness: Harness) -> bool:
    """Whether an upload that takes longer than its gateway lives was accepted."""
    boundary = "x" * 20
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--{boundary}\r\n'
    head += 'content-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.ports.gateway)
    request = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {harness.api_key}\r\n"
    request += f"content-type: multipart/form-data; boundary={boundary}\r\ncontent-length: 10000000\r\n\r\n{head}"
    try:
        writer.write(request.encode())
        for _ in range(50):
            writer.write(b"a" * 1000)
            await writer.drain()
            await asyncio.sleep(0.05)
        return (await reader.read(12)).endswith(b"200")
    except OSError:
        return False
    finally:
        writer.transport.abort()


async def same_at_once(harness: Harness) -> RowResult:
    """Fifty equal submissions: one effect with one Idempotency-Key, else fifty; one file ten times; stale writers."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    headers = {"idempotency-key": uuid.uuid4().hex}
    keyed = await asyncio.gather(*(_create_store(client, number, headers) for number in range(50)))
    made = {response.json()["id"] for response in keyed if response is not None and response.is_success}
    result.accepted += sum(response is not None and response.is_success for response in keyed)
    result.duplicates += max(0, len(made) - 1)
    result.expect(len(made) >= 1, "none of fifty equal submissions was accepted")
    bare = await asyncio.gather(*(_create_store(client, number, {}) for number in range(50)))
    result.expect(len({r.json()["id"] for r in bare if r is not None and r.is_success}) == 50, "fifty were not fifty")
    documents = await workload.new_store(client)
    await workload.send_document(client, documents, 0)
    (file_id,) = documents.accepted
    path = f"/v1/vector_stores/{documents.vector_store_id}/files"
    await asyncio.gather(*(client.send("POST", path, gateway=at, json={"file_id": file_id}) for at in range(10)))
    await workload.until_ingested(harness, documents)
    await workload.until_quiet(harness)
    await workload.judge_documents(harness, documents, reference, result)
    result.detail = f"{len(made)} effects of 50 equal submissions with one key"
    await versions.stale_writers(harness, client, result)
    result.take_errors(client)
    return result


async def _create_store(client: Client, number: int, headers: dict[str, str]) -> httpx.Response | None:
    """Retries as an official client does while the first of them is still under way."""
    for _ in range(20):
        body = {"name": "the same"}
        response = await client.send("POST", "/v1/vector_stores", gateway=number, headers=headers, json=body)
        if response is None or response.status_code != 409:
            return response
        await asyncio.sleep(0.1)
    return response


_ALONE: Final = 9  # documents of the tenant that does not flood, one after the other, before and during


async def flooding_tenant(harness: Harness) -> RowResult:
    """One tenant submits thousands of jobs; another one's single document must not stand behind them."""
    result = RowResult()
    flooder = harness.client()
    other = harness.client(await harness.tenant("tenant_other"))
    await _ingest_one(harness, other, result)  # whoever is the first after a start waits longer, flood or not
    idle = [await _ingest_one(harness, other, result) for _ in range(_ALONE)]
    files = [await workload.upload(flooder, "flood.txt", workload.document(number)) for number in range(50)]
    flooded = max(200, round(10_000 * harness.scale))
    for _ in range(flooded // 50):
        store = await workload.new_store(flooder)
        await flooder.send("POST", f"/v1/vector_stores/{store.vector_store_id}/file_batches", json={"file_ids": files})
    behind = [await _ingest_one(harness, other, result) for _ in range(_ALONE)]
    limited = harness.client(await harness.tenant("tenant_limited", requests_per_minute=60))
    await asyncio.gather(*(limited.send("GET", "/v1/files") for _ in range(100)))
    result.expect(limited.seen.statuses[429] > 0, "a flood of requests was never told 429")
    ratio = median(behind) / median(idle)
    result.expect(ratio <= 2, f"the other tenant waited {ratio:.1f} times as long as when idle")
    result.take_errors(flooder, other, limited)
    result.detail = (
        f"idle {median(idle):.2f} s, at most {max(idle):.2f} s; "
        f"behind {flooded} jobs {median(behind):.2f} s, at most {max(behind):.2f} s"
    )
    return result


async def _ingest_one(harness: Harness, client: Client, result: RowResult) -> float:
    """Seconds from the submission of one document until it is searchable."""
    documents = await workload.new_store(client)
    began = time.monotonic()
    await workload.send_document(client, documents, 0)
    await workload.until_ingested(harness, documents, every_seconds=0.01)
    result.accepted += 1
    result.lost += list((await workload.statuses(harness, documents)).values()) != ["completed"]
    return time.monotonic() - began
