"""Both lanes with real workers: requests and jobs under kills, flushes, cancels and drains."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from libs.common import keys, ledger
from libs.common.contracts.base import Queue
from libs.common.errors import ErrorCode, PlatformError
from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.migrate import migrate
from libs.common.records.tables import jobs, tenants
from libs.common.settings import CommonSettings
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.caller import Caller
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.open_call import Call
from libs.common.tasks.publisher import Consumers, Limits, Publisher
from libs.common.tasks.reply_hub import EventLog, ReplyHub
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer, celery_message
from tests.integration.queue_worker import CANCELLED, CRASH, ECHO, FAIL, JOB, PEAK, STARTED, STREAM, Work

_LIMITS = Limits("tenant_a", "key_a", 1_000_000, 1000)


class Bench:
    """One gateway process's side, workers to start, and what their handlers noted."""

    def __init__(self, broker_url: str, directory: Path, keyring_text: str) -> None:
        self.notes = redis.Redis.from_url(broker_url)
        database_url = f"sqlite:///{directory}/docent.db"
        self.database = Database(database_url)
        migrate(self.database.engine)
        self.keyring = Keyring.parse(keyring_text)
        self.messages = MessageSealer(self.keyring)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._broker_url = broker_url
        self._log = directory / "worker.log"
        self._environment = {
            **os.environ,
            "BROKER_URL": broker_url,
            "DATABASE_URL": database_url,
            "KEYRING": keyring_text,
            "LEASE_SECONDS": "1.5",
            "HEARTBEAT_SECONDS": "0.3",
            "RECONCILE_INTERVAL_SECONDS": "0.2",
            "DRAIN_SECONDS": "1",
            "LOG_LEVEL": "WARNING",
        }

    async def open(self) -> None:
        self.broker = BrokerConnection(self._broker_url)
        self.clock = BrokerClock(self.broker)
        self.publisher = Publisher(self.broker)
        self.consumers = Consumers(self.broker, self.clock)
        self.hub = ReplyHub(self._broker_url, uuid.uuid4().hex, self.keyring)
        self.hub.start()
        await asyncio.wait_for(self.hub._subscription.connected.wait(), 5)
        self.caller = Caller(
            self.broker, self.publisher, self.consumers, self.clock, self.messages, self.hub, consumerless_seconds=20.0
        )
        settings = CommonSettings(reconcile_interval_seconds=0.2)
        self.dispatcher = Dispatcher(
            self.database,
            self.publisher,
            self.consumers,
            self.messages,
            self.clock,
            settings,
            queues=[Queue.INGEST],
            holder="bench",
        )

    async def worker(self, concurrency: int = 8) -> subprocess.Popen[bytes]:
        """A further worker, consuming when this returns."""
        before = self.notes.zcard(keys.workers(Queue.CHAT))
        with self._log.open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - starting one takes no time worth a thread
                [sys.executable, "-m", "tests.integration.queue_worker"],
                env={**self._environment, "WORKER_CONCURRENCY": str(concurrency)},
                stdout=log,
                stderr=log,
            )
        self.workers.append(process)
        await until(lambda: self.notes.zcard(keys.workers(Queue.CHAT)) > before, seconds=20)
        return process

    async def close(self) -> None:
        await self.dispatcher.stop()
        await self.hub.close()
        await self.broker.close()
        for process in self.workers:
            process.kill()
            process.wait()
        self.database.close()
        self.notes.close()

    def call(self, spec: Any, deadline_seconds: float = 20, **work: Any) -> Call[Any, Any]:
        stream = bool(work.pop("keep_events", False))
        return Call(spec, Work(**work), uuid.uuid4().hex, _LIMITS, deadline_seconds, keep_events=stream, stream=stream)

    def submit(self, count: int = 1, **work: Any) -> list[str]:
        def record(connection: Any) -> list[str]:
            request = Work(**work)
            return [
                submit(connection, self.messages, JOB, request, tenant_id=f"t{number % 2}", resource_id="r")
                for number in range(count)
            ]

        return self.database.write_now(record)

    def states(self) -> Counter[str]:
        return Counter(self.database.read_now(lambda c: c.execute(select(jobs.c.state)).scalars().all()))

    def effects(self) -> int:
        return len(self.database.read_now(lambda c: c.execute(select(tenants.c.id)).all()))

    def noted(self, what: str) -> list[str]:
        notes: Any = self.notes.lrange(what, 0, -1)
        return [note.decode() for note in notes]

    def peak(self) -> int:
        peaks: Any = self.notes.smembers(PEAK)
        return max(int(peak) for peak in peaks)


