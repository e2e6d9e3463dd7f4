"""Messages on the broker that nobody of us sent, or that were sent before."""

import asyncio
import base64
import json
import threading
import time
import uuid
from collections import Counter
from typing import Any, Final

import orjson
from redis import Redis

from libs.common.keyring import Keyring
from libs.common.tasks.wire import Envelope, MessageSealer, celery_message
from tests.faults import workload
from tests.faults.client import question
from tests.faults.harness import Harness, RowFailedError, RowResult, eventually

_QUEUES: Final = {
    "chat": "chat.answer",
    "chat_jobs": "chat.answer_shard",
    "ingest": "ingest.file",
    "batch": "batch.validate",
    "conversations": "conversations.create",
}
_WORKERS: Final = ("chat", "chat-2", "ingest", "ingest-2", "batch", "conversations")
_COUNTER: Final = "docent_refused_messages_total"
_REASONS: Final = ("malformed", "unsealable", "unknown_task", "replayed", "not_claimable")
# Part of a real question and of what was forged: no log may hold it.
_CANARY: Final = "canary-3f1d2c"
_COPIES: Final = 5
_WATCH_SECONDS: Final = 30.0


async def forged_messages(harness: Harness) -> RowResult:
    """Whoever reaches the broker can push anything; nothing of it may run, all of it must be counted."""
    result = RowResult()
    client = harness.client()
    question_sent = await _captured_request(harness, result)
    documents, job_sent = await _captured_job(harness, result)
    pids = {name: harness.child(name).pid for name in _WORKERS}
    calls, embedded = harness.upstream.total_calls, harness.upstream.embedded
    before = await _counted(harness)
    pushed: Counter[str] = Counter()
    with harness.redis("broker") as broker:
        for queue, task in _QUEUES.items():
            for reason, message in _bad_messages(queue, task, question_sent):
                broker.lpush(queue, message)
                pushed[reason] += 1
        for _ in range(_COPIES):
            broker.lpush("chat", question_sent)
            broker.lpush("ingest", job_sent)
        pushed.update({"replayed": _COPIES, "not_claimable": _COPIES})
        await eventually(lambda: _is_consumed(broker), 20.0, "the messages were not taken")
    counted = await _all_counted(harness, before, pushed)
    executed = harness.upstream.total_calls - calls + harness.upstream.embedded - embedded
    result.duplicates += executed
    result.expect(executed == 0, f"{executed} messages were executed")
    for reason, number in pushed.items():
        result.expect(counted[reason] >= number, f"{number} {reason} were pushed, {counted[reason]} counted")
    died = [name for name in _WORKERS if harness.child(name).pid != pids[name]]
    result.expect(not died, f"{', '.join(died)} died")
    _judge_logs(harness, result)
    response = await client.send("POST", "/v1/chat/completions", json=question("Hello [[tokens=3]]"))
    result.expect(response is not None and response.is_success, "chat does not answer any more")
    found = await workload.statuses(harness, documents)
    result.lost += sum(found.get(file_id) != "completed" for file_id in documents.accepted)
    result.take_errors(client)
    result.detail = f"{pushed.total()} pushed, {executed} executed; counted: {dict(counted)}"
    return result


def _bad_messages(queue: str, task: str, captured: bytes) -> list[tuple[str, bytes]]:
    """One of each kind, with the reason for which it must be refused."""
    junk = base64.b64encode(_CANARY.encode() + bytes(range(200))).decode()
    whole = json.loads(celery_message(queue, task, str(uuid.uuid4()), junk))
    malformed = [
        b"not json at all",
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        b"null",
        b"[" * 5000,
        json.dumps({**whole, "body": "!!not base64!!"}).encode(),
        json.dumps({**whole, "body": base64.b64encode(b"{not json").decode()}).encode(),
        json.dumps({**whole, "body": base64.b64encode(b"[]").decode()}).encode(),
        json.dumps({**whole, "headers": {}}).encode(),
        json.dumps({**whole, "properties": {}}).encode(),
        json.dumps({**whole, "content-type": "application/x-python-serialize"}).encode(),
    ]
    unsealable = [
        celery_message(queue, task, str(uuid.uuid4()), junk),
        _sealed_by_others(queue, task),
        _renamed(captured, "chat.embed" if queue == "chat" else task),
        _renamed(captured, "celery.backend_cleanup"),  # Celery itself registers it with every worker
    ]
    unknown = [celery_message(queue, "nobody.knows", str(uuid.uuid4()), junk), _renamed(captured, "nobody.knows")]
    kinds = {"malformed": malformed, "unsealable": unsealable, "unknown_task": unknown}
    return [(reason, message) for reason, messages in kinds.items() for message in messages]


