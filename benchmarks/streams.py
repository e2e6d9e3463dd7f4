"""What a person who reads a stream feels: how much later the first token comes, and whether many streams flow evenly.

Run by `python -m benchmarks.streams`. Starts a stack over a stub of a model server. The first token is measured by
turns, one request straight to the stub and one through the gateway; then many streams run side by side.
"""

import argparse
import asyncio
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import aiohttp
import orjson
import uvloop

from benchmarks.processes import cpu_seconds
from benchmarks.stub_upstream import running_stub, stack_environment
from libs.local.running import Stack, running_stack
from tests.faults.upstream import CHAT_MODEL

SERVICES = ("gateway", "chat")


def body(tokens: int, pause_seconds: float) -> bytes:
    """A streamed question that the stub answers with so many tokens, so many seconds apart."""
    text = f"Hello [[tokens={tokens} pause={pause_seconds}]]"
    return orjson.dumps({"model": CHAT_MODEL, "stream": True, "messages": [{"role": "user", "content": text}]})


async def arrivals(http: aiohttp.ClientSession, url: str, data: bytes) -> list[float]:
    """Seconds from the request until each token."""
    began = time.perf_counter()
    times: list[float] = []
    async with http.post(f"{url}/chat/completions", data=data) as response:
        response.raise_for_status()
        times.extend([time.perf_counter() - began async for line in response.content if b'"content":"w' in line])
    return times


async def first_token(http: aiohttp.ClientSession, direct: str, through: str, rounds: int) -> None:
    """Interleaved: one direct, one through the platform, and again."""
    data = body(3, 0.0)
    for _ in range(20):
        await arrivals(http, through, data)
    seconds: dict[str, list[float]] = {direct: [], through: []}
    for _ in range(rounds):
        for url, taken in seconds.items():
            taken.append((await arrivals(http, url, data))[0])
    ours, theirs = median(seconds[through]) * 1000, median(seconds[direct]) * 1000
    print(f"first token, p50: upstream {theirs:.2f} ms, through us {ours:.2f} ms, later by {ours - theirs:.2f} ms")


async def many(http: aiohttp.ClientSession, stack: Stack, count: int, seconds: float, per_second: float) -> None:
    """So many streams at once: the longest gap between two tokens of one stream, errors, and CPU."""
    pids = {name: stack.pid(name) for name in SERVICES}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    tokens = round(seconds * per_second)
    data = body(tokens, 1 / per_second)
    began = time.perf_counter()
    outcomes = await asyncio.gather(
        *(arrivals(http, f"{stack.url}/v1", data) for _ in range(count)), return_exceptions=True
    )
    took = time.perf_counter() - began
    whole = [times for times in outcomes if not isinstance(times, BaseException) and len(times) == tokens]
    gaps = sorted(later - earlier for times in whole for earlier, later in pairwise(times))
    cpu = ", ".join(f"{name} {(cpu_seconds(pid) - before[name]) / took * 100:.0f} %" for name, pid in pids.items())
    print(
        f"{count} streams of {per_second:g} tokens/s for {took:.0f} s: {count - len(whole)} broken or short, "
        f"gap p99 {gaps[int(len(gaps) * 0.99)]:.2f} s, longest {gaps[-1]:.2f} s, "
        f"first token at the latest after {max(times[0] for times in whole):.2f} s; CPU: {cpu}"
    )


async def run(stack: Stack, direct: str, options: argparse.Namespace) -> None:
    """Both measurements."""
    headers = {"authorization": f"Bearer {stack.api_key}", "content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
        await first_token(http, direct, f"{stack.url}/v1", options.rounds)
        await many(http, stack, options.streams, options.seconds, options.per_second)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure streams.")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--per-second", type=float, default=5.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stub() as base_url,
        running_stack(Path(directory), environ=stack_environment(base_url)) as stack,
    ):
        print(f"{os.cpu_count()} cores")
        uvloop.run(run(stack, base_url, options))


if __name__ == "__main__":
    main()
