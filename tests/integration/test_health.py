"""Probes over HTTP and readiness over threads and event loops."""

import asyncio
import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from typing import Any

import pytest

from libs.common.health import Dependency, HealthServer, Readiness, ReadinessReport, watch_loop_lag
from libs.common.metrics import REGISTRY

Serve = Callable[[Callable[[], Mapping[str, Dependency]]], str]


@pytest.fixture
def serve() -> Generator[Serve]:
    with contextlib.ExitStack() as started:

        def start(readiness: Callable[[], Mapping[str, Dependency]]) -> str:
            server = HealthServer(0, readiness=readiness)
            server.start()
            started.callback(server.stop)
            return f"http://127.0.0.1:{server.port}"

        yield start


@pytest.fixture
def loop() -> Generator[asyncio.AbstractEventLoop]:
    """An event loop running on a thread, as a worker has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def _get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def _ready(base: str) -> tuple[int, Any]:
    status, content_type, body = _get(f"{base}/readyz")
    assert content_type == "application/json"
    return status, json.loads(body)


async def _fine() -> str:
    return "redis 7.0.15"


async def _broken() -> None:
    raise ConnectionError("redis://user:p4ss@broker refused")


async def _hangs() -> None:
    await asyncio.sleep(60)


def test_alive_and_metrics_need_no_dependency(serve: Serve) -> None:
    base = serve(lambda: {"broker": Dependency(ok=False, required=True)})
    assert _get(f"{base}/healthz") == (200, "application/json", b'{"status":"ok"}')
    status, content_type, body = _get(f"{base}/metrics?x=1")
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert b"docent_event_loop_lag_seconds" in body
    assert _get(f"{base}/v1/files")[0] == 404


def test_only_required_dependencies_decide(serve: Serve) -> None:
    state = {"broker": Dependency(ok=True, required=True), "cache": Dependency(ok=False, required=False, detail="down")}
    base = serve(lambda: state)
    assert _ready(base) == (
        200,
        {
            "status": "ready",
            "dependencies": {
                "broker": {"ok": True, "required": True, "detail": ""},
                "cache": {"ok": False, "required": False, "detail": "down"},
            },
        },
    )
    state["broker"] = Dependency(ok=False, required=True)
    status, body = _ready(base)
    assert (status, body["status"]) == (503, "not_ready")


def test_server_survives_a_readiness_that_raises(serve: Serve) -> None:
    def raises() -> Mapping[str, Dependency]:
        raise RuntimeError("no loop yet")

    base = serve(raises)
    with pytest.raises(OSError, match=r"without response|reset"):
        _ready(base)
    assert _get(f"{base}/healthz")[0] == 200


def test_server_survives_clients_that_say_nothing_or_nonsense(serve: Serve) -> None:
    base = serve(dict)
    port = int(base.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as noisy:
        noisy.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert _get(f"{base}/healthz")[0] == 200


def test_taken_port_is_an_error_and_a_stopped_server_frees_it() -> None:
    server = HealthServer(0, readiness=dict)
    with pytest.raises(OSError, match="in use"):
        HealthServer(server.port, readiness=dict)
    server.stop()
    HealthServer(server.port, readiness=dict).stop()


async def test_report_runs_checks_of_both_kinds() -> None:
    readiness = Readiness()
    readiness.add("broker", _fine)
    readiness.add("cache", _broken, required=False)
    readiness.add_blocking("database", lambda: "sqlite")
    report = await readiness.report()
    assert report.ready
    assert report == {
        "broker": Dependency(ok=True, required=True, detail="redis 7.0.15"),
        "cache": Dependency(ok=False, required=False, detail="ConnectionError"),
        "database": Dependency(ok=True, required=True, detail="sqlite"),
    }


async def test_results_are_held_for_a_second_and_shared_by_those_who_ask_at_once() -> None:
    calls = []

    async def counted() -> None:
        calls.append(1)
        await asyncio.sleep(0.01)

    readiness = Readiness()
    readiness.add("broker", counted)
    await asyncio.gather(*(readiness.report() for _ in range(20)))
    assert len(calls) == 1
    readiness._cached_at -= 2
    await readiness.report()
    assert len(calls) == 2


async def test_hanging_checks_time_out_and_hung_threads_do_not_pile_up() -> None:
    release = threading.Event()
    calls = []

    def blocks() -> str:
        calls.append(1)
        release.wait(30)
        return "late"

    readiness = Readiness()
    readiness.add("broker", _hangs, timeout_seconds=0.05)
    readiness.add_blocking("disk", blocks, timeout_seconds=0.05)
    for _ in range(3):
        report = await readiness.report()
        assert report == dict.fromkeys(["broker", "disk"], Dependency(ok=False, required=True, detail="timed out"))
        readiness._cached_at -= 2
    assert len(calls) == 1
    release.set()
    while not (report := await readiness.report())["disk"].ok:
        readiness._cached_at -= 2
    assert report["disk"].detail == "late"


async def test_draining_shows_at_once_in_spite_of_the_cache() -> None:
    readiness = Readiness()
    readiness.add("broker", _fine)
    assert (await readiness.report()).ready
    readiness.draining = True
    report = await readiness.report()
    assert not report.ready
    assert report["process"] == Dependency(ok=False, required=True, detail="draining")


def test_report_sync_runs_checks_on_the_loop_their_clients_live_on(
    loop: asyncio.AbstractEventLoop, serve: Serve
) -> None:
    loops = []

    async def remembers() -> None:
        loops.append(asyncio.get_running_loop())

    readiness = Readiness()
    readiness.add("broker", remembers)
    readiness.run_on(loop)
    assert _ready(serve(readiness.report_sync))[0] == 200
    assert loops == [loop]


def test_report_sync_without_a_loop_brings_its_own(serve: Serve) -> None:
    readiness = Readiness()
    readiness.add("broker", _fine)
    readiness.add_blocking("database", lambda: None)
    base = serve(readiness.report_sync)
    for _ in range(2):
        assert _ready(base)[0] == 200
        readiness._cached_at -= 2
    readiness.draining = True
    assert _ready(base)[0] == 503


def test_blocked_or_closed_loop_is_not_ready(loop: asyncio.AbstractEventLoop) -> None:
    readiness = Readiness()
    readiness.run_on(loop)
    release = threading.Event()
    loop.call_soon_threadsafe(release.wait, 30)
    blocked = readiness.report_sync()
    release.set()
    assert blocked == ReadinessReport(event_loop=Dependency(ok=False, required=True, detail="does not respond"))
    closed = asyncio.new_event_loop()
    closed.close()
    readiness = Readiness()
    readiness.run_on(closed)
    assert readiness.report_sync()["event_loop"].detail == "closed"


async def test_loop_lag_is_watched_until_cancelled() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("docent_event_loop_lag_seconds_count") or 0.0

    before = count()
    watch = asyncio.create_task(watch_loop_lag(0.001))
    async with asyncio.timeout(10):
        while count() < before + 3:  # noqa: ASYNC110 - the histogram has no event to wait for
            await asyncio.sleep(0.001)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
