"""Whole stacks of the stores there are, each under a supervisor process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from libs.local.child import State
from libs.local.control import NotRunningError, Refused
from libs.local.ports import free_ports
from libs.local.running import Stack, StackFailedError, running_stack


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end the children of a killed parent at once")
def test_nothing_outlives_a_supervisor_that_is_killed_and_the_next_one_starts(tmp_path: Path) -> None:
    ports = free_ports()
    with running_stack(tmp_path / "s", ports=ports, only=["broker", "cache"]) as stack:
        pids = [stack.pid("broker"), stack.pid("cache")]
        os.kill(stack.status().pid, signal.SIGKILL)
        _wait_until(lambda: not any(map(_is_alive, pids)))
        assert not stack.is_running()
    with running_stack(tmp_path / "s", ports=ports, only=["broker", "cache"]) as again:
        assert again.status().state == State.READY


def test_a_stack_side_by_side_with_another_survives_a_kill_of_its_broker(tmp_path: Path) -> None:
    with (
        running_stack(tmp_path / "a", only=["broker", "cache"]) as stack,
        running_stack(tmp_path / "b", only=["broker"]) as other,
    ):
        assert stack.program("broker").url != other.program("broker").url
        with redis.Redis.from_url(stack.program("broker").url) as client:
            client.rpush("queue", "kept")
            killed = stack.kill("broker")
            stack.wait_ready("broker")
            assert stack.pid("broker") != killed
            assert client.lrange("queue", 0, -1) == [b"kept"]
        assert stack.environment("cache")["PYTHONUNBUFFERED"] == "1"
        with pytest.raises(Refused, match="no program 'nobody'"):
            stack.restart("nobody")
    assert not stack.is_running()
    with pytest.raises(NotRunningError):
        stack.pid("broker")


def test_an_unknown_program_fails_the_stack_with_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(StackFailedError, match="no program called chatt"),
        running_stack(tmp_path / "s", only=["chatt"]),
    ):
        pass


def test_up_is_idempotent_and_down_ends_it(tmp_path: Path) -> None:
    environ = {**os.environ, **free_ports().as_environment()}
    state_dir = str(tmp_path / "s")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "libs.local", *arguments, "--state-dir", state_dir]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    try:
        assert run("up", "--only=cache").returncode == 0
        first = Stack(tmp_path / "s").status()
        assert run("up", "--only=cache").returncode == 0
        assert Stack(tmp_path / "s").status().programs[0].pid == first.programs[0].pid
        assert str(first.programs[0].pid) in run("status").stdout
        assert "Ready to accept connections" in run("logs", "cache").stdout
        assert "export PYTHONUNBUFFERED=1" in run("env", "cache").stdout
        assert run("stop", "cache").returncode == 0
        assert "stopped" in run("status").stdout
        assert run("start", "cache").returncode == 0
    finally:
        assert run("down").returncode == 0
    assert run("status").returncode == 1
    assert run("down").returncode == 0


def _wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
