"""Jobs that kill, block or never end, among innocent ones and random kills: found, tried alone, and given up."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, select

from libs.common import ledger
from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.migrate import migrate
from libs.common.records.tables import jobs
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from tests.integration.poison_worker import DEED, Deed

_WORKERS = 2


class Pen:
    """Two workers that are started again whenever they end, and the ledger they work on."""

    def __init__(self, broker_url: str, directory: Path) -> None:
        database_url = f"sqlite:///{directory}/docent.db"
        self.database = Database(database_url)
        migrate(self.database.engine)
        keyring_text = Keyring.generate()
        self.messages = MessageSealer(Keyring.parse(keyring_text))
        self._log = directory / "worker.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "BROKER_URL": broker_url,
            "DATABASE_URL": database_url,
            "KEYRING": keyring_text,
            "LEASE_SECONDS": "1.5",
            "HEARTBEAT_SECONDS": "0.3",
            "RECONCILE_INTERVAL_SECONDS": "0.2",
            "DRAIN_SECONDS": "1",
            "JOB_STEP_SECONDS": "2",
            "LOOP_BLOCKED_SECONDS": "1",
            "WORKER_CONCURRENCY": "4",
            "LOG_LEVEL": "WARNING",
        }

    async def keep_running(self) -> None:
        while True:
            alive = [process for process in self._processes if process.poll() is None]
            self._processes = alive + [self._start() for _ in range(_WORKERS - len(alive))]
            await asyncio.sleep(0.05)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.integration.poison_worker"]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def submit(self, *kinds: str) -> list[str]:
        def record(connection: Connection) -> list[str]:
            return [
                submit(
                    connection, self.messages, DEED, Deed.model_validate({"kind": kind}), tenant_id="t", resource_id="r"
                )
                for kind in kinds
            ]

        return self.database.write_now(record)

    def rows(self, job_ids: Sequence[str]) -> list[Row[Any]]:
        return self.database.read_now(
            lambda connection: list(connection.execute(select(jobs).where(jobs.c.id.in_(job_ids))).all())
        )

    def kill_one(self) -> bool:
        """Kill a worker in the midst of jobs, but none with a job alone: nobody could tell whose fault that was."""
        for process in self._processes:
            if process.poll() is not None:
                continue
            # Frozen first: what the ledger says of it stays true until it is dead.
            process.send_signal(signal.SIGSTOP)
            held = self._held_by(process.pid)
            if len(held) > 1 and not any(row.alone for row in held):
                process.kill()
                process.wait()
                return True
            process.send_signal(signal.SIGCONT)
        return False

    def _held_by(self, pid: int) -> list[Row[Any]]:
        running = select(jobs).where(jobs.c.state == ledger.RUNNING, jobs.c.worker.endswith(f".{pid}"))
        return self.database.read_now(lambda connection: list(connection.execute(running).all()))

    async def ended(self, job_ids: Sequence[str]) -> None:
        while not all(row.state in ledger.TERMINAL for row in self.rows(job_ids)):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.database.close()


@pytest.fixture
async def pen(broker_url: str, tmp_path: Path) -> AsyncIterator[Pen]:
    pen = Pen(broker_url, tmp_path)
    keeper = asyncio.create_task(pen.keep_running())
    yield pen
    keeper.cancel()
    await asyncio.wait([keeper])
    pen.close()


@pytest.mark.timeout(90)
async def test_poison_is_found_and_no_neighbour_is_charged(pen: Pen) -> None:
    fine = pen.submit(*["fine"] * 40, "steady")
    deadly = pen.submit("kills", "blocks")
    [hangs] = pen.submit("hangs")
    async with asyncio.timeout(80):
        for _ in range(2):
            while not pen.kill_one():  # noqa: ASYNC110 - the workers are other processes
                await asyncio.sleep(0.05)
        await pen.ended([*fine, *deadly, hangs])
    assert {(row.state, row.failures) for row in pen.rows(fine)} == {(ledger.SUCCEEDED, 0)}
    assert {(row.state, row.failures, row.error_code) for row in pen.rows(deadly)} == {
        (ledger.FAILED, 3, "server_error")
    }
    assert all("while running alone (failure 3 of 3)" in row.error_message for row in pen.rows(deadly))
    # It only does not get on: its process lives, and it is stopped at the end of its time.
    [hung] = pen.rows([hangs])
    assert (hung.state, hung.failures, hung.error_code) == (ledger.FAILED, 3, "deadline_exceeded")

    pen.database.write_now(lambda connection: ledger.requeue(connection, "t", deadly[0]))
    [again] = pen.rows(deadly[:1])
    assert (again.state, again.failures, again.suspect) == (ledger.QUEUED, 0, False)
