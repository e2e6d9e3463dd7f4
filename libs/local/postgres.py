"""A PostgreSQL server for the length of a test, where the program is installed."""

import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from libs.local.ports import LOOPBACK, free_port
from libs.local.processes import die_with_parent, last_lines

_USER: Final = "docent"
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0
# Nothing here outlives the test, so nothing needs to reach the disk.
_OPTIONS: Final = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "unix_socket_directories=")


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server that trusts every local connection; `url` is SQLAlchemy's, of an empty database."""

    url: str
    port: int
    pid: int


def postgres_available() -> str | None:
    """None if a server can be run here, else the reason why not."""
    if _programs() is None:
        return "no PostgreSQL server program (initdb, postgres) on this machine"
    if os.geteuid() == 0 and _account() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres or nobody"
    return None


@contextmanager
def running_postgres(directory: Path) -> Iterator[PostgresServer]:
    """A new, empty server on a free port.

    Args:
        directory: of its log and data. Run by root, who may not run PostgreSQL, the data lies in a temporary directory
            instead, since another user cannot enter root's.

    Raises:
        RuntimeError: it cannot be run, or did not start; holds the end of its log.
    """
    reason, programs = postgres_available(), _programs()
    if reason or programs is None:
        raise RuntimeError(f"PostgreSQL cannot be run: {reason}.")
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "postgres.log"
    account = _account() if os.geteuid() == 0 else None
    with _data_directory(directory, account) as data:
        _initialise(programs / "initdb", data, log, account)
        port = free_port()
        process = _start(programs / "postgres", data, port, log, account)
        try:
            _wait_for_answer(port, process, log)
            yield PostgresServer(f"postgresql+psycopg://{_USER}@{LOOPBACK}:{port}/postgres", port, process.pid)
        finally:
            _stop(process)


@functools.cache
def _programs() -> Path | None:
    """The directory that holds the server's programs; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    # The link's target: `postgres` lies beside the real program.
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    return next((path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()), None)


def _version(programs: Path) -> int:
    return int(programs.parent.name) if programs.parent.name.isdigit() else 0


def _account() -> pwd.struct_passwd | None:
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names.get("nobody")


@contextmanager
def _data_directory(directory: Path, account: pwd.struct_passwd | None) -> Iterator[Path]:
    if account is None:
        yield directory / "data"
        return
    with tempfile.TemporaryDirectory(prefix="postgres-") as own:
        os.chown(own, account.pw_uid, account.pw_gid)
        yield Path(own) / "data"


def _initialise(initdb: Path, data: Path, log: Path, account: pwd.struct_passwd | None) -> None:
    command = [str(initdb), "--pgdata", str(data), "--username", _USER, "--auth", "trust", "--encoding", "UTF8"]
    command += ["--locale", "C", "--no-sync", "--no-instructions"]
    process = _popen(command, log, account)
    if process.wait() != 0:
        raise RuntimeError("initdb failed:\n" + "\n".join(last_lines(log, 20)))


def _start(
    postgres: Path, data: Path, port: int, log: Path, account: pwd.struct_passwd | None
) -> subprocess.Popen[bytes]:
    options = [*_OPTIONS, f"listen_addresses={LOOPBACK}", f"port={port}"]
    command = [str(postgres), "-D", str(data), *(part for option in options for part in ("-c", option))]
    return _popen(command, log, account)


def _popen(command: list[str], log: Path, account: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
    user = account.pw_uid if account else None
    group = account.pw_gid if account else None
    extra_groups: list[int] | None = [] if account else None
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd="/",
            user=user,
            group=group,
            extra_groups=extra_groups,
            # SIGQUIT is its immediate shutdown, which also ends its own children.
            preexec_fn=die_with_parent(signal.SIGQUIT),  # noqa: PLW1509 - two system calls, no locks
        )


def _wait_for_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            psycopg.connect(host=LOOPBACK, port=port, user=_USER, dbname="postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("PostgreSQL did not start:\n" + "\n".join(last_lines(log, 20)))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # its fast shutdown: connections are closed, not waited for
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
