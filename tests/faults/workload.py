"""Work to disturb: documents to ingest, batches and background responses to answer, and what came of them."""

import asyncio
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import Connection, and_, func, or_, select

from libs.common import ledger
from libs.common.rag.chunks import point_id
from libs.common.records.database import epoch_now
from libs.common.records.tables import jobs, vector_store_files
from tests.faults.client import Client, question
from tests.faults.harness import Harness, RowResult, eventually

VARIANTS: Final = 10
_IN_FLIGHT: Final = 8
# Longer than any pause before another try. What comes later is upkeep, or the end of a batch's time.
_SOON_SECONDS: Final = 60.0
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass
class Documents:
    """Documents sent to one vector store: which were accepted, by file id, and of which variant each is."""

    vector_store_id: str
    accepted: dict[str, int] = field(default_factory=dict)


def document(variant: int) -> bytes:
    """A small text that differs between variants and is the same in every run."""
    lines = [
        f"Paragraph {number} of document {variant} speaks of topic {variant * 31 + number}." for number in range(8)
    ]
    return "\n\n".join(lines).encode()


async def new_store(client: Client) -> Documents:
    """An empty vector store."""
    response = await client.send("POST", "/v1/vector_stores", json={"name": "faults"})
    assert response is not None
    assert response.is_success
    return Documents(response.json()["id"])


async def upload(client: Client, name: str, content: bytes, gateway: int = 0) -> str | None:
    """The id of a new file, if it was accepted."""
    files = {"file": (name, content, "text/plain")}
    uploaded = await client.send("POST", "/v1/files", gateway=gateway, data={"purpose": "assistants"}, files=files)
    return str(uploaded.json()["id"]) if uploaded is not None and uploaded.is_success else None


async def send_document(client: Client, documents: Documents, number: int) -> None:
    """Upload and attach one document; it counts as accepted when both were."""
    variant = number % VARIANTS
    file_id = await upload(client, f"document-{variant}.txt", document(variant), number)
    if file_id is None:
        return
    path = f"/v1/vector_stores/{documents.vector_store_id}/files"
    attached = await client.send("POST", path, gateway=number, json={"file_id": file_id})
    if attached is not None and attached.is_success:
        documents.accepted[file_id] = variant


async def send_documents(client: Client, documents: Documents, count: int, first: int = 0) -> None:
    """Send `count` documents, a few at a time, the numbers of which begin with `first`."""
    slots = asyncio.Semaphore(_IN_FLIGHT)

    async def send(number: int) -> None:
        async with slots:
            await send_document(client, documents, number)

    await asyncio.gather(*(send(number) for number in range(first, first + count)))


async def live_versions(harness: Harness, documents: Documents) -> dict[str, tuple[str, int]]:
    """Status and live version of every file of the store, by file id, straight from the records."""
    columns = vector_store_files.c

    def read(connection: Connection) -> dict[str, tuple[str, int]]:
        rows = connection.execute(
            select(columns.file_id, columns.status, columns.live_version).where(
                columns.vector_store_id == documents.vector_store_id
            )
        )
        return {row.file_id: (row.status, row.live_version) for row in rows}

    return await harness.database.read(read)


async def statuses(harness: Harness, documents: Documents) -> dict[str, str]:
    """The status of every file of the store, by file id."""
    return {file_id: status for file_id, (status, _) in (await live_versions(harness, documents)).items()}


async def until_ingested(
    harness: Harness, documents: Documents, seconds: float = 90.0, *, every_seconds: float = 0.05
) -> float:
    """Wait until no accepted document is under way; how long that took."""

    async def settled() -> bool:
        found = await statuses(harness, documents)
        return all(found.get(file_id) != "in_progress" for file_id in documents.accepted)

    return await eventually(settled, seconds, "documents were still in progress", every_seconds=every_seconds)


