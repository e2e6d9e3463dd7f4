"""How long files take from the first byte of their upload until the last one is found by a search.

Run by `make bench-ingest` or `python -m benchmarks.ingest`. For every run a fresh stack over a stub of an embedding
model takes 1,000 text, Markdown and HTML files of 5 KB, then 50 PDFs of some 60 chunks. Where the time went is read
from the services' metrics.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import orjson
import uvloop
from rich.console import Console

from benchmarks.documents import SampleFile, pdf_files, text_files
from benchmarks.ingest_report import Outcome, Usage, print_runs, print_stages
from benchmarks.stub_upstream import running_stub, stack_environment
from libs.local.running import Stack, running_stack
from libs.local.stack import INGEST_PROCESSES_VARIABLE

DIMENSIONS: Final = 384
_POLL_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 300.0


class Client:
    """A client of one vector store that uploads over so many connections.

    A batch is attached as soon as its own files are uploaded: that request waits for none of the later uploads.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, connections: int, batch_files: int) -> None:
        self._http = http
        self._url = url
        self._slots = asyncio.Semaphore(connections)
        self._batch_files = batch_files

    async def make_searchable(self, files: Sequence[SampleFile]) -> None:
        """Upload files and attach them batch by batch; returns when the last one is found."""
        store = await self._post("/vector_stores", {"name": "benchmark"})
        path = f"/vector_stores/{store['id']}"
        starts = range(0, len(files), self._batch_files)
        batches = await asyncio.gather(
            *(self._attach(path, files[start : start + self._batch_files]) for start in starts)
        )
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (counts := await self._counts(path))["completed"] < len(files):
                if counts["failed"] + counts["cancelled"]:
                    raise RuntimeError(f"files failed: {counts}")
                await asyncio.sleep(_POLL_SECONDS)
            # The stub's vectors mean nothing.
            by_words = {"hybrid_search": {"embedding_weight": 0.0, "text_weight": 1.0}}
            found = await self._post(f"{path}/search", {"query": files[-1].mark, "ranking_options": by_words})
        if batches[-1][-1] not in {hit["file_id"] for hit in found["data"]}:
            raise RuntimeError("the last file is not found")

    async def _attach(self, path: str, files: Sequence[SampleFile]) -> list[str]:
        file_ids = await asyncio.gather(*map(self._upload, files))
        await self._post(f"{path}/file_batches", {"file_ids": file_ids})
        return file_ids

    async def _upload(self, file: SampleFile) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "assistants")
        form.add_field("file", file.content, filename=file.name)
        async with self._slots, self._http.post(f"{self._url}/files", data=form) as response:
            response.raise_for_status()
            file_id: str = orjson.loads(await response.read())["id"]
            return file_id

    async def _counts(self, path: str) -> dict[str, int]:
        async with self._http.get(self._url + path) as response:
            response.raise_for_status()
            counts: dict[str, int] = orjson.loads(await response.read())["file_counts"]
            return counts

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._http.post(self._url + path, json=body) as response:
            response.raise_for_status()
            reply: dict[str, Any] = orjson.loads(await response.read())
            return reply


async def measure(stack: Stack, name: str, files: Sequence[SampleFile], options: argparse.Namespace) -> Outcome:
    """Make files searchable and see what that took."""
    headers = {"authorization": f"Bearer {stack.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        chunks_before = await _chunks(http, stack)
        client = Client(http, f"{stack.url}/v1", options.connections, options.batch_files)
        usage = Usage(stack)
        began = time.perf_counter()
        await client.make_searchable(files)
        seconds = time.perf_counter() - began
        usage.end()
        return Outcome(name, len(files), await _chunks(http, stack) - chunks_before, seconds, usage)


async def _chunks(http: aiohttp.ClientSession, stack: Stack) -> int:
    """All chunks in the vector database."""
    url = f"{stack.program('vectors').url}/collections"
    async with http.get(url) as response:
        names = [each["name"] for each in orjson.loads(await response.read())["result"]["collections"]]
    count = 0
    for name in names:
        async with http.get(f"{url}/{name}") as response:
            count += orjson.loads(await response.read())["result"]["points_count"]
    return count


def _environment(base_url: str, options: argparse.Namespace) -> dict[str, str]:
    return stack_environment(base_url, DIMENSIONS) | {INGEST_PROCESSES_VARIABLE: str(options.ingest_processes)}


def run_once(options: argparse.Namespace, number: int) -> list[Outcome]:
    """Both loads on a fresh stack."""
    loads = {
        "texts": list(text_files(options.texts, number)),
        "PDFs": list(pdf_files(options.pdfs, number)),
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stub(DIMENSIONS) as base_url,
        running_stack(Path(directory), environ=_environment(base_url, options)) as stack,
    ):
        return [uvloop.run(measure(stack, name, files, options)) for name, files in loads.items() if files]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure how fast files become searchable.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--pdfs", type=int, default=50)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--batch-files", type=int, default=100)
    parser.add_argument("--ingest-processes", type=int, default=os.cpu_count(), help="one for each core by default")
    options = parser.parse_args()
    console = Console(width=110)
    console.print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}")
    runs = [run_once(options, number) for number in range(options.runs)]
    for outcomes in zip(*runs, strict=True):
        print_runs(console, outcomes)
        middle = median(outcome.seconds for outcome in outcomes)
        # The run in the middle, or of an even number the slower of the two.
        print_stages(console, min((each for each in outcomes if each.seconds >= middle), key=lambda each: each.seconds))


if __name__ == "__main__":
    main()
