"""A bound on a worker process's memory: beyond it, the process ends before the machine or its neighbours suffer.

Not an address space limit: with that, memory would be refused to whoever asks next, a heartbeat or an innocent job,
and be charged to it. A process that ends leaves its jobs as suspects; the one that swells is found by running alone.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from libs.common.logs import get_logger

_log = get_logger(__name__)
_STATM: Final = Path("/proc/self/statm")
_LOOK_SECONDS: Final = 0.1
_EXIT_SWOLLEN: Final = 71  # EX_OSERR of sysexits.h


class MemoryGuard:
    """Ends this process when it holds more memory than it may. Linux alone; elsewhere it watches nothing.

    Args:
        limit_bytes: of resident memory, children not counted; 0: no limit.
        held_jobs: the ids of the jobs under way, for the log.
    """

    def __init__(self, limit_bytes: int, held_jobs: Callable[[], Sequence[str]]) -> None:
        self._limit_bytes = limit_bytes
        self._held_jobs = held_jobs
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        if self._limit_bytes and _STATM.exists():
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            if (used_bytes := resident_bytes()) > self._limit_bytes:
                jobs = list(self._held_jobs())[:20]
                _log.error("memory limit exceeded", used_bytes=used_bytes, limit_bytes=self._limit_bytes, jobs=jobs)
                os._exit(_EXIT_SWOLLEN)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