async def until(condition: Callable[[], object], *, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in other processes
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def keyring_text() -> str:
    return Keyring.generate()


@pytest.fixture
async def bench(broker_url: str, tmp_path: Path, keyring_text: str) -> AsyncIterator[Bench]:
    bench = Bench(broker_url, tmp_path, keyring_text)
    await bench.open()
    yield bench
    await bench.close()


async def test_requests_streams_and_errors_come_back(bench: Bench) -> None:
    await bench.worker()
    reply = await bench.caller.call(bench.call(ECHO, text="hello"))
    assert (reply.text, reply.pid) == ("hello", bench.workers[0].pid)

    call = bench.call(STREAM, count=500, text="end", keep_events=True)
    async with bench.caller.open(call) as open_call:
        blocks = b"".join([block async for block in open_call.events()])
        assert (await open_call.reply()).text == "end"
    expected = [f'data: {{"n":{number}}}\n\n'.encode() for number in range(500)]
    assert blocks == b"".join(expected)
    log = EventLog(bench.broker, bench.keyring)

    async def ended() -> bool:
        return False

    for after in (-1, 0, 250, 498, 499):
        blocks_again = log.read("tenant_a", call.id, after=after, goes_on=ended)
        assert [block async for block in blocks_again] == expected[after + 1 :]
    assert not await log.exists("tenant_b", call.id)

    for fatal, code in ((True, ErrorCode.INVALID_VALUE), (False, ErrorCode.SERVER_ERROR)):
        with pytest.raises(PlatformError) as failed:
            await bench.caller.call(bench.call(FAIL, fatal=fatal))
        assert failed.value.code is code
        assert "secret" not in failed.value.message
    with pytest.raises(PlatformError) as late:
        await bench.caller.call(bench.call(ECHO, seconds=30, deadline_seconds=0.5))
    assert late.value.code is ErrorCode.DEADLINE_EXCEEDED


async def test_a_full_pool_keeps_running_full(bench: Bench) -> None:
    await bench.worker(concurrency=4)
    calls = [bench.call(ECHO, text=f"{number}", seconds=0.05) for number in range(40)]
    replies = await asyncio.wait_for(asyncio.gather(*(bench.caller.call(call) for call in calls)), 20)
    assert [reply.text for reply in replies] == [f"{number}" for number in range(40)]
    assert bench.peak() == 4
    bench.notes.delete(PEAK)
    bench.submit(40, seconds=0.05)
    bench.dispatcher.start()
    await until(lambda: bench.states() == {ledger.SUCCEEDED: 40}, seconds=30)
    assert bench.effects() == 40
    assert 2 <= bench.peak() <= 4


@pytest.mark.parametrize("how", ["leaves", "raises", "is cancelled"])
async def test_whoever_stops_waiting_stops_the_handler(bench: Bench, how: str) -> None:
    await bench.worker()

    async def wait_for_it() -> None:
        async with bench.caller.open(bench.call(STREAM, text="long", count=1, seconds=30)) as open_call:
            async for _ in open_call.events():
                await until(lambda: bench.notes.exists(PEAK))
                if how == "leaves":
                    break
                if how == "raises":
                    raise LookupError

    waiting = asyncio.create_task(wait_for_it())
    await until(lambda: bench.notes.exists(PEAK))
    if how == "is cancelled":
        waiting.cancel()
    await asyncio.wait([waiting])
    assert isinstance(waiting.exception() if not waiting.cancelled() else None, LookupError | None)
    await until(lambda: bench.noted(CANCELLED) == ["long"], seconds=2)


async def test_without_a_consumer_the_message_is_withdrawn(bench: Bench) -> None:
    bench.caller.sender.consumerless_seconds = 0.5
    with pytest.raises(PlatformError) as refused:
        await asyncio.wait_for(bench.caller.call(bench.call(ECHO)), 15)
    assert refused.value.code is ErrorCode.QUEUE_UNAVAILABLE
    assert await bench.publisher.depth(Queue.CHAT) == 0


async def test_a_lost_message_is_pushed_again_beside_others_that_wait(bench: Bench) -> None:
    answer = asyncio.create_task(bench.caller.call(bench.call(ECHO, text="lost")))
    await until(lambda: bench.notes.llen(Queue.CHAT) == 1)
    bench.notes.delete(Queue.CHAT)
    other: Any = celery_message(Queue.CHAT, "probe.echo", "other", "of no use")
    bench.notes.lpush(Queue.CHAT, other)
    await until(lambda: bench.notes.llen(Queue.CHAT) == 2)
    await bench.worker()
    assert (await asyncio.wait_for(answer, 15)).text == "lost"
    assert [note.split()[1] for note in bench.noted(STARTED)] == ["lost"]


async def test_a_worker_killed_before_the_first_event_is_replaced(bench: Bench) -> None:
    await bench.worker()
    await bench.worker()
    reply = await asyncio.wait_for(bench.caller.call(bench.call(CRASH, text="early")), 20)
    assert reply.text == "early"
    assert len(set(bench.noted(STARTED))) == 2


async def test_a_worker_killed_after_the_first_event_is_an_error(bench: Bench) -> None:
    await bench.worker()
    async with bench.caller.open(bench.call(CRASH, text="late", count=2)) as open_call:
        blocks = []

        async def read() -> None:
            async for block in open_call.events():
                blocks.append(block)  # noqa: PERF401 - those before the error count

        with pytest.raises(PlatformError) as lost:
            await read()
    assert b"".join(blocks).count(b"data:") == 2
    assert lost.value.code is ErrorCode.SERVER_ERROR


async def test_rubbish_in_the_queue_is_refused_and_the_worker_lives(bench: Bench) -> None:
    worker = await bench.worker()
    sealed = bench.caller.sender.seal(bench.call(ECHO, text="twice"), 0)
    forged = celery_message(Queue.CHAT, "probe.echo", "forged", "bm90IHNlYWxlZCBieSB1cw==")
    elsewhere = celery_message("another_queue", "probe.echo", "elsewhere", "bm90IHNlYWxlZCBieSB1cw==")
    unknown = celery_message(Queue.CHAT, "probe.unknown", "unknown", "payload")
    for message in (sealed, sealed, forged, elsewhere, unknown):
        bench.notes.lpush(Queue.CHAT, message)
    assert (await asyncio.wait_for(bench.caller.call(bench.call(ECHO, text="fine")), 10)).text == "fine"
    assert worker.poll() is None
    assert sorted(note.split()[1] for note in bench.noted(STARTED)) == ["fine", "twice"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"{}",
        b'{"body": "", "headers": {}, "properties": {}}',
        b"not json",
        b"[]",
        b"\xff",
    ],
)
async def test_a_worker_survives_what_is_no_message(bench: Bench, rubbish: bytes) -> None:
    worker = await bench.worker()
    bench.caller.sender.consumerless_seconds = 1.0
    bench.notes.lpush(Queue.CHAT, rubbish)
    assert (await asyncio.wait_for(bench.caller.call(bench.call(ECHO, text="fine")), 15)).text == "fine"
    assert worker.poll() is None


