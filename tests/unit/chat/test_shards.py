"""Shards of batches over real records, with a model that does what it is told."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, insert, select, update

from libs.common import batch_jobs, keys, ledger
from libs.common.contracts.batch import FINALIZE_BATCH
from libs.common.contracts.chat import ANSWER_SHARD, BatchItem, EmbedRequest, Shape
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.keyring import Keyring
from libs.common.rag.embedder import Embedder, EmbedResult
from libs.common.records import batches
from libs.common.records.database import Database, epoch_now
from libs.common.records.migrate import migrate
from libs.common.records.tables import batch_items, jobs, tenants
from libs.common.settings import WorkerSettings
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.jobs import JobLane
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.wire import Envelope, MessageSealer
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Delta, Prompt
from services.chat.shards import ShardRunner
from tests.fakes import FakeRetriever
from tests.unit.chat.examples import question

_TENANT = "tenant_a"
_BATCH = "batch_1"
_AWAY = RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model is away.")
_GARBLED = RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's answer cannot be read.")
_REFUSED = PermanentError(ErrorCode.INVALID_VALUE, "The model refused this.")


class _Model:
    """A `Completer` that repeats what it is asked, but for the models that are named in `failures`."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.asked: Counter[str] = Counter()
        self.running = self.most_running = 0

    async def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        assert (len(prompt), parameters) == (1, {})
        self.asked[model] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if model in self.failures:
            raise self.failures[model]
        yield Delta(model, finish_reason="stop")


class _Embedder(Embedder):
    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", "key", model="model", dimension=2)

    async def embed(self, texts: Any) -> EmbedResult:
        return EmbedResult([[float(len(text)), 0.5] for text in texts], 3)


