"""The system under fault: real services as processes, a fault proxy before each dependency, a stub for models."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx
from qdrant_client import AsyncQdrantClient
from redis import Redis
from sqlalchemy import insert

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.local.child import Child, State, Timing
from libs.local.ports import LOOPBACK, free_port, free_ports
from libs.local.postgres import postgres_available, running_postgres
from libs.local.stack import DATABASE_VARIABLE, Program, Step, another, prepare, programs, steps
from libs.local.supervisor import Supervisor
from services.gateway.auth import new_api_key, store_api_key
from tests.faults.client import Client
from tests.faults.proxy import Proxy
from tests.faults.upstream import DIMENSIONS, EMBEDDING_MODEL, Upstream

GATEWAYS: Final = ("gateway", "gateway-2")
# Started a second time, so that there is another one while one of them is down.
_DOUBLED: Final = {"gateway": "GATEWAY_PORT", "chat": "HEALTH_PORT", "ingest": "HEALTH_PORT"}
_STORES: Final = ("broker", "cache", "vectors")
_READY_SECONDS: Final = 120.0
_TIMING: Final = Timing(first_backoff_seconds=0.2, longest_backoff_seconds=0.5)
_UNLIMITED: Final = {"REQUESTS_PER_MINUTE": "1000000", "PARALLEL_STREAMS": "10000"}


class RowFailedError(Exception):
    """A row cannot be judged, or not be run here; says why, and what to install where something is missing."""


@dataclass
class RowResult:
    """What came of one fault.

    Attributes:
        lost: accepted, but never came to its good end.
        duplicates: effects beyond one.
        hung: streams and requests that ended in silence.
        recovery_seconds: from the end of the fault until all was well; None where that means nothing.
        errors_proper: whether every refusal carried our error body and a request id; None where there was none.
        problems: what else was not as the row demands; the row passes when there are none of any kind.
    """

    accepted: int = 0
    lost: int = 0
    duplicates: int = 0
    hung: int = 0
    recovery_seconds: float | None = None
    errors_proper: bool | None = None
    problems: list[str] = field(default_factory=list)
    detail: str = ""

    @property
    def passed(self) -> bool:
        return not (self.lost or self.duplicates or self.hung or self.problems or self.errors_proper is False)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(otherwise)

    def take_errors(self, *clients: Client) -> None:
        """Judge the refusals that clients saw."""
        if any(client.seen.codes or client.seen.bad_bodies for client in clients):
            self.errors_proper = not any(client.seen.bad_bodies for client in clients)
        for client in clients:
            self.problems += client.seen.bad_bodies[:2]


class Harness:
    """A running stack and the handles on its faults. Lives within one event loop, on one thread.

    Args:
        scale: how much of a row's full load to give; 1.0 is the long form.
        extra: further environment variables of services, by program; the name `*` means all, and `{collector}` in a
            value the port of a collector's proxy.
        database_url: where the records are kept; SQLite in the state directory unless given.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        seed: int,
        scale: float,
        extra: Mapping[str, Mapping[str, str]] | None = None,
        database_url: str | None = None,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chooses victims, not secrets
        self.scale = scale
        self.state_dir = state_dir
        ports = free_ports()
        self.ports = ports
        targets = {"broker": ports.broker, "cache": ports.cache, "vectors": ports.vectors, "models": ports.models}
        self.proxies = {name: Proxy(port, free_port()) for name, port in targets.items()}
        # No collector runs: the stub answers 404 to what is sent there, which is one way to be broken.
        self.proxies["collector"] = Proxy(ports.models, free_port())
        self.upstream = Upstream(ports.models)
        self._extra = extra or {}
        self._database_url = database_url or f"sqlite:///{state_dir}/docent.db"
        self.database = Database(self._database_url)
        self._supervisor: Supervisor
        self._supervising: asyncio.Task[None]
        self._clients: list[Client] = []

    # Up and down

    async def up(self) -> None:
        """Start everything; returns when all is ready."""
        prepare(self.state_dir)
        self.upstream.start()
        for proxy in self.proxies.values():
            await proxy.start()
        environ = {**os.environ, **self._model_environment(), DATABASE_VARIABLE: self._database_url}
        described = [each for each in programs(self.state_dir, self.ports, environ) if each.name != "models"]
        described += [another(each, _DOUBLED[each.name], 2) for each in described if each.name in _DOUBLED]
        described = [self._faulty(each) for each in described]
        first_steps = [self._unlimited(step) for step in steps(self.state_dir, self.ports, environ)]
        self._supervisor = Supervisor(self.state_dir, described, first_steps, timing=_TIMING)
        self._supervising = asyncio.create_task(self._supervisor.run())
        await self.until(self._is_up, _READY_SECONDS, "the stack is not ready")
        self.keyring = Keyring.parse((self.state_dir / "keyring.json").read_text())
        self.api_key = (self.state_dir / "api-key").read_text().strip()

    async def down(self) -> None:
        """Stop everything that `up` started."""
        for client in self._clients:
            await client.aclose()
        self._supervisor.shut_down()
        for name in self._supervisor.children:
            self.signal(name, signal.SIGCONT)
        await asyncio.wait([self._supervising])
        for proxy in self.proxies.values():
            await proxy.stop()
        await asyncio.to_thread(self.upstream.stop)
        self.database.close()

    async def heal(self) -> None:
        """End every fault and wait until all is well again."""
        self.upstream.script.clear()
        self.upstream.always = None
        self.upstream.failing.clear()
        for proxy in self.proxies.values():
            await proxy.heal()
        for name, child in self._supervisor.children.items():
            self.signal(name, signal.SIGCONT)
            child.start()
        await self.until(self._is_up, _READY_SECONDS, "a program did not become ready again")
        with self.redis("broker") as broker:
            broker.config_set("maxmemory", 0)

    def _is_up(self) -> bool:
        if self._supervising.done():
            self._supervising.result()
        return self._supervisor.state == State.READY and all(
            child.state == State.READY for child in self._supervisor.children.values()
        )

    def _model_environment(self) -> dict[str, str]:
        url = f"http://{LOOPBACK}:{self.proxies['models'].port}/v1"
        return {
            "OPENAI_BASE_URL": url,
            "EMBEDDING_BASE_URL": url,
            "EMBEDDING_MODEL": EMBEDDING_MODEL,
            "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
            "LOG_LEVEL": "WARNING",
        }

    def _faulty(self, program: Program) -> Program:
        """The program with a fault proxy before each of its dependencies."""
        if program.name in _STORES:
            return program
        overrides = {
            "BROKER_URL": f"redis://{LOOPBACK}:{self.proxies['broker'].port}/0",
            "CACHE_URL": f"redis://{LOOPBACK}:{self.proxies['cache'].port}/0",
            "QDRANT_URL": f"http://{LOOPBACK}:{self.proxies['vectors'].port}",
        }
        chosen = {**self._extra.get("*", {}), **self._extra.get(program.name, {})}
        chosen = {name: value.format(collector=self.proxies["collector"].port) for name, value in chosen.items()}
        return replace(program, environment={**program.environment, **overrides, **chosen})

    def _unlimited(self, step: Step) -> Step:
        return replace(step, environment={**step.environment, **_UNLIMITED})

    # Programs

    def child(self, name: str) -> Child:
        """A program as the supervisor keeps it."""
        return self._supervisor.children[name]

    def signal(self, name: str, number: signal.Signals) -> int | None:
        """Send a signal to a program; its pid, or None where it does not run just now."""
        pid = self.child(name).pid
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return None
        return pid

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when the supervisor has seen it, which soon starts the program again."""
        pid = self.signal(name, signal.SIGKILL)
        await self.until(lambda: self.child(name).pid != pid or pid is None, 10.0, f"{name} did not die")

    async def wait_ready(self, name: str) -> None:
        """Wait until a program is ready again."""
        await self.until(lambda: self.child(name).state == State.READY, _READY_SECONDS, f"{name} is not ready")

    async def restart(self, name: str) -> None:
        """SIGTERM, wait, start: as a rolling update does it."""
        child = self.child(name)
        await child.stop()
        child.start()
        await self.wait_ready(name)

    # Looking on

    def client(self, api_key: str | None = None, timeout_seconds: float = 60.0) -> Client:
        """A new client of both gateways, closed with the harness."""
        urls = [self.child(name).program.url for name in GATEWAYS]
        client = Client(urls, api_key or self.api_key, timeout_seconds)
        self._clients.append(client)
        return client

    def redis(self, name: str) -> "Redis":
        """A Redis server itself, not through its proxy."""
        port = self.ports.broker if name == "broker" else self.ports.cache
        return Redis(host=LOOPBACK, port=port, socket_timeout=5)

    async def metric(self, name: str, counter: str, **labels: str) -> float:
        """The sum of a program's samples of one metric that have these labels."""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            text = (await http.get(f"{self.child(name).program.url}/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith((counter + "{", counter + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(pair in line for pair in wanted))

    async def points(self, vector_store_id: str) -> list[dict[str, Any]]:
        """Payload and vector of every point of a vector store."""
        found: list[dict[str, Any]] = []
        client = AsyncQdrantClient(url=f"http://{LOOPBACK}:{self.ports.vectors}", timeout=10, check_compatibility=False)
        try:
            alias = (await client.get_aliases()).aliases[0].alias_name
            offset = None
            while True:
                page, offset = await client.scroll(alias, limit=1000, offset=offset, with_vectors=True)
                found += [
                    {**(point.payload or {}), "id": str(point.id), "vector": point.vector}
                    for point in page
                    if (point.payload or {}).get("vector_store_id") == vector_store_id
                ]
                if offset is None:
                    return found
        finally:
            await client.close()

    async def tenant(self, name: str, requests_per_minute: int = 1_000_000) -> str:
        """The API key of a new tenant."""
        key_id, key = new_api_key()

        def create(connection: Any) -> None:
            connection.execute(insert(tenants).values(id=name, name=name, created_at=epoch_now()))
            store_api_key(
                connection,
                self.keyring.mac(keys.API_KEYS_PURPOSE),
                tenant_id=name,
                key_id=key_id,
                key=key,
                name=name,
                requests_per_minute=requests_per_minute,
                parallel_streams=1000,
            )

        await self.database.write(create)
        return key

    async def until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> float:
        """Wait until something holds; how long that took.

        Raises:
            RowFailedError: it did not in time.
        """

        async def ask() -> bool:
            return holds()

        return await eventually(ask, seconds, otherwise)