async def test_a_killed_worker_s_job_is_finished_by_another(bench: Bench) -> None:
    first = await bench.worker()
    bench.submit(seconds=0.8)
    bench.dispatcher.start()
    await until(lambda: bench.noted(STARTED))
    first.kill()
    second = await bench.worker()
    await until(lambda: bench.states() == {ledger.SUCCEEDED: 1})
    assert bench.effects() == 1
    assert [int(note.split()[0]) for note in bench.noted(STARTED)] == [first.pid, second.pid]


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize(("seconds", "state"), [(0.4, ledger.SUCCEEDED), (30, ledger.QUEUED)])
async def test_a_drained_worker_finishes_or_hands_back(bench: Bench, signals: int, seconds: float, state: str) -> None:
    worker = await bench.worker()
    bench.submit(seconds=seconds)
    bench.dispatcher.start()
    await until(lambda: bench.noted(STARTED))
    await bench.dispatcher.stop()
    worker.send_signal(signal.SIGTERM)
    if signals == 2:
        await asyncio.sleep(0.2)
        worker.send_signal(signal.SIGTERM)
    await until(lambda: worker.poll() is not None)
    assert bench.states() == {state: 1}
    assert bench.notes.zcard(keys.workers(Queue.CHAT)) == 0


async def test_jobs_outlive_the_broker_s_memory(bench: Bench) -> None:
    bench.submit(20)
    bench.dispatcher.start()
    await until(lambda: bench.notes.llen(Queue.INGEST) > 0)
    bench.notes.flushall()
    await bench.worker()
    await until(lambda: bench.states() == {ledger.SUCCEEDED: 20}, seconds=20)
    assert bench.effects() == 20
    assert len(bench.noted(STARTED)) == 20


async def test_a_running_job_is_cancelled(bench: Bench) -> None:
    await bench.worker()
    (job_id,) = bench.submit(seconds=30, text="stopped")
    bench.dispatcher.start()
    await until(lambda: bench.noted(STARTED))
    bench.database.write_now(lambda c: ledger.cancel(c, "t0", job_id))
    await until(lambda: bench.states() == {ledger.CANCELLED: 1})
    assert bench.noted(CANCELLED) == ["stopped"]
    assert bench.effects() == 0


async def test_a_permanent_error_fails_a_job_at_once(bench: Bench) -> None:
    await bench.worker()
    (job_id,) = bench.submit(fatal=True)
    bench.dispatcher.start()
    await until(lambda: bench.states() == {ledger.FAILED: 1})
    row = bench.database.read_now(lambda c: ledger.get(c, "t0", job_id))
    assert (row.attempt, row.error_code) == (1, "invalid_file")
    assert bench.effects() == 0
