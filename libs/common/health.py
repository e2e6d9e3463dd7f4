"""Whether a process is alive, whether it can work, and its metrics.

Liveness asks nothing of anyone: restarting a process does not mend its broker. Readiness asks the process's own hard
dependencies, at most once a second however many ask. Workers serve both, with their metrics, from a `HealthServer`;
the gateway serves `Readiness.report()` from its own routes.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, NoReturn

import orjson

from libs.common.logs import get_logger
from libs.common.metrics import LOOP_LAG_SECONDS, render

_CACHE_SECONDS: Final = 1.0
_JSON: Final = "application/json"
_log = get_logger("health")


class NotReadyError(Exception):
    """A check failed; its text is shown as it is, so it may hold no secret."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """How one dependency is; only a required one decides over readiness."""

    ok: bool
    required: bool
    detail: str = ""


class ReadinessReport(dict[str, Dependency]):
    """Every dependency by name, and what follows from them."""

    @property
    def ready(self) -> bool:
        """True when no required dependency fails."""
        return all(dependency.ok for dependency in self.values() if dependency.required)

    def payload(self) -> dict[str, object]:
        """The body of `/readyz`."""
        status = "ready" if self.ready else "not_ready"
        return {"status": status, "dependencies": {name: asdict(dependency) for name, dependency in self.items()}}


@dataclass(frozen=True, slots=True)
class _Check:
    probe: Callable[[], Awaitable[str | None]]
    required: bool
    timeout_seconds: float


class Readiness:
    """The checks of one process, run on one event loop.

    A check passes by returning (None, or a detail to show) and fails by raising. Its result holds for a second.

    Attributes:
        draining: set it first on shutdown; from then on every report says not ready.
    """

    def __init__(self) -> None:
        self.draining = False
        self._checks: dict[str, _Check] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._thread_lock = threading.Lock()
        self._cached = ReadinessReport()
        self._cached_at = float("-inf")

    def add(
        self,
        name: str,
        probe: Callable[[], Awaitable[str | None]],
        *,
        required: bool = True,
        timeout_seconds: float = 1.0,
    ) -> None:
        """Register a check that awaits."""
        self._checks[name] = _Check(probe, required, timeout_seconds)

    def add_blocking(
        self, name: str, probe: Callable[[], str | None], *, required: bool = True, timeout_seconds: float = 1.0
    ) -> None:
        """Register a check that blocks; it runs on a thread of its own, one at a time."""
        self.add(name, _OnThread(probe), required=required, timeout_seconds=timeout_seconds)

    def run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `report_sync` run the checks on this loop, where their clients live."""
        self._loop = loop

    async def report(self) -> ReadinessReport:
        """How every dependency is, as of at most a second ago."""
        async with self._lock:
            if not self._fresh():
                results = await asyncio.gather(*map(_run, self._checks.values()))
                self._cached = ReadinessReport(zip(self._checks, results, strict=True))
                self._cached_at = time.monotonic()
        return self._with_draining(self._cached)

    def report_sync(self) -> ReadinessReport:
        """`report()` for any thread but the loop's own; a loop that does not answer in time makes it not ready."""
        with self._thread_lock:
            if self._fresh():
                return self._with_draining(self._cached)
            if self._loop is None:
                return asyncio.run(self.report())
            return self._report_from(self._loop)

    def _report_from(self, loop: asyncio.AbstractEventLoop) -> ReadinessReport:
        if loop.is_closed():
            return _loop_failure("closed")
        longest_seconds = max((check.timeout_seconds for check in self._checks.values()), default=0.0)
        answer = asyncio.run_coroutine_threadsafe(self.report(), loop)
        try:
            return answer.result(longest_seconds + 1.0)
        except TimeoutError:
            answer.cancel()
            return _loop_failure("does not respond")

    def _fresh(self) -> bool:
        return time.monotonic() - self._cached_at < _CACHE_SECONDS

    def _with_draining(self, report: ReadinessReport) -> ReadinessReport:
        if not self.draining:
            return report
        return ReadinessReport(report, process=Dependency(ok=False, required=True, detail="draining"))


def _loop_failure(detail: str) -> ReadinessReport:
    return ReadinessReport(event_loop=Dependency(ok=False, required=True, detail=detail))


async def _run(check: _Check) -> Dependency:
    try:
        detail = await asyncio.wait_for(check.probe(), check.timeout_seconds)
    except TimeoutError:
        return Dependency(ok=False, required=check.required, detail="timed out")
    except NotReadyError as error:
        return Dependency(ok=False, required=check.required, detail=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises means "not ok"
        # The type alone: a driver's message may hold a URL with its password.
        return Dependency(ok=False, required=check.required, detail=type(error).__name__)
    return Dependency(ok=True, required=check.required, detail=detail or "")


class _OnThread:
    """Makes a blocking probe awaitable; while a hung call lasts no second one is started.

    A daemon thread, not an executor: the interpreter waits for an executor's threads before it exits.
    """

    def __init__(self, probe: Callable[[], str | None]) -> None:
        self._probe = probe
        self._running: Future[str | None] | None = None

    async def __call__(self) -> str | None:
        if self._running is None or self._running.done():
            self._running = Future()
            # Marked as running, it cannot be cancelled by a probe that stops waiting.
            self._running.set_running_or_notify_cancel()
            threading.Thread(target=self._call, args=(self._running,), name="health-check", daemon=True).start()
        return await asyncio.wrap_future(self._running)

    def _call(self, future: Future[str | None]) -> None:
        try:
            future.set_result(self._probe())
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the future
            future.set_exception(error)


class _Handler(BaseHTTPRequestHandler):
    # A client that sends no request line may not keep a thread.
    timeout = 5.0
    server_version = "docent"
    sys_version = ""

    def __init__(self, readiness: Callable[[], Mapping[str, Dependency]], *args: object) -> None:
        self._readiness = readiness
        super().__init__(*args)  # type: ignore[arg-type]  # what socketserver hands to every handler

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._answer(200, _JSON, orjson.dumps({"status": "ok"}))
            case "/readyz":
                report = ReadinessReport(self._readiness())
                self._answer(200 if report.ready else 503, _JSON, orjson.dumps(report.payload()))
            case "/metrics":
                body, content_type = render()
                self._answer(200, content_type, body)
            case _:
                self._answer(404, _JSON, orjson.dumps({"status": "not_found"}))

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Nothing: probes every few seconds are no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - named by socketserver
        _log.warning("health request failed", exc_info=True)


class HealthServer:
    """Serves `/healthz`, `/readyz` and `/metrics` from a daemon thread, whatever the process's event loop does.

    Args:
        port: 0 takes a free one; see `port` after `start()`.
        host: "0.0.0.0" where probes come from outside.
        readiness: asked at every `/readyz`, on a thread of the server: `Readiness.report_sync`.

    Raises:
        OSError: if the port is taken.
    """

    def __init__(
        self, port: int, host: str = "127.0.0.1", *, readiness: Callable[[], Mapping[str, Dependency]]
    ) -> None:
        self._server = _Server((host, port), partial(_Handler, readiness))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self.port: int = self._server.server_address[1]

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


async def watch_loop_lag(interval_seconds: float = 0.5) -> NoReturn:
    """Feed the histogram of how late this event loop wakes a sleeper, until cancelled."""
    while True:
        due = time.perf_counter() + interval_seconds
        await asyncio.sleep(interval_seconds)
        LOOP_LAG_SECONDS.observe(max(0.0, time.perf_counter() - due))