class Shards:
    """A batch whose shard jobs are run by hand."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self.database = database
        self.messages = MessageSealer(keyring)
        self.sealer = keyring.sealer(keys.BATCHES_PURPOSE)
        self.model = _Model()
        settings = WorkerSettings()
        broker = BrokerConnection("redis://127.0.0.1:1/0")  # never used: no message is pushed here
        clock = BrokerClock(broker)
        dispatcher = Dispatcher(
            database,
            Publisher(broker),
            Consumers(broker, clock),
            self.messages,
            clock,
            settings,
            queues=[],
            holder="test",
        )
        self.lane = JobLane("test", database, self.messages, dispatcher, settings)
        pipeline = AnswerPipeline(FakeRetriever(), self.model, _Embedder())
        self.runner = ShardRunner(pipeline, database, keyring, self.messages, concurrency=3)

    def create(self, count: int, *, embed: tuple[int, ...] = ()) -> None:
        """A batch of so many items in progress; item n asks the model `model-n`."""

        def write(connection: Connection) -> None:
            connection.execute(insert(tenants).values(id=_TENANT, name="A", created_at=epoch_now()))
            batch = batches.NewBatch(_BATCH, _TENANT, "/v1/chat/completions", "file-in", "24h", None, None)
            batches.create(connection, batch, window_seconds=3600)
            items = [self._item(position, embed=position in embed) for position in range(count)]
            assert batches.add_items(connection, _TENANT, _BATCH, items)
            assert batch_jobs.start_shards(connection, self.messages, _TENANT, _BATCH, count)

        self.database.write_now(write)

    def _item(self, position: int, *, embed: bool) -> batches.NewItem:
        item = BatchItem(
            position=position,
            custom_id=f"item-{position}",
            request_id=f"req_{position}",
            answer=None if embed else question(Shape.CHAT, model=f"model-{position}", stream=False),
            embed=EmbedRequest(model="embedding", texts=("abc",)) if embed else None,
        )
        sealed = self.sealer.seal(item.model_dump_json().encode(), _TENANT, _BATCH, str(position))
        return batches.NewItem(position, item.custom_id, sealed)

    def jobs(self, name: str) -> list[Any]:
        query = select(jobs).where(jobs.c.name == name).order_by(jobs.c.created_at, jobs.c.id)
        return self.database.read_now(lambda c: list(c.execute(query)))

    async def run(self) -> None:
        """Run every shard that is queued, due or not."""
        for job in self.jobs(ANSWER_SHARD.name):
            self.database.write_now(lambda c: c.execute(update(jobs).values(due_at=epoch_now() - 1)))
            envelope = Envelope(id=job.id, task=ANSWER_SHARD.name, tenant_id=_TENANT, issued_at=0.0)
            await self.lane.run(ANSWER_SHARD, self.runner.run, envelope)

    def statuses(self) -> dict[int, str]:
        query = select(batch_items.c.position, batch_items.c.status)
        return {row.position: row.status for row in self.database.read_now(lambda c: list(c.execute(query)))}

    def results(self) -> dict[int, dict[str, Any]]:
        query = select(batch_items).where(batch_items.c.sealed_result.is_not(None))
        rows = self.database.read_now(lambda c: list(c.execute(query)))
        return {
            row.position: orjson.loads(
                self.sealer.open(row.sealed_result, _TENANT, _BATCH, str(row.position), "result")
            )
            for row in rows
        }

    @property
    def status(self) -> str:
        status: str = self.database.read_now(lambda c: batches.get(c, _TENANT, _BATCH)).status
        return status


@pytest.fixture
async def shards(tmp_path: Path, keyring: Keyring) -> AsyncIterator[Shards]:
    database = Database(f"sqlite:///{tmp_path}/docent.db")
    migrate(database.engine)
    yield Shards(database, keyring)
    database.close()


async def test_every_item_is_answered_and_the_files_are_asked_for_once(shards: Shards) -> None:
    shards.create(45, embed=(7,))
    await shards.run()
    assert shards.statuses() == dict.fromkeys(range(45), "succeeded")
    assert shards.status == "finalizing"
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1
    assert [job.state for job in shards.jobs(ANSWER_SHARD.name)] == [ledger.SUCCEEDED] * 3
    assert shards.model.asked == Counter({f"model-{n}": 1 for n in range(45) if n != 7})
    assert shards.model.most_running <= 3
    results = shards.results()
    message = results[3]["response"]["body"]["choices"][0]["message"]
    assert (results[3]["custom_id"], message["content"]) == ("item-3", "model-3")
    assert results[7]["response"]["body"]["object"] == "list"
    assert results[7]["response"]["body"]["usage"]["total_tokens"] == 3


async def test_a_lasting_failure_is_its_items_alone(shards: Shards) -> None:
    shards.create(3)
    shards.model.failures = {"model-1": _REFUSED}
    await shards.run()
    assert shards.statuses() == {0: "succeeded", 1: "failed", 2: "succeeded"}
    assert shards.results()[1]["error"] == {"code": "invalid_value", "message": "The model refused this."}
    assert shards.status == "finalizing"


async def test_a_passing_failure_is_tried_again_for_what_is_pending_only(shards: Shards) -> None:
    shards.create(4)
    shards.model.failures = {"model-1": _AWAY}
    await shards.run()
    assert shards.statuses() == {0: "succeeded", 1: "pending", 2: "succeeded", 3: "succeeded"}
    assert (shards.status, shards.jobs(FINALIZE_BATCH.name)) == ("in_progress", [])
    assert [job.state for job in shards.jobs(ANSWER_SHARD.name)] == [ledger.QUEUED]

    shards.model.failures = {}
    await shards.run()
    assert set(shards.statuses().values()) == {"succeeded"}
    assert shards.model.asked == Counter({"model-0": 1, "model-1": 2, "model-2": 1, "model-3": 1})
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1


async def test_an_outage_uses_up_no_tries_and_no_item_pays_for_it(shards: Shards) -> None:
    shards.create(2)
    shards.model.failures = {"model-1": _AWAY}
    for _ in range(8):
        await shards.run()
    assert shards.statuses() == {0: "succeeded", 1: "pending"}
    (job,) = shards.jobs(ANSWER_SHARD.name)
    assert (job.state, job.attempt, job.failures, job.error_code) == (ledger.QUEUED, 8, 0, "llm_unavailable")
    shards.model.failures = {}
    await shards.run()
    assert set(shards.statuses().values()) == {"succeeded"}


async def test_on_the_last_try_a_passing_failure_is_the_items_result(shards: Shards) -> None:
    shards.create(2)
    shards.model.failures = {"model-1": _GARBLED}
    for _ in range(3):
        await shards.run()
    assert shards.statuses() == {0: "succeeded", 1: "failed"}
    assert shards.results()[1]["response"]["status_code"] == 502
    assert shards.model.asked == Counter({"model-0": 1, "model-1": 3})
    assert [job.state for job in shards.jobs(ANSWER_SHARD.name)] == [ledger.SUCCEEDED]
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1


def _kill_the_workers(shards: Shards, *, failures: int) -> None:
    """What the ledger holds of shards whose workers died, so many times while they ran alone."""
    suspects = update(jobs).where(jobs.c.name == ANSWER_SHARD.name, jobs.c.state == ledger.QUEUED)
    shards.database.write_now(lambda c: c.execute(suspects.values(suspect=True, failures=failures)))


async def test_a_shard_whose_worker_died_is_divided_into_its_items(shards: Shards) -> None:
    shards.create(5)
    answered = shards.database.write_now(
        lambda c: batches.complete_item(c, _TENANT, _BATCH, 2, succeeded=True, sealed_result=b"sealed")
    )
    assert answered
    _kill_the_workers(shards, failures=0)
    await shards.run()
    assert shards.model.asked.total() == 0
    first, *single = shards.jobs(ANSWER_SHARD.name)
    assert (first.state, len(single)) == (ledger.SUCCEEDED, 4)
    assert not any(job.suspect for job in single)

    await shards.run()
    assert set(shards.statuses().values()) == {"succeeded"}
    assert shards.model.asked == Counter({f"model-{n}": 1 for n in (0, 1, 3, 4)})
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1


@pytest.mark.parametrize(("failures", "status", "asked"), [(1, "succeeded", 1), (2, "failed", 0)])
async def test_an_item_that_ends_its_workers_is_given_up_and_the_batch_goes_on(
    shards: Shards, failures: int, status: str, asked: int
) -> None:
    shards.create(1)
    _kill_the_workers(shards, failures=failures)
    await shards.run()
    assert shards.statuses() == {0: status}
    assert shards.model.asked.total() == asked
    assert shards.status == "finalizing"
    if status == "failed":
        assert shards.results()[0]["response"]["status_code"] == 500
        assert "ended, each time" in shards.results()[0]["error"]["message"]


async def test_a_fault_of_the_server_is_its_items_alone(shards: Shards) -> None:
    shards.create(2)
    shards.model.failures = {"model-1": ZeroDivisionError()}
    for _ in range(3):
        await shards.run()
    assert shards.statuses() == {0: "succeeded", 1: "failed"}
    assert shards.results()[1]["error"] == {"code": "server_error", "message": "The server failed on this request."}
    assert shards.model.asked == Counter({"model-0": 1, "model-1": 3})


async def test_a_shard_that_is_run_again_changes_nothing(shards: Shards) -> None:
    shards.create(2)
    await shards.run()
    before = shards.results()
    shards.database.write_now(lambda c: c.execute(update(jobs).values(state=ledger.QUEUED)))
    await shards.run()
    assert shards.results() == before
    assert shards.model.asked.total() == 2
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1


async def test_a_batch_that_is_being_ended_is_answered_no_further(shards: Shards) -> None:
    shards.create(2)
    shards.database.write_now(lambda c: batch_jobs.end_early(c, shards.messages, _TENANT, _BATCH, "cancelled"))
    shards.database.write_now(
        lambda c: c.execute(update(jobs).where(jobs.c.name == ANSWER_SHARD.name).values(state=ledger.QUEUED))
    )
    await shards.run()
    assert shards.model.asked.total() == 0
    assert set(shards.statuses().values()) == {"cancelled"}
    assert len(shards.jobs(FINALIZE_BATCH.name)) == 1