def _sealed_by_others(queue: str, task: str) -> bytes:
    """A message like ours in all but its key."""
    envelope = Envelope(id=uuid.uuid4().hex, task=task, tenant_id="tenant_forged", issued_at=0.0)
    return MessageSealer(Keyring.parse(Keyring.generate())).seal(queue, envelope, orjson.dumps({"text": _CANARY}))


def _renamed(captured: bytes, task: str) -> bytes:
    """A real message under another task's name."""
    renamed: dict[str, Any] = json.loads(captured)
    renamed["headers"]["task"] = task
    return json.dumps(renamed).encode()


async def _is_consumed(broker: "Redis") -> bool:
    return not any(broker.llen(queue) for queue in _QUEUES)


async def _counted(harness: Harness) -> "Counter[str]":
    """Refused messages of all workers, by reason."""
    return Counter(
        {
            reason: round(sum([await harness.metric(name, _COUNTER, reason=reason) for name in _WORKERS]))
            for reason in _REASONS
        }
    )


async def _all_counted(harness: Harness, before: "Counter[str]", pushed: "Counter[str]") -> "Counter[str]":
    """What was counted since, as soon as it is all or enough time has passed."""
    for _ in range(50):
        counted = Counter({reason: number - before[reason] for reason, number in (await _counted(harness)).items()})
        if counted >= pushed:
            break
        await asyncio.sleep(0.1)
    return counted


def _judge_logs(harness: Harness, result: RowResult) -> None:
    """Every refusal is in a log, and nothing of what was refused."""
    logs = {path.name: path.read_text(errors="replace") for path in (harness.state_dir / "logs").glob("*.log")}
    forms = (_CANARY, base64.b64encode(_CANARY.encode()).decode()[:-2])
    telling = [name for name, text in logs.items() if any(form in text for form in forms)]
    result.expect(not telling, f"content of messages is in {', '.join(telling)}")
    for service in ("chat", "ingest", "batch", "conversations"):
        text = logs[f"{service}.log"] + logs.get(f"{service}-2.log", "")
        result.expect("refused" in text, f"{service} does not say that it refused messages")


async def _captured_request(harness: Harness, result: RowResult) -> bytes:
    """The message of a request that was answered."""
    client = harness.client()
    watching = await _watch(harness, "chat")
    text = f"{_CANARY} [[tokens=3 mark=captured]]"
    response = await client.send("POST", "/v1/chat/completions", json=question(text))
    if response is None or not response.is_success:
        raise RowFailedError("the captured request was not answered")
    result.accepted += harness.upstream.calls["captured"]
    result.expect(harness.upstream.calls["captured"] == 1, "the captured request ran twice")
    return await watching


async def _captured_job(harness: Harness, result: RowResult) -> tuple[workload.Documents, bytes]:
    """The message of a job that was done, and its document."""
    client = harness.client()
    documents = await workload.new_store(client)
    watching = await _watch(harness, "ingest")
    await workload.send_document(client, documents, 0)
    await workload.until_ingested(harness, documents)
    result.accepted += len(documents.accepted)
    return documents, await watching


async def _watch(harness: Harness, queue: str) -> "asyncio.Task[bytes]":
    """Begin to look on at the broker; the task ends with the next message that is pushed into the queue."""
    watching = threading.Event()

    def look() -> bytes:
        give_up_at = time.monotonic() + _WATCH_SECONDS
        with harness.redis("broker") as broker, broker.monitor() as monitor:
            watching.set()
            while time.monotonic() < give_up_at:
                for argument in monitor.next_command()["command"].split(" "):
                    if argument.startswith('{"body"') and _queue_of(argument) == queue:
                        return str(argument).encode()
        raise RowFailedError(f"nothing was pushed into the queue '{queue}'")

    task = asyncio.create_task(asyncio.to_thread(look))
    await asyncio.to_thread(watching.wait, 5.0)
    return task


def _queue_of(message: str) -> str:
    return str(json.loads(message)["properties"]["delivery_info"]["routing_key"])
