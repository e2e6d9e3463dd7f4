"""The model server of the benchmarks: the tests' stub as a process of its own, so that its CPU is nobody else's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from libs.local.ports import LOOPBACK, free_port
from libs.local.processes import die_with_parent
from tests.faults.upstream import DIMENSIONS, EMBEDDING_MODEL, Upstream


@contextmanager
def running_stub(dimensions: int = DIMENSIONS) -> Iterator[str]:
    """A stub in a process of its own; gives its base URL, `/v1` included."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.stub_upstream", str(port), str(dimensions)]
    process = subprocess.Popen(command, preexec_fn=die_with_parent(signal.SIGTERM))  # noqa: PLW1509 - two system calls
    try:
        _wait_for(f"http://{LOOPBACK}:{port}/v1/models")
        yield f"http://{LOOPBACK}:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def stack_environment(base_url: str, dimensions: int = DIMENSIONS) -> dict[str, str]:
    """The environment of a stack whose models are the stub, with nothing that holds a benchmark back."""
    return {
        **os.environ,
        "OPENAI_BASE_URL": base_url,
        "EMBEDDING_BASE_URL": base_url,
        "EMBEDDING_MODEL": EMBEDDING_MODEL,
        "EMBEDDING_DIMENSIONS": str(dimensions),
        "CHAT_MODELS": "*",
        "LOG_LEVEL": "WARNING",
        "REQUESTS_PER_MINUTE": "10000000",
        "PARALLEL_STREAMS": "10000",
    }


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the stub did not start")


def main() -> None:
    """Serve until told to stop."""
    upstream = Upstream(int(sys.argv[1]), dimensions=int(sys.argv[2]))
    upstream.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    upstream.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