async def eventually(
    holds: Callable[[], Awaitable[bool]], seconds: float, otherwise: str, *, every_seconds: float = 0.05
) -> float:
    """Wait until something holds; how long that took, in seconds.

    Raises:
        RowFailedError: it did not in time.
    """
    began = time.monotonic()
    while not await holds():
        if time.monotonic() - began > seconds:
            raise RowFailedError(f"{otherwise} after {seconds:g} s")
        await asyncio.sleep(every_seconds)
    return time.monotonic() - began


@asynccontextmanager
async def running_harness(
    state_dir: Path,
    *,
    seed: int,
    scale: float,
    extra: Mapping[str, Mapping[str, str]] | None = None,
    postgres: bool = False,
) -> AsyncIterator[Harness]:
    """A harness for the length of a block.

    Args:
        postgres: keep the records in a PostgreSQL server of its own.

    Raises:
        RowFailedError: PostgreSQL cannot be run here.
    """
    if postgres and (reason := postgres_available()):
        raise RowFailedError(f"PostgreSQL is missing: {reason}; apt-get install postgresql")
    with running_postgres(state_dir / "postgres") if postgres else nullcontext() as server:
        harness = Harness(state_dir, seed=seed, scale=scale, extra=extra, database_url=server.url if server else None)
        try:
            await harness.up()
            yield harness
        finally:
            await harness.down()
