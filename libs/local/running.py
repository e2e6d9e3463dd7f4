"""Starting a whole stack, and a handle on a running one: for the command line, and for tests that kill its programs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from libs.local import control
from libs.local.child import State
from libs.local.control import ProgramStatus, StackStatus
from libs.local.ports import Ports, free_ports
from libs.local.processes import die_with_parent
from libs.local.stack import ROOT, prepare
from libs.local.supervisor import ALREADY_RUNNING, failure_file

_POLL_SECONDS: Final = 0.05
# Beyond the supervisor's own limits, which come first and say more.
_PATIENCE_SECONDS: Final = 240.0


class StackFailedError(Exception):
    """The stack did not come up, or a program did not do what was asked of it in time; says which and why."""


class Stack:
    """A running stack, by its state directory.

    Raises (from everything that asks the supervisor): NotRunningError; Refused where there is no such program.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.resolve()

    @property
    def url(self) -> str:
        """Where the gateway listens, without a path; a client's base URL is this and `/v1`."""
        return self.program("gateway").url

    @property
    def api_key(self) -> str:
        """The first tenant's key, made when the stack first came up."""
        return (self.state_dir / "api-key").read_text().strip()

    def status(self) -> StackStatus:
        found = self._ask("status")
        return StackStatus(found["state"], found["pid"], tuple(ProgramStatus(**each) for each in found["programs"]))

    def program(self, name: str) -> ProgramStatus:
        """How one program is.

        Raises:
            Refused: it is not part of this stack.
        """
        for program in self.status().programs:
            if program.name == name:
                return program
        raise control.Refused(f"There is no program '{name}' in this stack.")

    def pid(self, name: str) -> int:
        """The pid of a program; raises StackFailedError where it has none at the moment."""
        pid = self.program(name).pid
        if pid is None:
            raise StackFailedError(f"{name} has no process.")
        return pid

    def start(self, name: str) -> None:
        """Start a stopped program; returns at once, see `wait_ready`."""
        self._ask("start", name)

    def stop(self, name: str) -> None:
        """Stop a program, which then stays stopped; returns when it is gone."""
        self._ask("stop", name)

    def restart(self, name: str) -> None:
        """Stop and start a program; returns when the old process is gone, see `wait_ready`."""
        self._ask("restart", name)

    def kill(self, name: str) -> int:
        """SIGKILL a program; returns its pid when the supervisor has seen it die, and soon starts it again."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        _until(lambda: self.program(name).pid != pid, f"{name} did not die")
        return pid

    def wait_ready(self, name: str, timeout_seconds: float = 60.0) -> None:
        """Wait until a program is ready; raises StackFailedError if that takes too long."""
        _until(lambda: self.program(name).state == State.READY, f"{name} is not ready", timeout_seconds)

    def environment(self, name: str) -> dict[str, str]:
        """The environment that a program was given."""
        return dict(self._ask("environment", name))

    def is_running(self) -> bool:
        """Whether there is a supervisor, be it starting or stopping."""
        try:
            self._ask("status")
        except control.NotRunningError:
            return False
        return True

    def down(self) -> None:
        """Stop everything; returns when all is gone. A stack that does not run is down already."""
        if self.is_running():
            self._ask("down")
            _until(lambda: not self.is_running(), "The stack did not stop")

    def _ask(self, verb: str, name: str | None = None) -> dict[str, Any]:
        return control.request(self.state_dir / "run", verb, name)


@contextmanager
def running_stack(
    state_dir: Path,
    *,
    ports: Ports | None = None,
    only: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """A stack for the length of a test, under a supervisor process of its own, ready when the block begins.

    The thread that enters must stay alive until the block ends: the supervisor stops when that thread does.

    Args:
        ports: free ones unless given.
        only: the programs to run; all if empty.
        environ: the caller's environment; this process's unless given.

    Raises:
        StackFailedError: it did not come up; holds the end of the log of the program at fault.
    """
    theirs = os.environ if environ is None else environ
    environment = {**theirs, **(ports or free_ports()).as_environment()}
    stack = Stack(state_dir)
    process = launch(stack, environment, only, die_with_parent(signal.SIGTERM))
    try:
        wait_until_up(stack, process)
        yield stack
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        finally:
            process.kill()  # its programs end with it


def launch(
    stack: Stack, environ: Mapping[str, str], only: Collection[str], preexec_fn: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a supervisor in the background, in a session of its own, its output in `logs/supervisor.log`."""
    prepare(stack.state_dir)
    failure_file(stack.state_dir).unlink(missing_ok=True)
    command = [sys.executable, "-m", "libs.local", "up", "--foreground", "--state-dir", str(stack.state_dir)]
    command += [f"--only={name}" for name in only]
    with (stack.state_dir / "logs" / "supervisor.log").open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environ),
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=preexec_fn,  # noqa: PLW1509 - two system calls, no locks
        )


def wait_until_up(
    stack: Stack, process: subprocess.Popen[bytes], show: Callable[[StackStatus], None] = lambda _status: None
) -> None:
    """Wait until a launched stack is ready.

    Args:
        process: from `launch`; if it finds that another supervisor is there already, that one is waited for.
        show: gets the status at every look.

    Raises:
        StackFailedError: it did not come up.
    """

    def is_up() -> bool:
        if process.poll() not in {None, ALREADY_RUNNING}:
            raise StackFailedError(_failure(stack.state_dir))
        try:
            status = stack.status()
        except control.NotRunningError:
            return False
        show(status)
        if status.state == State.STOPPING and process.poll() == ALREADY_RUNNING:
            raise StackFailedError("The stack is going down; try again when it is.")
        return status.state == State.READY

    _until(is_up, "The stack was not ready")


def _failure(state_dir: Path) -> str:
    try:
        return failure_file(state_dir).read_text().rstrip()
    except FileNotFoundError:
        return f"The supervisor ended; see {state_dir / 'logs' / 'supervisor.log'}."


def _until(holds: Callable[[], bool], otherwise: str, timeout_seconds: float = _PATIENCE_SECONDS) -> None:
    give_up_at = time.monotonic() + timeout_seconds
    while not holds():
        if time.monotonic() > give_up_at:
            raise StackFailedError(f"{otherwise} after {timeout_seconds:g} s.")
        time.sleep(_POLL_SECONDS)
