"""How storing and searching chunks grows with their number, up to a million.

Run by `make bench-scale` or `python -m benchmarks.scale --up-to 1000000`. Starts the packaged vector server and fills
one collection as the platform does, through `libs.common.rag.vectors`: vectors of 384 dimensions around 512 centres,
40 terms a chunk by Zipf's law, payloads of some 600 bytes. One tenant has half of all, nineteen share the rest. At each
size: chunks stored a second since the last one, hybrid queries of the large and of a small tenant, memory, disk, and
how long the server takes to be ready again after SIGKILL.
"""

import argparse
import asyncio
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from libs.common.rag.chunks import ChunkPayload, StoredChunk
from libs.common.rag.sparse import SparseVector
from libs.common.rag.vectors import ChunkCollection, QueryScope
from libs.local.ports import LOOPBACK, free_port
from libs.local.probes import answers
from libs.local.processes import die_with_parent

DIMENSIONS: Final = 384
SIZES: Final = (1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
QUERIES: Final = 50
_CENTRES: Final = 512
_VOCABULARY: Final = 50_000
_TERMS: Final = 40
_QUERY_TERMS: Final = 6
_SMALL_TENANTS: Final = 19
_PAYLOAD_BYTES: Final = 600
_FILE_CHUNKS: Final = 64
_AT_ONCE: Final = 4
_READY_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured at one size."""

    points: int
    stored_per_second: float
    large_ms: Sequence[float]
    small_ms: Sequence[float]
    memory_bytes: int
    disk_bytes: int
    restart_seconds: float


class Corpus:
    """Chunks that are made up, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        gauss = self._random.gauss
        self._centres = [[gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(_CENTRES)]
        self._noise = [[gauss(0, 0.7) for _ in range(DIMENSIONS)] for _ in range(4096)]
        weights = [1 / rank for rank in range(1, _VOCABULARY + 1)]
        self._cumulative = [sum(weights[:1])]
        for weight in weights[1:]:
            self._cumulative.append(self._cumulative[-1] + weight)

    def vector(self) -> list[float]:
        """A point near one of the centres."""
        centre, noise = self._random.choice(self._centres), self._random.choice(self._noise)
        return [a + b for a, b in zip(centre, noise, strict=True)]

    def terms(self, count: int) -> SparseVector:
        """Terms by Zipf's law."""
        found = self._random.choices(range(_VOCABULARY), cum_weights=self._cumulative, k=count)
        indices = tuple(sorted(set(found)))
        return SparseVector(indices, tuple(1.0 for _ in indices))

    def file(self, number: int) -> list[StoredChunk]:
        """The chunks of one file of 64; every other file is the large tenant's."""
        tenant = "large" if number % 2 == 0 else f"small-{number // 2 % _SMALL_TENANTS}"
        payload = ChunkPayload(self._random.randbytes(_PAYLOAD_BYTES))
        return [
            StoredChunk(
                tenant, f"vs_{tenant}", f"file-{number}", 1, position, self.vector(), self.terms(_TERMS), payload
            )
            for position in range(_FILE_CHUNKS)
        ]


class Server:
    """The packaged vector server as a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._directory = directory
        self.url = f"http://{LOOPBACK}:{self._port}"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "libs.local.vector_server", "--port", str(self._port)]
        command += ["--path", str(self._directory), "--log-level", "warning"]
        return subprocess.Popen(command, preexec_fn=die_with_parent(signal.SIGTERM))  # noqa: PLW1509 - two system calls

    async def ready(self) -> float:
        """Seconds until it answers from now."""
        began = time.perf_counter()
        async with asyncio.timeout(_READY_SECONDS):
            while not await answers(f"{self.url}/readyz"):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.05)
        return time.perf_counter() - began

    async def killed_and_back(self) -> float:
        """Seconds from a start after SIGKILL until it answers."""
        self.process.kill()
        self.process.wait()
        self.process = self._started()
        return await self.ready()

    def memory_bytes(self) -> int:
        """What it holds in memory of its own, without pages of files."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

    def disk_bytes(self) -> int:
        """What its directory takes."""
        return sum(path.stat().st_blocks * 512 for path in self._directory.rglob("*") if path.is_file())


@contextmanager
def running_server() -> Iterator[Server]:
    """A server over a directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="docent-scale-"))
    server = Server(directory)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=60)
        shutil.rmtree(directory, ignore_errors=True)


async def measure(up_to: int) -> list[Row]:
    """Fill a server and measure it at each size."""
    corpus = Corpus(seed=1)
    rows: list[Row] = []
    with running_server() as server, Progress(console=Console(stderr=True)) as progress:
        await server.ready()
        collection = ChunkCollection.connect(server.url, model="scale", dimension=DIMENSIONS, timeout_seconds=120)
        await collection.ensure()
        bar = progress.add_task("chunks", total=up_to)
        stored = 0
        for size in [size for size in SIZES if size <= up_to]:
            began, before = time.perf_counter(), stored
            while stored < size:
                files = [corpus.file(stored // _FILE_CHUNKS + number) for number in range(_AT_ONCE)]
                await asyncio.gather(*map(collection.upsert, files))
                stored += _AT_ONCE * _FILE_CHUNKS
                progress.update(bar, completed=stored)
            pace = (stored - before) / (time.perf_counter() - began)
            restart_seconds = await server.killed_and_back()
            large = await _timed(collection, corpus, "large")
            small = await _timed(collection, corpus, "small-3")
            rows.append(Row(stored, pace, large, small, server.memory_bytes(), server.disk_bytes(), restart_seconds))
            progress.console.print(_cells(rows[-1]))
        await collection.aclose()
    return rows


async def _timed(collection: ChunkCollection, corpus: Corpus, tenant: str) -> list[float]:
    """Milliseconds of each query, the first few left out."""
    scope = QueryScope(tenant, (f"vs_{tenant}",))
    times = []
    for _ in range(QUERIES + 5):
        vector, terms = corpus.vector(), corpus.terms(_QUERY_TERMS)
        began = time.perf_counter()
        await collection.query(scope, vector, terms)
        times.append((time.perf_counter() - began) * 1000)
    return times[5:]


def _cells(row: Row) -> tuple[str, ...]:
    def spread(times: Sequence[float]) -> str:
        return f"{median(times):.1f}, {quantiles(times, n=20)[-1]:.1f}"

    return (
        f"{row.points:,}",
        f"{row.stored_per_second:,.0f}",
        spread(row.large_ms),
        spread(row.small_ms),
        f"{row.memory_bytes / 1e6:,.0f}",
        f"{row.disk_bytes / 1e6:,.0f}",
        f"{row.restart_seconds:.1f}",
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure how storing and searching grow with the number of chunks.")
    parser.add_argument("--up-to", type=int, default=100_000)
    rows = uvloop.run(measure(parser.parse_args().up_to))
    table = Table()
    for column in ("chunks", "stored/s", "query of half of all: p50, p95 ms", "of a fortieth: p50, p95 ms"):
        table.add_column(column, justify="right")
    for column in ("memory, MB", "disk, MB", "ready after SIGKILL, s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
