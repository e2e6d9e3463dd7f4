"""Batches over real records and blobs: validation, results, cancelling, expiry, and every custom id exactly once."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, insert, select, update

from libs.common import batch_jobs, keys, ledger
from libs.common.blobs import BlobInfo, BlobStore
from libs.common.contracts import batch_lines
from libs.common.contracts.base import JobSpec
from libs.common.contracts.batch import EXPIRE_BATCH, FINALIZE_BATCH, VALIDATE_BATCH
from libs.common.contracts.chat import ANSWER_SHARD, BatchItem, ShardRequest
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.records import batches
from libs.common.records.database import epoch_now
from libs.common.records.migrate import migrate
from libs.common.records.tables import batch_items, files, jobs, tenants
from libs.common.records.tables import batches as batches_table
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.jobs import JobLane, JobRun
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.wire import Envelope
from libs.local.postgres import postgres_available, running_postgres
from services.batch import pipeline
from services.batch.main import create_worker
from services.batch.ports import BatchEndedError
from services.batch.settings import BatchSettings
from services.batch.store import ResultRecords

_TENANT = "tenant_a"
_CHAT = {"model": "docent-extractive", "messages": [{"role": "user", "content": "Where is the harbour?"}]}

_Step = Callable[[], Coroutine[Any, Any, object]]


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := postgres_available():
        pytest.skip(reason)
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/docent.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


class Platform:
    """The batch service with its jobs run by hand, and a stand-in for the chat service's answers."""

    def __init__(self, database_url: str, blobs_url: str) -> None:
        settings = BatchSettings(
            database_url=database_url, blobs_url=blobs_url, keyring=SecretStr(Keyring.generate()), keyring_file=None
        )
        self.worker = create_worker(settings)
        assert self.worker._database is not None
        self.database = self.worker._database
        self.messages = self.worker.messages
        self.blobs = BlobStore.open(blobs_url, self.worker.keyring.segment_sealer(keys.FILES_PURPOSE))
        self.sealer = self.worker.keyring.sealer(keys.BATCHES_PURPOSE)
        self.failing: set[str] = set()
        broker = BrokerConnection("redis://127.0.0.1:1/0")  # never used: no message is pushed here
        clock = BrokerClock(broker)
        self.dispatcher = Dispatcher(
            self.database,
            Publisher(broker),
            Consumers(broker, clock),
            self.messages,
            clock,
            settings,
            queues=[],
            holder="test",
        )
        self.lane = JobLane("test", self.database, self.messages, self.dispatcher, settings)

    async def upload(self, lines: list[bytes]) -> str:
        blob_id = f"{random.getrandbits(128):032x}"

        async def content() -> AsyncIterator[bytes]:
            yield b"\n".join(lines)

        written = await self.blobs.write(_TENANT, blob_id, content())
        file_id = f"file-{blob_id}"
        row: dict[str, Any] = {"id": file_id, "tenant_id": _TENANT, "filename": "input.jsonl", "purpose": "batch"}
        row |= {"bytes": written.bytes, "sha256": written.sha256, "blob_id": blob_id, "status": "processed"}
        await self.database.write(lambda c: c.execute(insert(files).values(**row, created_at=epoch_now())))
        return file_id

    async def submit(
        self, lines: list[bytes], *, endpoint: str = "/v1/chat/completions", window_seconds: float = 86_400.0
    ) -> str:
        input_file_id = await self.upload(lines)
        batch_id = f"batch_{random.getrandbits(64):x}"
        expires_after: dict[str, str | int] = {"anchor": "created_at", "seconds": 3600}
        batch = batches.NewBatch(batch_id, _TENANT, endpoint, input_file_id, "24h", {"a": "b"}, expires_after)
        await self.database.write(
            lambda c: batch_jobs.open_batch(c, self.messages, batch, window_seconds=window_seconds)
        )
        return batch_id

    async def row(self, batch_id: str) -> Any:
        return await self.database.read(lambda c: batches.get(c, _TENANT, batch_id))

    async def counts(self, batch_id: str) -> batches.Counts:
        found = await self.database.read(lambda c: batches.counts(c, _TENANT, [batch_id]))
        return found.get(batch_id, batches.Counts())

    async def cancel(self, batch_id: str) -> bool:
        return await self.database.write(
            lambda c: batch_jobs.end_early(c, self.messages, _TENANT, batch_id, "cancelled")
        )

    async def jobs(self, batch_id: str, spec: JobSpec[Any]) -> list[Any]:
        query = select(jobs).where(jobs.c.resource_id == batch_id, jobs.c.name == spec.name).order_by(jobs.c.created_at)
        return await self.database.read(lambda c: list(c.execute(query)))

    async def run(self, batch_id: str, *specs: JobSpec[Any]) -> None:
        """Run the queued jobs of these kinds, due or not."""
        for spec in specs:
            for job in await self.jobs(batch_id, spec):
                await self.run_job(spec, job.id)

    async def run_job(self, spec: JobSpec[Any], job_id: str) -> None:
        await self.database.write(
            lambda c: c.execute(update(jobs).where(jobs.c.id == job_id).values(due_at=epoch_now() - 1))
        )
        handler = self.answer_shard if spec is ANSWER_SHARD else self.worker._job_handlers[spec.name][1]
        await self.lane.run(spec, handler, Envelope(id=job_id, task=spec.name, tenant_id=_TENANT, issued_at=0.0))

    async def answer_shard(self, request: ShardRequest, job: JobRun) -> None:
        """What the chat service does with a shard, but for the model."""
        pending = await self.database.read(
            lambda c: batches.pending_items(c, job.tenant_id, request.batch_id, request.first, request.last)
        )
        for item in pending:
            await job.write(partial(self.complete, request.batch_id, item))
        await job.finish(
            lambda c: _nothing(batch_jobs.finalize_if_done(c, self.messages, job.tenant_id, request.batch_id))
        )

    def complete(self, batch_id: str, item: batches.PendingItem, connection: Connection) -> None:
        plain = self.sealer.open(item.sealed_request, _TENANT, batch_id, str(item.position))
        request = BatchItem.model_validate_json(plain)
        assert request.position == item.position
        succeeded = request.custom_id not in self.failing
        if succeeded:
            line = batch_lines.output_line(batch_id, item.position, request.custom_id, {"answer": request.custom_id})
        else:
            error = PermanentError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "Too long.")
            line = batch_lines.error_line(batch_id, item.position, request.custom_id, error)
        sealed = self.sealer.seal(line, _TENANT, batch_id, str(item.position), "result")
        batches.complete_item(connection, _TENANT, batch_id, item.position, succeeded=succeeded, sealed_result=sealed)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a result file; none if there is no file."""
        if file_id is None:
            return []
        query = select(files).where(files.c.id == file_id, files.c.tenant_id == _TENANT)
        row = await self.database.read(lambda c: c.execute(query).one())
        content = b"".join([chunk async for chunk in self.blobs.read(_TENANT, row.blob_id)])
        assert (row.purpose, row.status, row.bytes) == ("batch_output", "processed", len(content))
        assert content.endswith(b"\n")
        return [orjson.loads(line) for line in content.splitlines()]

    async def results(self, batch_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        row = await self.row(batch_id)
        return await self.lines(row.output_file_id), await self.lines(row.error_file_id)


def _nothing(_answer: object) -> None:
    """The answer is of no use to a last step."""


@pytest.fixture
async def platform(database_url: str, tmp_path: Path) -> AsyncGenerator[Platform, None]:
    opened = Platform(database_url, f"file://{tmp_path}/blobs")
    await asyncio.to_thread(migrate, opened.database.engine)

    def add_tenant(connection: Connection) -> None:
        known = connection.execute(select(tenants.c.id).where(tenants.c.id == _TENANT)).one_or_none()
        if known is None:  # the PostgreSQL server is shared by the tests of this module
            connection.execute(insert(tenants).values(id=_TENANT, name="A", created_at=epoch_now()))

    await opened.database.write(add_tenant)
    yield opened
    await asyncio.to_thread(opened.database.close)
    await asyncio.sleep(0.05)  # obstore's runtime ends its last operation


def _line(custom_id: object, body: object = _CHAT, url: str = "/v1/chat/completions") -> bytes:
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def _chat_lines(count: int) -> list[bytes]:
    return [_line(f"item-{number}") for number in range(count)]


async def test_a_batch_from_its_file_to_its_results(platform: Platform) -> None:
    platform.failing = {"item-3", "item-44"}
    batch_id = await platform.submit(_chat_lines(45))
    await platform.run(batch_id, VALIDATE_BATCH)
    row = await platform.row(batch_id)
    assert (row.status, row.total) == ("in_progress", 45)
    assert await platform.counts(batch_id) == batches.Counts(45, 0, 0)
    assert len(await platform.jobs(batch_id, ANSWER_SHARD)) == 3

    await platform.run(batch_id, ANSWER_SHARD)
    assert (await platform.row(batch_id)).status == "finalizing"
    assert await platform.counts(batch_id) == batches.Counts(45, 43, 2)

    await platform.run(batch_id, FINALIZE_BATCH)
    row = await platform.row(batch_id)
    assert row.status == "completed"
    assert row.completed_at >= row.finalizing_at >= row.in_progress_at >= row.created_at
    output, errors = await platform.results(batch_id)
    assert [line["custom_id"] for line in output] == [f"item-{n}" for n in range(45) if n not in (3, 44)]
    assert [line["custom_id"] for line in errors] == ["item-3", "item-44"]
    assert {line["error"]["code"] for line in errors} == {"context_length_exceeded"}
    assert all(line["response"]["body"] == {"answer": line["custom_id"]} for line in output)
    assert await platform.counts(batch_id) == batches.Counts(45, 43, 2)
    assert [job.state for job in await platform.jobs(batch_id, EXPIRE_BATCH)] == ["cancelled"]


async def test_files_follow_the_batch_and_records_keep_no_text(platform: Platform) -> None:
    batch_id = await platform.submit(_chat_lines(2))
    await platform.run(batch_id, VALIDATE_BATCH, ANSWER_SHARD, FINALIZE_BATCH)
    row = await platform.row(batch_id)
    assert row.error_file_id is None
    query = select(files).where(files.c.id == row.output_file_id)
    file = await platform.database.read(lambda c: c.execute(query).one())
    assert file.filename == f"{batch_id}_output.jsonl"
    assert file.expires_at - file.created_at == pytest.approx(3600, abs=1)
    of_batch = select(batch_items).where(batch_items.c.batch_id == batch_id)
    items = await platform.database.read(lambda c: c.execute(of_batch).all())
    assert [(item.status, item.sealed_request, item.sealed_result) for item in items] == [("succeeded", b"", None)] * 2


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], [("empty_file", None, "input_file_id")]),
        ([b"", b"  ", b""], [("empty_file", None, "input_file_id")]),
        (
            [_line("a"), b"{", _line("a"), _line("b")],
            [("invalid_json", 2, None), ("duplicate_custom_id", 3, "custom_id")],
        ),
        ([_line("a"), b"", _line("b", url="/v1/responses")], [("invalid_url", 3, "url")]),
        ([_line("a", _CHAT | {"stream": True})], [("invalid_value", 1, "body.stream")]),
        ([_line("a", {"model": "docent-extractive"})], [("missing_required_parameter", 1, "body.messages")]),
        ([_line("a"), b"x" * ((4 << 20) + 1), _line("b")], [("line_too_long", 2, None)]),
        ([b"?"] * 250, [("invalid_json", number, None) for number in range(1, 101)]),
        ([b"?"] * 50_001, [("invalid_json", number, None) for number in range(1, 101)]),
    ],
    ids=["empty", "blank", "two faults", "url", "stream", "no messages", "long line", "many faults", "many more"],
)
async def test_an_invalid_file_fails_the_batch_before_any_work(
    platform: Platform, lines: list[bytes], expected: list[tuple[str, int | None, str | None]]
) -> None:
    batch_id = await platform.submit(lines)
    await platform.run(batch_id, VALIDATE_BATCH)
    row = await platform.row(batch_id)
    assert row.status == "failed"
    assert row.failed_at is not None
    assert [(fault["code"], fault["line"], fault["param"]) for fault in row.errors] == expected
    assert all(fault["message"] for fault in row.errors)
    assert await platform.counts(batch_id) == batches.Counts()
    assert await platform.jobs(batch_id, ANSWER_SHARD) == []
    assert await _number_of_items(platform, batch_id) == 0
    assert [job.state for job in await platform.jobs(batch_id, VALIDATE_BATCH)] == ["succeeded"]


async def _number_of_items(platform: Platform, batch_id: str) -> int:
    query = select(batch_items.c.position).where(batch_items.c.batch_id == batch_id)
    return len(await platform.database.read(lambda c: c.execute(query).all()))


async def test_a_fault_in_the_last_line_undoes_what_was_recorded(platform: Platform) -> None:
    batch_id = await platform.submit([*_chat_lines(1200), b"{"])
    await platform.run(batch_id, VALIDATE_BATCH)
    assert [fault["line"] for fault in (await platform.row(batch_id)).errors] == [1201]
    assert await _number_of_items(platform, batch_id) == 0


async def test_too_many_lines(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_LINES", 999)
    accepted, refused = await platform.submit(_chat_lines(999)), await platform.submit(_chat_lines(1000))
    await platform.run(accepted, VALIDATE_BATCH)
    await platform.run(refused, VALIDATE_BATCH)
    assert (await platform.row(accepted)).status == "in_progress"
    row = await platform.row(refused)
    assert (row.status, row.errors[0]["code"]) == ("failed", "too_many_lines")
    assert await _number_of_items(platform, refused) == 0


async def test_too_large_a_file(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_FILE_BYTES", 100)
    batch_id = await platform.submit(_chat_lines(2))
    await platform.run(batch_id, VALIDATE_BATCH)
    assert [fault["code"] for fault in (await platform.row(batch_id)).errors] == ["file_too_large"]


@pytest.mark.parametrize("gone", ["record", "content"])
async def test_a_deleted_input_file_fails_the_batch(platform: Platform, gone: str) -> None:
    batch_id = await platform.submit(_chat_lines(2))
    file_id = (await platform.row(batch_id)).input_file_id
    if gone == "record":
        await platform.database.write(lambda c: c.execute(files.delete().where(files.c.id == file_id)))
    else:
        await platform.blobs.delete(_TENANT, file_id.removeprefix("file-"))
    await platform.run(batch_id, VALIDATE_BATCH)
    row = await platform.row(batch_id)
    assert (row.status, [fault["code"] for fault in row.errors]) == ("failed", ["not_found"])


async def test_a_validation_run_again_records_every_item_once(platform: Platform) -> None:
    batch_id = await platform.submit(_chat_lines(30))
    left_behind = [batches.NewItem(position, "old", b"old") for position in range(50)]
    await platform.database.write(lambda c: batches.add_items(c, _TENANT, batch_id, left_behind))
    await platform.run(batch_id, VALIDATE_BATCH)
    assert await _number_of_items(platform, batch_id) == 30
    await platform.run(batch_id, ANSWER_SHARD, FINALIZE_BATCH)
    output, _ = await platform.results(batch_id)
    assert [line["custom_id"] for line in output] == [f"item-{number}" for number in range(30)]


@pytest.mark.parametrize(("ending", "outcome"), [("cancelled", "cancelled"), ("expired", "expired")])
async def test_a_batch_ended_in_the_middle_keeps_what_was_answered(
    platform: Platform, ending: str, outcome: str
) -> None:
    batch_id = await platform.submit(_chat_lines(45))
    await platform.run(batch_id, VALIDATE_BATCH)
    first, second, third = await platform.jobs(batch_id, ANSWER_SHARD)
    await platform.run_job(ANSWER_SHARD, first.id)
    answered = await platform.counts(batch_id)
    assert 0 < answered.completed < 45
    if ending == "cancelled":
        assert await platform.cancel(batch_id)
        assert not await platform.cancel(batch_id)
        assert (await platform.row(batch_id)).status == "cancelling"
        await platform.run(batch_id, EXPIRE_BATCH)
    else:
        await platform.run(batch_id, EXPIRE_BATCH)
        assert not await platform.cancel(batch_id)
        assert (await platform.row(batch_id)).status == "finalizing"
    states = Counter(job.state for job in await platform.jobs(batch_id, ANSWER_SHARD))
    assert states == {"succeeded": 1, "cancelled": 2}
    assert len(await platform.jobs(batch_id, FINALIZE_BATCH)) == 1

    await platform.run(batch_id, FINALIZE_BATCH)
    row = await platform.row(batch_id)
    assert row.status == outcome
    assert getattr(row, f"{outcome}_at") is not None
    output, errors = await platform.results(batch_id)
    assert len(output) == answered.completed
    assert {line["error"]["code"] for line in errors} == {f"batch_{ending}"}
    assert sorted(line["custom_id"] for line in output + errors) == sorted(f"item-{number}" for number in range(45))
    assert await platform.counts(batch_id) == batches.Counts(45, answered.completed, 45 - answered.completed)
    assert {second.id, third.id} <= {job.id for job in await platform.jobs(batch_id, ANSWER_SHARD)}


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_a_batch_ended_before_its_validation_has_no_files(platform: Platform, ending: str) -> None:
    batch_id = await platform.submit(_chat_lines(3))
    if ending == "cancelled":
        assert await platform.cancel(batch_id)
    else:
        await platform.run(batch_id, EXPIRE_BATCH)
    await platform.run(batch_id, VALIDATE_BATCH, FINALIZE_BATCH)
    row = await platform.row(batch_id)
    assert (row.status, row.output_file_id, row.error_file_id) == (ending, None, None)
    assert await platform.jobs(batch_id, ANSWER_SHARD) == []
    assert await _number_of_items(platform, batch_id) == 0
    assert [job.state for job in await platform.jobs(batch_id, VALIDATE_BATCH)] == ["succeeded"]


async def test_a_cancel_during_validation_leaves_no_item(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await platform.submit(_chat_lines(1200))
    added = batches.add_items

    def cancelled_after_the_first(
        connection: Connection, tenant_id: str, batch: str, items: list[batches.NewItem]
    ) -> bool:
        done = added(connection, tenant_id, batch, items)
        return batch_jobs.end_early(connection, platform.messages, tenant_id, batch, "cancelled") and done

    monkeypatch.setattr(batches, "add_items", cancelled_after_the_first)
    await platform.run(batch_id, VALIDATE_BATCH)
    assert (await platform.row(batch_id)).status == "cancelling"
    assert await _number_of_items(platform, batch_id) == 0
    await platform.run(batch_id, FINALIZE_BATCH)
    assert (await platform.row(batch_id)).status == "cancelled"


async def test_a_batch_that_has_ended_stays_as_it_is(platform: Platform) -> None:
    batch_id = await platform.submit(_chat_lines(3))
    await platform.run(batch_id, VALIDATE_BATCH, ANSWER_SHARD, FINALIZE_BATCH)
    before, results = await platform.row(batch_id), await platform.results(batch_id)
    assert not await platform.cancel(batch_id)
    for spec in (VALIDATE_BATCH, FINALIZE_BATCH, EXPIRE_BATCH):
        job_id = (await platform.jobs(batch_id, spec))[0].id
        await platform.database.write(partial(_requeue, job_id))
        await platform.run_job(spec, job_id)
        assert [job.state for job in await platform.jobs(batch_id, spec)] == ["succeeded"]
    assert await platform.row(batch_id) == before
    assert await platform.results(batch_id) == results


def _requeue(job_id: str, connection: Connection) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(state="queued", finished_at=None))


class _Interrupted:
    """A blob store during whose first write something else happens."""

    def __init__(self, blobs: BlobStore, meanwhile: Callable[[], Any]) -> None:
        self._blobs = blobs
        self._meanwhile = meanwhile

    def read(self, tenant_id: str, blob_id: str) -> AsyncGenerator[bytes, None]:
        return self._blobs.read(tenant_id, blob_id)

    async def write(self, tenant_id: str, blob_id: str, chunks: AsyncIterator[bytes]) -> BlobInfo:
        async def interrupted() -> AsyncIterator[bytes]:
            yield await anext(chunks)
            await self._meanwhile()
            async for chunk in chunks:
                yield chunk

        return await self._blobs.write(tenant_id, blob_id, interrupted())


async def _finalizing(platform: Platform, items: int) -> tuple[str, JobRun, str]:
    """A batch whose finalizing job was claimed by a worker that is about to lose it."""
    platform.failing = {"item-0"}
    batch_id = await platform.submit(_chat_lines(items))
    await platform.run(batch_id, VALIDATE_BATCH, ANSWER_SHARD)
    job_id = (await platform.jobs(batch_id, FINALIZE_BATCH))[0].id
    claimed = await platform.database.write(lambda c: ledger.claim(c, job_id, "slow", lease_seconds=-1))
    assert claimed is not None
    run = JobRun(
        claimed, platform.database, platform.dispatcher, is_last_error=lambda _error: False, next_step=lambda: None
    )
    return batch_id, run, job_id


async def test_an_attempt_that_was_overtaken_changes_nothing(platform: Platform) -> None:
    batch_id, slow_job, job_id = await _finalizing(platform, 40)
    overtaken: list[Any] = []

    async def overtake() -> None:
        if not overtaken:
            await platform.database.write(lambda c: ledger.reap_expired(c, "batch"))
            await platform.run_job(FINALIZE_BATCH, job_id)
            overtaken.append(await platform.results(batch_id))

    slow = ResultRecords(platform.database, slow_job, batch_id)
    with pytest.raises(BatchEndedError):
        await pipeline.write_results(slow, _Interrupted(platform.blobs, overtake), platform.sealer)
    assert (await platform.row(batch_id)).status == "completed"
    output, errors = await platform.results(batch_id)
    assert overtaken == [(output, errors)]
    assert (len(output), len(errors)) == (39, 1)


async def test_an_attempt_that_died_is_made_good(platform: Platform) -> None:
    batch_id, slow_job, job_id = await _finalizing(platform, 40)

    async def die() -> None:
        raise asyncio.CancelledError

    slow = ResultRecords(platform.database, slow_job, batch_id)
    with pytest.raises(asyncio.CancelledError):
        await pipeline.write_results(slow, _Interrupted(platform.blobs, die), platform.sealer)
    await platform.database.write(lambda c: ledger.reap_expired(c, "batch"))
    await platform.run_job(FINALIZE_BATCH, job_id)
    output, errors = await platform.results(batch_id)
    assert sorted(line["custom_id"] for line in output + errors) == sorted(f"item-{number}" for number in range(40))


async def test_batches_of_others_are_not_there(platform: Platform) -> None:
    batch_id = await platform.submit(_chat_lines(3))
    await platform.run(batch_id, VALIDATE_BATCH)

    def as_stranger(connection: Connection) -> list[object]:
        with pytest.raises(PermanentError) as missing:
            batches.get(connection, "tenant_b", batch_id)
        return [
            missing.value.code,
            batches.counts(connection, "tenant_b", [batch_id]),
            batches.pending_items(connection, "tenant_b", batch_id, 0, 9),
            batches.complete_item(connection, "tenant_b", batch_id, 0, succeeded=True, sealed_result=b""),
            batches.begin_finalizing(connection, "tenant_b", batch_id),
            batches.end_early(connection, "tenant_b", batch_id, "cancelled"),
        ]

    answers = await platform.database.write(as_stranger)
    assert answers == [ErrorCode.NOT_FOUND, {}, [], False, False, False]
    assert await platform.counts(batch_id) == batches.Counts(3, 0, 0)


async def test_pages_go_from_the_newest_to_the_oldest(platform: Platform) -> None:
    def clear(connection: Connection) -> None:
        connection.execute(batch_items.delete())
        connection.execute(batches_table.delete())

    await platform.database.write(clear)
    made = [await platform.submit(_chat_lines(1)) for _ in range(5)]

    def page(after: str | None, connection: Connection) -> list[str]:
        return [row.id for row in batches.page(connection, _TENANT, after=after, limit=2)]

    seen: list[str] = []
    while found := await platform.database.read(partial(page, seen[-1] if seen else None)):
        seen += found
    assert seen == made[::-1]
    with pytest.raises(PermanentError) as refused:
        await platform.database.read(partial(page, "batch_unknown"))
    assert refused.value.code is ErrorCode.INVALID_CURSOR


@pytest.mark.parametrize("seed", range(12))
async def test_every_custom_id_comes_out_once_whatever_happens_at_once(platform: Platform, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a fixed order of events
    size = chance.randint(1, 65)
    platform.failing = {f"item-{number}" for number in range(size) if chance.random() < 0.2}
    batch_id = await platform.submit(_chat_lines(size))
    steps: list[_Step] = [partial(platform.run, batch_id, VALIDATE_BATCH)]
    if seed % 2:  # else everything below meets the validation itself
        await steps.pop()()
    steps += [partial(platform.run, batch_id, ANSWER_SHARD)] * 4 + [partial(platform.run, batch_id, FINALIZE_BATCH)] * 3
    if seed % 3:
        endings: list[_Step] = [partial(platform.cancel, batch_id), partial(platform.run, batch_id, EXPIRE_BATCH)]
        steps += chance.choices(endings, k=2)
    chance.shuffle(steps)

    async def later(step: Callable[[], Any], delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        await step()

    await asyncio.gather(*(later(step, chance.random() * 0.05) for step in steps))
    for _ in range(2):  # what the dispatcher would do with the jobs that are left
        await platform.run(batch_id, VALIDATE_BATCH, ANSWER_SHARD, FINALIZE_BATCH)

    row = await platform.row(batch_id)
    assert row.status in {"completed", "cancelled", "expired"}
    output, errors = await platform.results(batch_id)
    expected = [f"item-{number}" for number in range(row.total)]
    assert sorted(line["custom_id"] for line in output + errors) == sorted(expected)
    assert row.total in (0, size)
    assert len(await platform.jobs(batch_id, FINALIZE_BATCH)) == 1
    assert await platform.counts(batch_id) == batches.Counts(row.total, len(output), len(errors))


@dataclass
class _Tally:
    finalizers: int = 0
    written: int = 0


@pytest.mark.parametrize("seed", range(6))
async def test_results_are_taken_once_and_one_caller_finalizes(platform: Platform, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a fixed order of events
    batch_id = await platform.submit(_chat_lines(20))
    await platform.run(batch_id, VALIDATE_BATCH)
    tally = _Tally()

    async def complete(position: int) -> None:
        def step(connection: Connection) -> tuple[bool, bool]:
            done = batches.complete_item(
                connection, _TENANT, batch_id, position, succeeded=True, sealed_result=b"result"
            )
            return done, batches.begin_finalizing(connection, _TENANT, batch_id)

        done, finalizes = await platform.database.write(step)
        tally.written += done
        tally.finalizers += finalizes

    positions = [*range(20), *range(20)]
    chance.shuffle(positions)
    await asyncio.gather(*(complete(position) for position in positions))
    assert (tally.written, tally.finalizers) == (20, 1)


async def test_of_two_shards_that_end_at_once_one_finalizes(platform: Platform) -> None:
    batch_id = await platform.submit(_chat_lines(2))
    await platform.run(batch_id, VALIDATE_BATCH)
    first_looked, second_looked = threading.Event(), threading.Event()

    def look(position: int, connection: Connection) -> bool:
        batches.complete_item(connection, _TENANT, batch_id, position, succeeded=True, sealed_result=b"result")
        return batches.begin_finalizing(connection, _TENANT, batch_id)

    def first(connection: Connection) -> bool:
        found = look(0, connection)
        first_looked.set()
        second_looked.wait(0.5)  # it cannot look before this transaction ends; were it not so, neither would finalize
        return found

    def second(connection: Connection) -> bool:
        found = look(1, connection)
        second_looked.set()
        return found

    async def after_the_first() -> bool:
        await asyncio.to_thread(first_looked.wait, 30)
        return await platform.database.write(second)

    finders = await asyncio.gather(platform.database.write(first), after_the_first())
    assert list(finders) == [False, True]
