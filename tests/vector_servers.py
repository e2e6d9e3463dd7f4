"""A packaged vector server for a test module."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libs.local.ports import LOOPBACK, free_port

_ROOT = Path(__file__).parents[1]
_READY_SECONDS = 30


@contextmanager
def running_vector_server(path: Path) -> Iterator[str]:
    """A server over a directory; gives its URL once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "libs.local.vector_server", "--port", str(port), "--path", str(path)]
    with subprocess.Popen([*command, "--log-level", "error"], cwd=_ROOT) as process:
        try:
            url = f"http://{LOOPBACK}:{port}"
            _wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):  # noqa: S310 - a loopback address made here
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    pytest.fail("the vector server did not get ready")
