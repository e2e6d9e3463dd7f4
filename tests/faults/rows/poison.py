"""Jobs that end, freeze, swell or hold up the process that runs them, among others that are harmless."""

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select
from starlette.responses import Response, StreamingResponse

from libs.common import ledger
from libs.common.records.tables import jobs, vector_store_files
from tests.faults import workload
from tests.faults.client import Client
from tests.faults.harness import Harness, RowResult, eventually
from tests.faults.upstream import POISON

# What the four kinds end as: the first three cost their process, and the last only does not get on.
_ENDS: Final = {
    "kills": "server_error",
    "freezes": "server_error",
    "swells": "server_error",
    "drips": "deadline_exceeded",
}
_SMALL_SCALE: Final = 0.1
_INGEST: Final = ("ingest", "ingest-2")
_TRIES: Final = 3
# Shorter leases and steps than people would want, and little memory, so that none has to be waited for. A step is still
# longer than the reading of a file may take. As many jobs at once as in the other services.
_INGEST_SETTINGS: Final = {
    "JOB_STEP_SECONDS": "35",
    "WORKER_MEMORY_BYTES": str(500 << 20),
    "WORKER_CONCURRENCY": "16",
}
SETTINGS: Final = {
    "*": {"LEASE_SECONDS": "4", "HEARTBEAT_SECONDS": "1"},
    "ingest": _INGEST_SETTINGS,
    "ingest-2": _INGEST_SETTINGS,
}


async def poison_jobs(harness: Harness) -> RowResult:
    """One job of each bad kind, and random kills; the bad ones are given up, requeued and done; nobody else pays."""
    result = RowResult()
    client = harness.client()
    reference, _ = await workload.undisturbed(harness, client)
    documents = await workload.new_store(client)
    if harness.scale >= _SMALL_SCALE:
        await _harmless_to_the_worker(harness, client, result)
    poison = _Poison(harness)
    await poison.send(client, documents)
    count = max(10, round(1000 * harness.scale))
    sending = asyncio.create_task(workload.send_documents(client, documents, count))
    killed = await _kill_bystanders(harness, poison, max(0, round(50 * harness.scale)))
    await sending
    result.recovery_seconds = await eventually(poison.given_up, 420.0, "the poison jobs were not given up")
    await workload.until_ingested(harness, documents, 300.0)
    await poison.judge(result)
    await _judge_innocents(harness, documents, result)
    await poison.requeue(client, result)
    await workload.judge_documents(harness, documents, reference, result)
    result.take_errors(client)
    result.detail = f"tries alone: {dict(poison.alone)}; {killed} other workers killed"
    return result


class _Poison:
    """The bad jobs: what they do, and what became of them.

    Attributes:
        alone: how often each kind struck while it ran alone.
        frozen: the process that stands still for one of them. Whoever stops or continues a process holds `signals`.
    """

    def __init__(self, harness: Harness) -> None:
        self.alone: Counter[str] = Counter()
        self.frozen: int | None = None
        self.signals = threading.Lock()
        self._harness = harness
        self._kinds = list(_ENDS) if harness.scale >= _SMALL_SCALE else ["kills"]
        self._files: dict[str, str] = {}

    async def send(self, client: Client, documents: workload.Documents) -> None:
        """Upload and attach one of each kind."""
        for kind in self._kinds:
            self._files[kind] = await _uploaded(client, f"{kind}.txt", f"This is {POISON}: {kind}.".encode())
        self._harness.upstream.on_poison = self._strike
        for file_id in self._files.values():
            await _attach(client, documents, file_id)

    async def _strike(self, text: str) -> Response | None:
        """Called on the stub's event loop, while the job waits for the answer."""
        kind = next(kind for kind in self._kinds if f"{POISON}: {kind}" in text)
        job = await asyncio.to_thread(self._job_now, kind)
        pid = int(job.worker.rpartition(".")[2])
        assert pid in {self._harness.child(name).pid for name in _INGEST}
        self.alone[kind] += job.alone
        match kind:
            case "kills":
                os.kill(pid, signal.SIGKILL)
            case "swells":
                return StreamingResponse(_spaces(1 << 20, 0.0), media_type="application/json")
            case "drips":
                return StreamingResponse(_spaces(1, 0.2), media_type="application/json")
            case _:
                # What this attempt would make of an answer comes too late, and of an error it would ask again: then it
                # would strike in the stead of the next attempt.
                await self._freeze(kind, pid, job.attempt)
        await asyncio.sleep(600)  # whoever asked is dead, or has lost the job
        return None

    async def _freeze(self, kind: str, pid: int, attempt: int) -> None:
        await asyncio.to_thread(self._signal, pid, signal.SIGSTOP)
        try:
            while True:
                await asyncio.sleep(0.2)
                job = await asyncio.to_thread(self._job_now, kind)
                if (job.state, job.attempt) != (ledger.RUNNING, attempt):
                    return
        finally:
            self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with self.signals, suppress(ProcessLookupError):  # it may be killed while it stands still
            self.frozen = pid if number is signal.SIGSTOP else None
            os.kill(pid, number)

    def _job_now(self, kind: str) -> "Row[tuple[Any, ...]]":
        return self._harness.database.read_now(lambda connection: _job_of(connection, self._files[kind]))

    async def given_up(self) -> bool:
        """Whether all of them have failed."""
        return {self._job_now(kind).state for kind in self._kinds} == {ledger.FAILED}

    async def judge(self, result: RowResult) -> None:
        """Each had its three tries alone, and says why it was given up."""
        for kind in self._kinds:
            job = self._job_now(kind)
            result.expect(job.failures == _TRIES, f"{kind}: given up after {job.failures} tries")
            result.expect(job.error_code == _ENDS[kind], f"{kind}: given up with {job.error_code}")
            if _ENDS[kind] == "server_error":
                result.expect(self.alone[kind] == _TRIES, f"{kind}: struck {self.alone[kind]} times while alone")
                told = f"while running alone (failure {_TRIES} of {_TRIES})" in job.error_message
                result.expect(told, f"{kind}: given up with '{job.error_message}'")

    async def requeue(self, client: Client, result: RowResult) -> None:
        """Cured, they are requeued by their ids, and done."""
        self._harness.upstream.on_poison = None
        for kind in self._kinds:
            requeued = await client.send("POST", f"/v1/jobs/{self._job_now(kind).id}/requeue")
            result.expect(requeued is not None and requeued.is_success, f"{kind}: it could not be requeued")
        await workload.until_quiet(self._harness)
        for kind in self._kinds:
            state = self._job_now(kind).state
            result.expect(state == ledger.SUCCEEDED, f"{kind}: requeued, it is {state}")


