"""What an answer costs that was given before: found by its exact question, with the versions of its documents checked.

Run by `python -m benchmarks.cached_answer`. Starts a stack over a stub of a model server with one document, asks once,
then asks the same again and again over one connection: by httpx, and by a bare socket, which shows our share.
"""

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx
import orjson
from openai import OpenAI

from benchmarks.processes import cpu_seconds
from benchmarks.stub_upstream import running_stub, stack_environment
from libs.local.running import Stack, running_stack
from tests.faults.upstream import CHAT_MODEL

_PROGRAMS = ("broker", "cache", "vectors", "chat", "ingest", "gateway")
_TEXT = b"The harbour of Lindholm has four cranes. The fourth one was built in 1998.\n" * 20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure cached answers.")
    parser.add_argument("--rounds", type=int, default=1000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stub() as base_url,
        running_stack(Path(directory), only=_PROGRAMS, environ=stack_environment(base_url)) as stack,
    ):
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        store_id = make_store(stack)
        measure(stack, "without documents", question(), options.rounds)
        measure(stack, "over a vector store", question(vector_store_ids=[store_id]), options.rounds)
        measure(stack, "the same, streamed", question(vector_store_ids=[store_id], stream=True), options.rounds)


def make_store(stack: Stack) -> str:
    """A vector store with one document."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key) as client:
        store = client.vector_stores.create(name="benchmark")
        client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("harbour.txt", _TEXT), poll_interval_ms=100
        )
    return store.id


def question(**changes: object) -> bytes:
    """The body of a question that may be cached."""
    content = "How many cranes has the harbour? [[tokens=60]]"
    body = {"model": CHAT_MODEL, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    return orjson.dumps(body | changes)


def measure(stack: Stack, name: str, data: bytes, rounds: int) -> None:
    """Ask until it is cached, then time hits; prints milliseconds, and the gateway's CPU."""
    headers = {"authorization": f"Bearer {stack.api_key}", "content-type": "application/json"}
    url = f"{stack.url}/v1/chat/completions"
    with httpx.Client(headers=headers, trust_env=False) as client:
        while client.post(url, content=data).raise_for_status().headers["x-docent-cache"] != "hit":
            time.sleep(0.05)
        pid = stack.pid("gateway")
        timed(lambda: client.post(url, content=data), rounds // 10)
        before = cpu_seconds(pid)
        by_httpx = timed(lambda: client.post(url, content=data), rounds)
        cpu_ms = (cpu_seconds(pid) - before) / rounds * 1000
    by_socket = timed(bare_request(stack, data), rounds)
    print(f"{name}: httpx {shown(by_httpx)}; socket {shown(by_socket)}; CPU of the gateway {cpu_ms:.2f} ms")


def bare_request(stack: Stack, data: bytes) -> Callable[[], None]:
    """One request over one connection, by the least that a client can do."""
    address = urlsplit(stack.url)
    connection = socket.create_connection((address.hostname, address.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {stack.api_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    request = head.encode() + data

    def ask() -> None:
        connection.sendall(request)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += connection.recv(65536)
        lines = received[:end].lower().split(b"\r\n")
        if b"x-docent-cache: hit" not in lines:
            raise RuntimeError("no hit")
        length = int(next(line for line in lines if line.startswith(b"content-length:"))[15:])
        missing = end + 4 + length - len(received)
        while missing > 0:
            missing -= len(connection.recv(65536))

    return ask


def timed(ask: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each round, sorted."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken)


def shown(milliseconds: list[float]) -> str:
    """The figures that count."""
    tenth, last = (milliseconds[int(len(milliseconds) * part)] for part in (0.1, 0.99))
    return f"p10 {tenth:.2f} ms, p50 {median(milliseconds):.2f} ms, p99 {last:.2f} ms"


if __name__ == "__main__":
    main()