async def judge_documents(harness: Harness, documents: Documents, reference: Documents, result: RowResult) -> None:
    """Count what was lost, and points beyond those of an undisturbed run of the same documents."""
    found = await live_versions(harness, documents)
    expected = _contents(await harness.points(reference.vector_store_id))
    points = await harness.points(documents.vector_store_id)
    actual = _contents(points)
    result.accepted += len(documents.accepted)
    result.expect(all(expected[file_id] for file_id in reference.accepted), "the undisturbed run left no points")
    for file_id, variant in documents.accepted.items():
        wanted = expected[_file_of(reference, variant)]
        status, _ = found.get(file_id, ("missing", 0))
        result.lost += status != "completed" or bool(wanted - actual[file_id])
        result.duplicates += (actual[file_id] - wanted).total()
    result.duplicates += sum(contents.total() for file_id, contents in actual.items() if file_id not in found)
    # Two files have different ids, so those of the undisturbed run are made anew from what they follow from.
    strange = sum(point["id"] != _id_of(point, found.get(point["file_id"], ("", 0))[1]) for point in points)
    result.duplicates += strange
    result.expect(strange == 0, f"{strange} points have ids that are not of the live version of their file")


def _file_of(documents: Documents, variant: int) -> str:
    return next(file_id for file_id, each in documents.accepted.items() if each == variant)


def _id_of(point: dict[str, Any], live_version: int) -> str:
    return point_id(point["tenant_id"], point["vector_store_id"], point["file_id"], live_version, point["position"])


def _contents(points: Sequence[dict[str, Any]]) -> dict[str, "Counter[str]"]:
    """By file id: its points, each as position and hash of its vectors."""
    contents: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for point in points:
        digest = hashlib.sha256(repr(_plain(point["vector"])).encode()).hexdigest()
        contents[point["file_id"]][f"{point['position']}:{digest}"] += 1
    return contents


def _plain(vector: Any) -> Any:
    dense = vector["dense"] if isinstance(vector, dict) and "dense" in vector else vector
    return [round(value, 4) for value in dense] if isinstance(dense, list) else sorted(map(str, dense.items()))


async def undisturbed(harness: Harness, client: Client) -> tuple[Documents, float]:
    """One document of each variant, ingested in peace; and the seconds that took."""
    began = time.monotonic()
    documents = await new_store(client)
    await send_documents(client, documents, VARIANTS)
    await until_ingested(harness, documents)
    return documents, time.monotonic() - began


async def start_batch(client: Client, count: int, directive: str = "tokens=3") -> str | None:
    """A batch of `count` items `q0`…; its id if it was accepted."""
    lines = [
        {
            "custom_id": f"q{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": question(f"Hello [[{directive} mark=q{number}]]"),
        }
        for number in range(count)
    ]
    content = b"\n".join(orjson.dumps(line) for line in lines)
    files = {"file": ("in.jsonl", content, "application/jsonl")}
    uploaded = await client.send("POST", "/v1/files", data={"purpose": "batch"}, files=files)
    if uploaded is None or not uploaded.is_success:
        return None
    body = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    created = await client.send("POST", "/v1/batches", json=body)
    return str(created.json()["id"]) if created is not None and created.is_success else None


async def judge_batch(client: Client, batch_id: str | None, count: int, result: RowResult, seconds: float = 90) -> None:
    """Wait for a batch's end and see that every custom id is there exactly once, and with an answer."""
    if batch_id is None:
        result.problems.append("the batch was not accepted")
        return
    shown: dict[str, Any] = {}

    async def ended() -> bool:
        nonlocal shown
        response = await client.send("GET", f"/v1/batches/{batch_id}")
        if response is not None and response.is_success:
            shown = response.json()
        return shown.get("status") in _ENDED

    await eventually(ended, seconds, "the batch had not ended")
    answered: Counter[str] = Counter()
    for name in ("output_file_id", "error_file_id"):
        if shown.get(name):
            response = await client.send("GET", f"/v1/files/{shown[name]}/content")
            text = response.text if response is not None else ""
            answered.update(json.loads(line)["custom_id"] for line in text.splitlines())
    wanted = Counter(f"q{number}" for number in range(count))
    result.accepted += count
    result.lost += (wanted - answered).total()
    result.duplicates += (answered - wanted).total()
    failed = shown["request_counts"]["failed"]
    result.expect(shown["status"] == "completed" and failed == 0, f"batch {shown['status']}, {failed} items failed")


async def until_quiet(harness: Harness, seconds: float = 60.0) -> float:
    """Wait until no job runs or is to run within a minute; how long that took."""
    waiting = and_(jobs.c.state == ledger.QUEUED, jobs.c.due_at < epoch_now() + _SOON_SECONDS)
    under_way = select(func.count()).where(or_(jobs.c.state == ledger.RUNNING, waiting))

    async def quiet() -> bool:
        return not await harness.database.read(lambda connection: connection.execute(under_way).scalar_one())

    return await eventually(quiet, seconds, "jobs were still under way")
