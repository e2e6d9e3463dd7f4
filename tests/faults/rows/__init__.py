"""The rows of the fault matrix, by number."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults.harness import Harness, RowResult
from tests.faults.rows import (
    clients,
    clocks,
    dependencies,
    keyrings,
    kills,
    messages,
    poison,
    redis,
    shutdowns,
    storage,
    streams,
    submissions,
)


@dataclass(frozen=True)
class Row:
    """A fault and how to bring it about.

    Args:
        extra: environment variables of services that the row needs, by program, `*` for all.
        postgres: whether the records must be in PostgreSQL, whose clock is its own.
    """

    fault: str
    run: Callable[[Harness], Awaitable[RowResult]]
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    postgres: bool = False


_COLLECTOR: Final = {"*": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{collector}"}}

ROWS: Final[dict[int, Row]] = {
    1: Row("gateway killed in an upload, and before a job was enqueued", submissions.gateway_killed),
    2: Row("workers of every kind killed at random", kills.workers_at_random),
    5: Row("broker killed, then emptied, mid-work", redis.broker_killed_and_flushed),
    6: Row("broker frozen", redis.broker_frozen),
    7: Row("broker full", redis.broker_full),
    8: Row("cache flushed, down, frozen, full", redis.cache_broken),
    3: Row("chat worker or gateway killed mid-stream", streams.killed_mid_stream),
    4: Row("conversations killed mid-append", streams.conversations_killed),
    9: Row("Qdrant down, slow, failing", dependencies.qdrant_broken),
    10: Row(
        "model upstream failing in every way",
        dependencies.model_broken,
        {
            "*": {"MODEL_READ_TIMEOUT_SECONDS": "2", "MODEL_CONNECT_TIMEOUT_SECONDS": "2"},
            **dict.fromkeys(("chat", "chat-2"), dependencies.FALLBACKS),
        },
    ),
    11: Row("clients that leave, never read, never finish", clients.bad_clients, clients.BOUNDS),
    12: Row("the same submission fifty times at once, stale writers of a file", submissions.same_at_once),
    13: Row("worker clocks an hour ahead and behind", clocks.clocks_apart, clocks.CLOCKS, postgres=True),
    14: Row("disk of the blobs full", storage.blobs_full),
    15: Row("a tenant floods the queue", submissions.flooding_tenant),
    16: Row("jobs that kill, freeze, swell or hold up their worker", poison.poison_jobs, poison.SETTINGS),
    17: Row("malformed, forged and replayed messages, unknown tasks", messages.forged_messages),
    18: Row("rolling restart of every service", shutdowns.rolling_restart),
    19: Row("SIGTERM, SIGTERM twice, SIGQUIT", shutdowns.stop_signals),
    21: Row("telemetry collector down or hanging", dependencies.collector_broken, _COLLECTOR),
    22: Row("keyring or setting missing or wrong, one item corrupted", keyrings.keyring_broken),
}
