"""A process that swells ends itself and says so; one that does not is left alone."""

import mmap
import subprocess
import sys

import orjson

from libs.common.tasks.memory import resident_bytes

_SCRIPT = """
import time
from libs.common.logs import configure_logging
from libs.common.tasks.memory import MemoryGuard, resident_bytes

configure_logging("swelling", "INFO")
guard = MemoryGuard(resident_bytes() + ({grows} << 20), lambda: ["job_1"])
guard.start()
hoard = [b"1" * (8 << 20) for _ in range(8)]
time.sleep(0.5 if {grows} > 64 else 60)
guard.stop()
"""


def _run(allowed_megabytes: int) -> "subprocess.CompletedProcess[bytes]":
    script = _SCRIPT.format(grows=allowed_megabytes)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)


def test_a_process_beyond_its_memory_ends_and_names_its_jobs() -> None:
    ended = _run(32)
    assert ended.returncode == 71
    [line] = (ended.stdout + ended.stderr).splitlines()
    said = orjson.loads(line)
    assert (said["event"], said["jobs"]) == ("memory limit exceeded", ["job_1"])
    assert said["used_bytes"] > said["limit_bytes"]


def test_a_process_within_its_memory_goes_on() -> None:
    assert _run(512).returncode == 0


def test_what_is_held_is_counted_in_bytes() -> None:
    before = resident_bytes()
    # Pages of its own: an object might be given memory that was freed before and is still counted.
    with mmap.mmap(-1, 64 << 20) as hoard:
        hoard.write(b"1" * len(hoard))
        assert resident_bytes() - before > len(hoard) // 2