async def _spaces(size: int, pause_seconds: float) -> AsyncIterator[bytes]:
    """White space without end: JSON that may still become an answer."""
    while True:
        yield b" " * size
        await asyncio.sleep(pause_seconds)


async def _harmless_to_the_worker(harness: Harness, client: Client, result: RowResult) -> None:
    """Files that make a parser loop or swell are no poison: its limits end it, and the file alone fails."""
    pids = [harness.child(name).pid for name in _INGEST]
    documents = await workload.new_store(client)
    loops = await _uploaded(client, "loops.html", b"<div>" * 200_000)
    swells = await _uploaded(client, "swells.json", b"[" + b'{"a":0},' * 8_000_000 + b"0]")
    documents.accepted = {loops: 0, swells: 0}
    for file_id in documents.accepted:
        await _attach(client, documents, file_id)
    await workload.until_ingested(harness, documents, 120.0)
    for file_id in documents.accepted:
        row = await harness.database.read(partial(_attachment, file_id=file_id))
        result.expect((row.status, row.error_code) == ("failed", "invalid_file"), f"{row.status}: {row.error_message}")
        job = await harness.database.read(partial(_job_of, file_id=file_id))
        result.expect((job.attempt, job.failures) == (1, 1), f"a bad file had {job.attempt} attempts")
    result.expect([harness.child(name).pid for name in _INGEST] == pids, "a bad file ended its worker")


async def _uploaded(client: Client, name: str, content: bytes) -> str:
    file_id = await workload.upload(client, name, content)
    assert file_id is not None
    return file_id


async def _attach(client: Client, documents: workload.Documents, file_id: str) -> None:
    path = f"/v1/vector_stores/{documents.vector_store_id}/files"
    attached = await client.send("POST", path, json={"file_id": file_id})
    assert attached is not None
    assert attached.is_success


async def _kill_bystanders(harness: Harness, poison: _Poison, count: int) -> int:
    """Kill workers in the midst of jobs, but none with a job alone: nobody could tell whose fault that was."""
    killed = 0
    for _ in range(count * 100):
        if killed == count:
            break
        killed += await asyncio.to_thread(_kill_if_busy, harness, poison, harness.random.choice(_INGEST))
        await asyncio.sleep(0.1)
    return killed


def _kill_if_busy(harness: Harness, poison: _Poison, name: str) -> bool:
    with poison.signals:
        pid = harness.signal(name, signal.SIGSTOP)  # what the ledger says of it stays true until it is dead
        if pid is None:
            return False
        held = harness.database.read_now(lambda connection: _held_by(connection, pid))
        if len(held) > 1 and not any(held):
            os.kill(pid, signal.SIGKILL)
            return True
        if pid != poison.frozen:
            os.kill(pid, signal.SIGCONT)
        return False


def _held_by(connection: Connection, pid: int) -> list[bool]:
    running = (jobs.c.state == ledger.RUNNING) & jobs.c.worker.endswith(f".{pid}")
    return list(connection.execute(select(jobs.c.alone).where(running)).scalars())


async def _judge_innocents(harness: Harness, documents: workload.Documents, result: RowResult) -> None:
    of_store = select(vector_store_files.c.job_id).where(vector_store_files.c.file_id.in_(documents.accepted))
    charged = select(func.count()).where(jobs.c.id.in_(of_store), jobs.c.failures > 0)
    number = await harness.database.read(lambda connection: connection.execute(charged).scalar_one())
    result.expect(number == 0, f"{number} innocent jobs were charged")


def _job_of(connection: Connection, file_id: str) -> "Row[tuple[Any, ...]]":
    """The job that makes a file searchable."""
    wanted = select(vector_store_files.c.job_id).where(vector_store_files.c.file_id == file_id)
    return connection.execute(select(jobs).where(jobs.c.id == wanted.scalar_subquery())).one()


def _attachment(connection: Connection, file_id: str) -> "Row[tuple[Any, ...]]":
    return connection.execute(select(vector_store_files).where(vector_store_files.c.file_id == file_id)).one()
