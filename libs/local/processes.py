"""Child processes: tied to their parent's life, found again by pid and start time, their output kept within bounds."""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_LOG_LIMIT_BYTES: Final = 10 * 1024 * 1024
_STALE_EXIT_SECONDS: Final = 5.0


def die_with_parent(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn`: the child gets this signal when the thread that starts it ends, however that comes about.

    Linux only; elsewhere the children of a killed supervisor are ended by the next one (`end_stale`).
    """
    parent = os.getpid()

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return prepare


def write_pid_file(path: Path, pid: int) -> None:
    """Record a process: its pid on the first line; on the second what tells it from a later one of the same pid."""
    path.write_text(f"{pid}\n{_identity(pid) or ''}\n")


def recorded_pid(path: Path) -> int | None:
    """The pid in a pid file if that very process still runs; None where that cannot be told."""
    try:
        pid, identity = path.read_text().splitlines()
    except (OSError, ValueError):
        return None
    return int(pid) if pid.isdigit() and identity and _identity(int(pid)) == identity else None


def end_stale(run_dir: Path) -> list[str]:
    """Kill what a supervisor that was itself killed left behind, by the pid files; the names of what was found."""
    left = {path: pid for path in run_dir.glob("*.pid") if (pid := recorded_pid(path)) is not None}
    for pid in left.values():
        kill_group(pid)
    give_up_at = time.monotonic() + _STALE_EXIT_SECONDS
    while any(recorded_pid(path) for path in left) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    for path in run_dir.glob("*.pid"):
        path.unlink(missing_ok=True)
    return sorted(path.stem for path in left)


def kill_group(leader_pid: int) -> None:
    """SIGKILL to a process and all it started in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader_pid, signal.SIGKILL)


def rotate_log(path: Path, limit_bytes: int = _LOG_LIMIT_BYTES) -> None:
    """Move a log that has grown past the limit to `<name>.1`; a log and its past take twice the limit at most.

    The program holds the file open for appending, so the content is copied and the file emptied in place; lines
    written between the two are lost.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > limit_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log; nothing if there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except FileNotFoundError:
        return []


def _identity(pid: int) -> str | None:
    """Boot and start time of a process, which no other process shares; None if it is gone or the system has no /proc.

    Not its command line: Redis rewrites that, and two stacks on one machine run the same ones.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start_ticks = fields[0], fields[19]  # fields 3 and 22 of proc(5); the name before them may hold spaces
    return None if state in "ZX" else f"{boot} {start_ticks}"
