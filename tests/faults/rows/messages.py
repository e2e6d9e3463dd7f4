"""Messages on the broker that nobody of us sent, or that were sent before."""

import asyncio
import base64
import json
import uuid

from libs.common.tasks.wire import celery_message
from tests.faults.client import question
from tests.faults.harness import Harness, RowFailedError, RowResult, eventually

_QUEUES = {
    "chat": "chat.answer",
    "ingest": "ingest.file",
    "batch": "batch.validate",
    "conversations": "conversations.create",
}
_WORKERS = ("chat", "chat-2", "ingest", "ingest-2", "batch", "conversations")
_COUNTER = "docent_refused_messages_total"


async def forged_messages(harness: Harness) -> RowResult:
    """Whoever reaches the broker can push anything; nothing of it may run, all of it must be counted."""
    result = RowResult()
    client = harness.client()
    captured = await _captured_request(harness, result)
    pids = {name: harness.child(name).pid for name in _WORKERS}
    calls = harness.upstream.total_calls
    pushed = 0
    with harness.redis("broker") as broker:
        for queue, task in _QUEUES.items():
            for message in _bad_messages(queue, task, captured):
                broker.lpush(queue, message)
                pushed += 1
        for _ in range(5):
            broker.lpush("chat", captured)
            pushed += 1

        async def consumed() -> bool:
            return not any(broker.llen(queue) for queue in _QUEUES)

        await eventually(consumed, 20.0, "the messages were not taken")
    await asyncio.sleep(1.5)
    executed = harness.upstream.total_calls - calls
    result.duplicates = executed
    result.expect(executed == 0, f"{executed} messages were executed")
    refused = sum([await harness.metric(name, _COUNTER) for name in _WORKERS])
    result.expect(refused >= pushed, f"{pushed} were pushed, {refused:.0f} counted")
    died = [name for name in _WORKERS if harness.child(name).pid != pids[name]]
    result.expect(not died, f"{', '.join(died)} died")
    response = await client.send("POST", "/v1/chat/completions", json=question("Hello [[tokens=3]]"))
    result.expect(response is not None and response.is_success, "chat does not answer any more")
    result.detail = f"{pushed} pushed, {refused:.0f} counted, {executed} executed"
    return result


def _bad_messages(queue: str, task: str, captured: bytes) -> list[bytes]:
    """One of each kind: malformed on every level, forged, unknown, and a real one under other names."""
    junk = base64.b64encode(bytes(range(200))).decode()
    whole = json.loads(celery_message(queue, task, str(uuid.uuid4()), junk))
    renamed = json.loads(captured)
    renamed["headers"]["task"] = task if queue != "chat" else "chat.search"
    return [
        b"not json at all",
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        b"null",
        json.dumps({**whole, "body": "!!not base64!!"}).encode(),
        json.dumps({**whole, "body": base64.b64encode(b"{not json").decode()}).encode(),
        json.dumps({**whole, "body": base64.b64encode(b"[]").decode()}).encode(),
        json.dumps({**whole, "headers": {}}).encode(),
        json.dumps({**whole, "properties": {}}).encode(),
        json.dumps({**whole, "content-type": "application/x-python-serialize"}).encode(),
        celery_message(queue, task, str(uuid.uuid4()), junk),
        celery_message(queue, "nobody.knows", str(uuid.uuid4()), junk),
        json.dumps(renamed).encode(),
    ]


async def _captured_request(harness: Harness, result: RowResult) -> bytes:
    """A real message of a request that is answered once: taken from the queue while no worker is there."""
    client = harness.client()
    for name in ("chat", "chat-2"):
        await harness.child(name).stop()
    asking = asyncio.create_task(
        client.send("POST", "/v1/chat/completions", json=question("Hello [[tokens=3 mark=captured]]"))
    )
    with harness.redis("broker") as broker:
        await harness.until(lambda: int(broker.llen("chat")) > 0, 10.0, "the request was not queued")
        message: bytes = broker.lrange("chat", 0, 0)[0]
    for name in ("chat", "chat-2"):
        harness.child(name).start()
        await harness.wait_ready(name)
    response = await asking
    if response is None or not response.is_success:
        raise RowFailedError("the captured request was not answered")
    result.accepted = harness.upstream.calls["captured"]
    result.expect(result.accepted == 1, "the captured request ran twice")
    return message
