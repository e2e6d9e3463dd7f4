"""One program kept running: started, probed until it is ready, restarted when it dies, stopped when told to.

Its states: starting -> ready -> (dies) restarting -> starting ...; stopping -> stopped when told to.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from libs.local.probes import answers
from libs.local.processes import die_with_parent, kill_group, last_lines, write_pid_file
from libs.local.stack import ROOT, Program

_SHOWN_LINES: Final = 20


class State(StrEnum):
    """Of a program, and of the stack as a whole, which is never `restarting`."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the supervisor is. The grace must be longer than a worker's own `drain_seconds`."""

    ready_seconds: float = 60.0
    grace_seconds: float = 25.0
    first_backoff_seconds: float = 0.5
    longest_backoff_seconds: float = 10.0
    probe_seconds: float = 0.05


class StartError(Exception):
    """A program or step did not come up; says which, why, and how its log ends."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        super().__init__("\n".join([f"{name} {reason}", *last_lines(log, _SHOWN_LINES)]))


class Child:
    """One program: running until it is stopped, however often it dies. Owned by one event loop."""

    def __init__(self, program: Program, state_dir: Path, timing: Timing, notify: Callable[[str], None]) -> None:
        self.program = program
        self.state = State.STOPPED
        self.pid: int | None = None
        self.started_at = 0.0
        self.log = state_dir / "logs" / f"{program.name}.log"
        self._pid_file = state_dir / "run" / f"{program.name}.pid"
        self._timing = timing
        self._notify = notify
        self._stop_wanted = asyncio.Event()
        self._became_ready = asyncio.Event()
        self._died = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it, unless it is already being kept running."""
        if self._life is None or self._life.done():
            self._stop_wanted.clear()
            self._died.clear()
            self._became_ready.clear()
            self._life = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when its grace is over; returns when it and all it started are gone."""
        self._stop_wanted.set()
        if self._life is not None:
            await asyncio.wait({self._life})

    async def until_ready(self) -> None:
        """Wait for readiness.

        Raises:
            StartError: it died first, or took too long.
        """
        limit = self._timing.ready_seconds
        events = (self._became_ready, self._died, self._stop_wanted)
        waits = {asyncio.create_task(event.wait()) for event in events}
        try:
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._became_ready.is_set():
            ended = any(event.is_set() for event in events)
            reason = "ended before it was ready" if ended else f"was not ready within {limit:g} s"
            raise StartError(self.program.name, f"{reason}; the end of its log:", self.log)

    async def _keep_running(self) -> None:
        backoff = self._timing.first_backoff_seconds
        while not self._stop_wanted.is_set():
            began = time.monotonic()
            await self._live_once()
            if self._stop_wanted.is_set():
                break
            self.state = State.RESTARTING
            self._died.set()
            if time.monotonic() - began > self._timing.longest_backoff_seconds:
                backoff = self._timing.first_backoff_seconds
            await _wait_within(self._stop_wanted, backoff)
            backoff = min(2 * backoff, self._timing.longest_backoff_seconds)
        self.state = State.STOPPED

    async def _live_once(self) -> None:
        """From start to exit, whether it is told to exit or dies."""
        self.state = State.STARTING
        try:
            process = await spawn(self.program.argv, self.program.environment, self.log)
        except OSError as error:
            self._notify(f"{self.program.name} cannot be started: {error}")
            return
        self.pid, self.started_at = process.pid, time.time()
        write_pid_file(self._pid_file, process.pid)
        probing = asyncio.create_task(self._probe())
        await self._until_exit(process)
        probing.cancel()
        self._became_ready.clear()
        self.pid = None
        self._pid_file.unlink(missing_ok=True)

    async def _until_exit(self, process: asyncio.subprocess.Process) -> None:
        exited = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stop_wanted.wait())
        await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if exited.done():
            self._notify(f"{self.program.name} ended with status {exited.result()}")
        else:
            self.state = State.STOPPING
            with suppress(ProcessLookupError):  # it ended this very moment
                process.terminate()
            await asyncio.wait({exited}, timeout=self._timing.grace_seconds)
        # Also after it ended by itself: its own children must not hold its ports and files.
        kill_group(process.pid)
        await exited

    async def _probe(self) -> None:
        while not await answers(self.program.ready):  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(self._timing.probe_seconds)
        if self.state is not State.STARTING:  # it was told to stop meanwhile
            return
        self.state = State.READY
        self._became_ready.set()
        self._notify(f"{self.program.name} is ready at {self.program.url}")


async def spawn(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, which ends with this one, its output appended to `log`."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )


async def _wait_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
