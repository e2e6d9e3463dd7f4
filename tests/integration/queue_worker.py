"""A worker process for tests: `python -m tests.integration.queue_worker`, configured by the environment.

Every handler notes in Redis what it did, so that a test counts effects and not promises.
"""

import asyncio
import os
from typing import Final

import redis.asyncio
from sqlalchemy import Connection, insert

from libs.common.contracts.base import Empty, JobSpec, Message, Queue, TaskSpec
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.common.settings import WorkerSettings
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.replies import Reply, sse_block
from libs.common.tasks.worker import Worker


class Work(Message):
    """What to do: say `text`, in `count` events, taking `seconds`."""

    text: str = ""
    count: int = 0
    seconds: float = 0.0
    fatal: bool = False


class Done(Message):
    """What was said, and by which process."""

    text: str
    pid: int


ECHO = TaskSpec("probe.echo", Queue.CHAT, Work, Done)
STREAM = TaskSpec("probe.stream", Queue.CHAT, Work, Done)
FAIL = TaskSpec("probe.fail", Queue.CHAT, Work, Empty)
CRASH = TaskSpec("probe.crash", Queue.CHAT, Work, Done)
JOB = JobSpec("probe.job", Queue.INGEST, Work)

RUNNING: Final = "probe:running"  # how many handlers run now
PEAK: Final = "probe:peak"  # a set: every number of handlers that ran at once
STARTED: Final = "probe:started"  # a list: what every handler began
CANCELLED: Final = "probe:cancelled"  # a list: what every handler was stopped in


class Probe:
    """The handlers."""

    def __init__(self, broker_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(broker_url)

    async def _work(self, work: Work) -> None:
        await self._redis.rpush(STARTED, f"{os.getpid()} {work.text}")
        await self._redis.sadd(PEAK, await self._redis.incr(RUNNING))
        try:
            await asyncio.sleep(work.seconds)
        except asyncio.CancelledError:
            await self._redis.rpush(CANCELLED, work.text)
            raise
        finally:
            await self._redis.decr(RUNNING)

    async def echo(self, work: Work, reply: Reply[Done]) -> None:
        await self._work(work)
        await reply.done(Done(text=work.text, pid=os.getpid()))

    async def stream(self, work: Work, reply: Reply[Done]) -> None:
        """Events at once in bursts, then a pause, then the end."""
        for number in range(work.count):
            reply.event(sse_block({"n": number}))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await self._work(work)
        await reply.done(Done(text=work.text, pid=os.getpid()))

    async def fail(self, work: Work, _reply: Reply[Empty]) -> None:
        if work.fatal:
            raise PermanentError(ErrorCode.INVALID_VALUE, "That cannot be.", param="text")
        raise ValueError("a secret that must not leave the process")

    async def crash(self, work: Work, reply: Reply[Done]) -> None:
        """The first to get it dies, after `count` events; the next one answers."""
        await self._redis.rpush(STARTED, f"{os.getpid()} {work.text}")
        if await self._redis.set(f"probe:crashed:{work.text}", "1", nx=True):
            for number in range(work.count):
                reply.event(sse_block({"n": number}))
            await asyncio.sleep(0.3)  # what was sent arrives
            os._exit(1)
        await reply.done(Done(text=work.text, pid=os.getpid()))

    async def job(self, work: Work, run: JobRun) -> None:
        await run.progress(0, 1)
        await self._work(work)
        if work.fatal:
            raise PermanentError(ErrorCode.INVALID_FILE, "It cannot be done.")

        def effect(connection: Connection) -> None:
            # Any table with a primary key shows that this happened once; a second time it would raise.
            connection.execute(insert(tenants).values(id=run.id, name=work.text, created_at=epoch_now()))

        await run.finish(effect)


def main() -> None:
    """Serve both queues until told to stop."""
    settings = WorkerSettings(service_name="probe")
    probe = Probe(settings.broker_url)
    worker = Worker(settings, [Queue.CHAT, Queue.INGEST], database=Database(settings.database_url))
    worker.handles(ECHO, probe.echo)
    worker.handles(STREAM, probe.stream)
    worker.handles(FAIL, probe.fail)
    worker.handles(CRASH, probe.crash)
    worker.performs(JOB, probe.job)
    worker.run()


if __name__ == "__main__":
    main()
