"""The supervisor, with small programs in the place of the services."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from libs.local.child import Child, StartError, State, Timing
from libs.local.ports import free_port
from libs.local.processes import recorded_pid, write_pid_file
from libs.local.running import Stack
from libs.local.stack import STORES, WORKERS, Program, Step, prepare
from libs.local.supervisor import AlreadyRunningError, Supervisor

TIMING = Timing(ready_seconds=20, grace_seconds=0.5, first_backoff_seconds=0.05, longest_backoff_seconds=0.2)
# Answers every GET with 200; a first argument of `deaf` makes it ignore SIGTERM.
SERVER = """
import http.server, os, signal, sys
if sys.argv[2:] == ["deaf"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CHILD_OF_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
"""


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    prepare(tmp_path / "state")
    return tmp_path / "state"


def _program(name: str, source: str = SERVER, *arguments: str, stage: int = STORES) -> Program:
    port = free_port()
    argv = (sys.executable, "-c", source, str(port), *arguments)
    return Program(name, argv, f"http://127.0.0.1:{port}/", {"PYTHONUNBUFFERED": "1"}, stage)


def _step(name: str, source: str) -> Step:
    return Step(name, (sys.executable, "-c", source), {})


@asynccontextmanager
async def _running(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    run = asyncio.create_task(supervisor.run())
    try:
        await _until(lambda: run.done() or supervisor.state is State.READY)
        if run.done():
            await run
        yield supervisor
    finally:
        supervisor.shut_down()
        await asyncio.wait({run})


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - much of what is waited for is another process
            await asyncio.sleep(0.01)


def _is_ready_anew(child: Child, former_pid: int) -> bool:
    return child.state is State.READY and child.pid not in {None, former_pid}


@contextmanager
def _sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _log(state_dir: Path, name: str) -> str:
    return (state_dir / "logs" / f"{name}.log").read_text()


async def test_stores_then_steps_then_services_and_down_in_reverse(state_dir: Path) -> None:
    events: list[str] = []
    store, worker = _program("store"), _program("worker", stage=WORKERS)
    asks = f"import urllib.request; urllib.request.urlopen('{store.ready}'); print('schema made')"
    supervisor = Supervisor(state_dir, [worker, store], [_step("migrate", asks)], timing=TIMING, notify=events.append)
    async with _running(supervisor):
        assert "schema made" in _log(state_dir, "migrate")
        pids = {name: child.pid for name, child in supervisor.children.items()}
        assert {name: recorded_pid(state_dir / "run" / f"{name}.pid") for name in pids} == pids
    order = [event.split()[0] for event in events]
    assert order == ["store", "worker", "all"]
    assert not any(_is_alive(pid) for pid in pids.values() if pid)
    assert not list((state_dir / "run").glob("*.pid"))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_program_that_dies_is_started_again(state_dir: Path, signal_number: signal.Signals) -> None:
    async with _running(Supervisor(state_dir, [_program("chat")], timing=TIMING)) as supervisor:
        chat = supervisor.children["chat"]
        for _ in range(3):
            pid = chat.pid
            assert pid is not None
            os.kill(pid, signal_number)
            await _until(partial(_is_ready_anew, chat, pid))
        assert _log(state_dir, "chat").count("serving") == 4


async def test_a_stopped_program_stays_stopped_until_it_is_started(state_dir: Path) -> None:
    async with _running(Supervisor(state_dir, [_program("chat")], timing=TIMING)) as supervisor:
        stack, chat = Stack(state_dir), supervisor.children["chat"]
        await asyncio.to_thread(stack.stop, "chat")
        assert (chat.state, chat.pid) == (State.STOPPED, None)
        await asyncio.to_thread(stack.start, "chat")
        await asyncio.to_thread(stack.wait_ready, "chat")
        first = chat.pid
        await asyncio.to_thread(stack.restart, "chat")
        await asyncio.to_thread(stack.wait_ready, "chat")
        assert chat.pid != first


async def test_a_program_deaf_to_sigterm_is_killed_when_its_grace_is_over(state_dir: Path) -> None:
    async with _running(Supervisor(state_dir, [_program("chat", SERVER, "deaf")], timing=TIMING)) as supervisor:
        pid = supervisor.children["chat"].pid
        assert pid is not None
    assert not _is_alive(pid)


async def test_what_a_dead_program_started_dies_with_it(state_dir: Path) -> None:
    program = _program("ingest", CHILD_OF_CHILD + SERVER)
    async with _running(Supervisor(state_dir, [program], timing=TIMING)) as supervisor:
        ingest = supervisor.children["ingest"]
        grandchild, pid = int(_log(state_dir, "ingest").split()[0]), ingest.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await _until(lambda: ingest.pid not in {None, pid} and not _is_alive(grandchild))


async def test_a_program_that_ends_before_it_is_ready_fails_the_start_with_its_last_words(state_dir: Path) -> None:
    lines = "import sys\nfor n in range(30): print(n)\nsys.exit('no such module')"
    good, bad = _program("broker"), _program("chat", lines, stage=WORKERS)
    supervisor = Supervisor(state_dir, [good, bad], timing=TIMING)
    with pytest.raises(StartError) as failure:
        await supervisor.run()
    shown = str(failure.value).splitlines()
    assert shown[0].startswith("chat ended before it was ready")
    assert (shown[1], shown[-1], len(shown)) == ("11", "no such module", 21)
    assert supervisor.children["broker"].state is State.STOPPED


async def test_a_program_that_is_never_ready_fails_the_start(state_dir: Path) -> None:
    program = _program("chat", "import time; time.sleep(100)")
    with pytest.raises(StartError, match=r"chat was not ready within 0\.3 s"):
        await Supervisor(state_dir, [program], timing=Timing(ready_seconds=0.3, grace_seconds=1)).run()


async def test_a_failed_step_fails_the_start_before_any_service(state_dir: Path) -> None:
    steps = [_step("migrate", "raise SystemExit('the schema is newer')")]
    with pytest.raises(StartError, match=r"(?s)migrate failed with status 1.*the schema is newer"):
        await Supervisor(state_dir, [_program("chat", stage=WORKERS)], steps, timing=TIMING).run()
    assert not (state_dir / "logs" / "chat.log").exists()


async def test_a_port_in_use_is_told_before_anything_is_started_on_it(state_dir: Path, tmp_path: Path) -> None:
    program = _program("chat")
    prepare(tmp_path / "other")
    async with _running(Supervisor(state_dir, [program], timing=TIMING)):
        with pytest.raises(StartError, match="is in use already"):
            await Supervisor(tmp_path / "other", [program], timing=TIMING).run()


async def test_a_start_can_be_given_up(state_dir: Path) -> None:
    supervisor = Supervisor(state_dir, [_program("chat", "import time; time.sleep(100)")], timing=TIMING)
    run = asyncio.create_task(supervisor.run())
    await _until(lambda: supervisor.children["chat"].pid is not None)
    supervisor.shut_down()
    await run
    assert supervisor.children["chat"].state is State.STOPPED


async def test_a_directory_has_one_supervisor(state_dir: Path) -> None:
    async with _running(Supervisor(state_dir, [_program("chat")], timing=TIMING)) as supervisor:
        with pytest.raises(AlreadyRunningError):
            await Supervisor(state_dir, [], timing=TIMING).run()
        assert await asyncio.to_thread(Stack(state_dir).pid, "chat") == supervisor.children["chat"].pid


async def test_what_a_killed_supervisor_left_is_ended_and_others_are_not(state_dir: Path) -> None:
    with _sleeping() as left, _sleeping() as stranger:
        write_pid_file(state_dir / "run" / "chat.pid", left.pid)
        # A pid that the system has since given to somebody else's process.
        (state_dir / "run" / "batch.pid").write_text(f"{stranger.pid}\nanother-boot 1\n")
        async with _running(Supervisor(state_dir, [], timing=TIMING)):
            assert await asyncio.to_thread(left.wait, 10) == -signal.SIGKILL
            assert stranger.poll() is None
