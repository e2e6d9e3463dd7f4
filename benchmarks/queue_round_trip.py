"""What the queue in the middle costs: a request through broker and worker and back, with nothing done in between.

Run by `python -m benchmarks.queue_round_trip`. Starts a Redis server and one worker process, then calls it one at a
time and 32 at a time; prints milliseconds, calls per second and CPU per call of either side.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import uvloop

from benchmarks.processes import cpu_seconds
from libs.common.contracts.base import Queue
from libs.common.contracts.chat import EMBED, EmbedReply, EmbedRequest
from libs.common.keyring import Keyring
from libs.common.settings import WorkerSettings
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.caller import Caller
from libs.common.tasks.open_call import Call
from libs.common.tasks.publisher import Consumers, Limits, Publisher
from libs.common.tasks.replies import Reply
from libs.common.tasks.reply_hub import ReplyHub
from libs.common.tasks.wire import MessageSealer
from libs.common.tasks.worker import Worker
from libs.local.redis_servers import running_redis

ONE_BY_ONE = 1000
SIDE_BY_SIDE = 32
MANY = 10_000
LIMITS = Limits("tenant", "key", requests_per_minute=100_000_000, parallel_streams=1)


async def echo(request: EmbedRequest, reply: Reply[EmbedReply]) -> None:
    """The handler that does nothing."""
    await reply.done(EmbedReply(vectors=request.texts, tokens=0))


@contextmanager
def running_worker(broker_url: str, keyring: str) -> Iterator[int]:
    """One worker process; gives its pid."""
    environment = {**os.environ, "BROKER_URL": broker_url, "KEYRING": keyring, "SERVICE_NAME": "chat"}
    command = [sys.executable, "-m", "benchmarks.queue_round_trip", "--worker"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


async def measure(broker_url: str, keyring: Keyring, worker_pid: int) -> None:
    """Call, and print the figures."""
    broker = BrokerConnection(broker_url)
    clock = BrokerClock(broker)
    await clock.synchronise()
    hub = ReplyHub(broker_url, "benchmark", keyring)
    hub.start()
    await hub._subscription.connected.wait()  # noqa: SLF001 - nothing else needs to wait for it
    messages = MessageSealer(keyring)
    caller = Caller(broker, Publisher(broker), Consumers(broker, clock), clock, messages, hub)

    async def once() -> float:
        started = time.perf_counter()
        await caller.call(Call(EMBED, EmbedRequest(model="m", texts=("x",)), uuid.uuid4().hex, LIMITS, 30.0))
        return (time.perf_counter() - started) * 1000

    await asyncio.gather(*(once() for _ in range(200)))  # warm-up, and the worker's start
    milliseconds = sorted([await once() for _ in range(ONE_BY_ONE)])
    print(f"one at a time: p50 {median(milliseconds):.2f} ms, p95 {milliseconds[int(ONE_BY_ONE * 0.95)]:.2f} ms")

    remaining = iter(range(MANY))

    async def caller_task() -> None:
        for _ in remaining:
            await once()

    own, theirs, started = time.process_time(), cpu_seconds(worker_pid), time.perf_counter()
    await asyncio.gather(*(caller_task() for _ in range(SIDE_BY_SIDE)))
    seconds = time.perf_counter() - started
    caller_ms = (time.process_time() - own) / MANY * 1000
    worker_ms = (cpu_seconds(worker_pid) - theirs) / MANY * 1000
    print(
        f"{SIDE_BY_SIDE} at a time: {MANY / seconds:.0f} calls/s, "
        f"CPU per call: caller {caller_ms:.2f} ms, worker {worker_ms:.2f} ms"
    )
    await hub.close()
    await broker.close()


def main() -> None:
    """Run the benchmark, or its worker."""
    parser = argparse.ArgumentParser(description="Measure what the queue costs.")
    parser.add_argument("--worker", action="store_true")
    if parser.parse_args().worker:
        worker = Worker(WorkerSettings(), [Queue.CHAT])
        worker.handles(EMBED, echo)
        worker.run()
        return
    keyring = Keyring.generate()
    with (
        tempfile.TemporaryDirectory() as directory,
        running_redis(Path(directory), persistent=True) as redis,
        running_worker(redis.url, keyring) as worker_pid,
    ):
        uvloop.run(measure(redis.url, Keyring.parse(keyring), worker_pid))


if __name__ == "__main__":
    main()
