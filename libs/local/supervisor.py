"""Brings the programs of the one-machine stack up in order, keeps them running, and takes them down in reverse.

Not built on honcho: it has no readiness, no order and no restart, and it ends every program as soon as one of them
ends, while this stack is one in which anything may be killed. What is left of it, starting processes and keeping their
output, is a few lines here.
"""

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from libs.local.child import Child, StartError, State, Timing, spawn
from libs.local.control import ProgramStatus, Refused, StackStatus, serving
from libs.local.ports import Ports
from libs.local.probes import listens
from libs.local.processes import end_stale, kill_group, rotate_log, write_pid_file
from libs.local.stack import STORES, Program, Step, prepare, programs, steps

START_FAILED: Final = 1
ALREADY_RUNNING: Final = 3
_ROTATE_EVERY_SECONDS: Final = 5.0


class AlreadyRunningError(Exception):
    """Another supervisor has this state directory."""


def supervise(state_dir: Path, environ: Mapping[str, str], only: Collection[str]) -> int:
    """Run a stack in this process until SIGTERM or SIGINT; the exit status."""
    os.umask(0o077)  # whatever a program of the stack writes is its owner's alone
    failure = failure_file(state_dir)
    try:
        asyncio.run(_supervise(state_dir, environ, only))
    except AlreadyRunningError as error:
        _say(str(error))
        return ALREADY_RUNNING
    except (StartError, OSError, ValueError) as error:
        _say(str(error))
        if failure.parent.is_dir():
            failure.write_text(f"{error}\n")
        return START_FAILED
    return 0


def failure_file(state_dir: Path) -> Path:
    """Where a supervisor that ends with START_FAILED writes why."""
    return state_dir / "run" / "failure"


class Supervisor:
    """Starts, watches and stops a stack's programs.

    Args:
        state_dir: holds `logs/` and `run/`, which must be there (`libs.local.stack.prepare`).
        notify: gets a line for a person at every event.

    Raises (from `run`): StartError when a program or step does not come up, after all is stopped again;
    AlreadyRunningError when another supervisor has this directory.
    """

    def __init__(
        self,
        state_dir: Path,
        programs: Sequence[Program],
        steps: Sequence[Step] = (),
        *,
        timing: Timing | None = None,
        notify: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.state = State.STARTING
        self._run_dir = state_dir / "run"
        self.children = {program.name: Child(program, state_dir, timing or Timing(), notify) for program in programs}
        self._logs_dir = state_dir / "logs"
        self._steps = steps
        self._notify = notify
        self._stop_wanted = asyncio.Event()

    def shut_down(self) -> None:
        """Make `run` stop everything and return; also while it still starts."""
        self._stop_wanted.set()

    async def run(self) -> None:
        """Bring the stack up, keep it up, and take it down when told to."""
        with _only_supervisor(self._run_dir):
            for name in end_stale(self._run_dir):
                self._notify(f"ended {name}, left over by a supervisor that was killed")
            pid_file = self._run_dir / "supervisor.pid"
            write_pid_file(pid_file, os.getpid())
            async with serving(self._run_dir, self._obey):
                rotation = asyncio.create_task(self._rotate_logs())
                try:
                    await self._up_and_wait()
                finally:
                    self.state = State.STOPPING
                    rotation.cancel()
                    await self._stop_all()
                    pid_file.unlink()

    async def _up_and_wait(self) -> None:
        starting = asyncio.create_task(self._bring_up())
        stopping = asyncio.create_task(self._stop_wanted.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                starting.result()
                self.state = State.READY
                self._notify("all programs are ready")
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _obey(self, verb: str, name: str | None) -> dict[str, Any]:
        """Do what a client of the control socket asks."""
        if verb == "status":
            return asdict(self.status())
        if verb == "down":
            self.shut_down()
            return {}
        child = self.children.get(name or "")
        if child is None:
            raise Refused(f"There is no program '{name}' in this stack.")
        if verb == "environment":
            return dict(child.program.environment)
        if self.state is State.STOPPING:
            raise Refused("The stack is stopping.")
        if verb in {"stop", "restart"}:
            await child.stop()
        if verb in {"start", "restart"}:
            child.start()
        return {}

    def status(self) -> StackStatus:
        """How everything is now."""
        return StackStatus(self.state, os.getpid(), tuple(_status(child) for child in self.children.values()))

    async def _bring_up(self) -> None:
        stores = [child for child in self.children.values() if child.program.stage == STORES]
        others = [child for child in self.children.values() if child.program.stage != STORES]
        await _start_together(stores)
        if others:
            for step in self._steps:
                await self._run_step(step)
        await _start_together(others)

    async def _run_step(self, step: Step) -> None:
        log = self._logs_dir / f"{step.name}.log"
        process = await spawn(step.argv, step.environment, log)
        try:
            status = await process.wait()
        finally:
            kill_group(process.pid)
        if status != 0:
            raise StartError(step.name, f"failed with status {status}; the end of its log:", log)

    async def _stop_all(self) -> None:
        for stage in sorted({child.program.stage for child in self.children.values()}, reverse=True):
            await asyncio.gather(*(child.stop() for child in self.children.values() if child.program.stage == stage))

    async def _rotate_logs(self) -> None:
        while True:
            for path in self._logs_dir.glob("*.log"):
                rotate_log(path)
            await asyncio.sleep(_ROTATE_EVERY_SECONDS)


async def _start_together(children: Sequence[Child]) -> None:
    for child in children:
        if await listens(child.program.ready):
            raise StartError(child.program.name, f"cannot start: {child.program.url} is in use already", child.log)
    for child in children:
        child.start()
    await asyncio.gather(*(child.until_ready() for child in children))


def _status(child: Child) -> ProgramStatus:
    uptime = time.time() - child.started_at if child.pid else 0.0
    return ProgramStatus(child.program.name, child.state, child.pid, uptime, child.program.url)


@contextmanager
def _only_supervisor(run_dir: Path) -> Generator[None]:
    """Hold the directory's lock, which the system releases however this process ends."""
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError("A supervisor is running with this state directory already.") from None
        yield


async def _supervise(state_dir: Path, environ: Mapping[str, str], only: Collection[str]) -> None:
    prepare(state_dir)
    ports = Ports.from_environment(environ)
    chosen = programs(state_dir, ports, environ)
    if unknown := set(only) - {program.name for program in chosen}:
        raise ValueError(f"There is no program called {', '.join(sorted(unknown))}.")
    if only:
        chosen = [program for program in chosen if program.name in only]
    supervisor = Supervisor(state_dir, chosen, steps(state_dir, ports, environ), notify=_say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.shut_down)
    await supervisor.run()


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()
