"""Every Prometheus metric, defined once.

Labels hold only what the code itself enumerates: routes, queues, tasks, stages, codes, configured models. Never the id
of a tenant, user, file or job: each new value is a new time series for ever, and metrics are read by more people than
the data is.
"""

import time
from contextlib import AbstractContextManager
from importlib.metadata import version
from types import TracebackType
from typing import Final

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from libs.common.telemetry import span

# Our own registry: a library that registers metrics in the default one cannot add labels to ours.
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

# From a cache hit (1 ms) to the interactive deadline (120 s).
_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# From one pipelined write (30 us) to a broker that does not answer.
_PUBLISH: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5)
# From an empty queue to a backlog worked off over an hour.
_WAIT: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

# --- HTTP -------------------------------------------------------------------------------------------------------------

# `route` is the template (/v1/files/{file_id}), or "unmatched"; `method` is "other" if not a usual one.
HTTP_REQUESTS: Final = Counter(
    "docent_http_requests", "Requests answered", ["route", "method", "status"], registry=REGISTRY
)
# Until the last byte of the answer was handed over; for a stream that is the whole stream.
HTTP_SECONDS: Final = Histogram(
    "docent_http_request_seconds", "Time to answer", ["route", "method"], buckets=_LATENCY, registry=REGISTRY
)
# Streams now open between a client and this gateway process.
STREAMS_IN_FLIGHT: Final = Gauge("docent_streams_in_flight", "Open SSE streams", registry=REGISTRY)
# Connections that the gateway closed. `reason`: idle, no_request, crowded, unread_answer, or the error's code.
CLOSED_CONNECTIONS: Final = Counter("docent_closed_connections", "Connections closed", ["reason"], registry=REGISTRY)
# Every error shown to a client, by ErrorCode value; also the errors inside streams, which HTTP_REQUESTS counts as 200.
ERRORS: Final = Counter("docent_errors", "Errors shown to clients", ["code"], registry=REGISTRY)
# A principal asked for another tenant's object (and got the 404 of a missing one).
TENANT_DENIALS: Final = Counter("docent_tenant_denials", "Attempts on foreign objects", registry=REGISTRY)

# --- Queues -----------------------------------------------------------------------------------------------------------

# The gateway's or dispatcher's call that admits a message and pushes it.
PUBLISH_SECONDS: Final = Histogram(
    "docent_publish_seconds", "Time to push a message", ["queue"], buckets=_PUBLISH, registry=REGISTRY
)
# From push to the worker's claim, by the broker's clock.
QUEUE_WAIT_SECONDS: Final = Histogram(
    "docent_queue_wait_seconds", "Time a message waited", ["queue"], buckets=_WAIT, registry=REGISTRY
)
# A handler from claim to end; `outcome` is ok, error, cancelled or expired.
HANDLER_SECONDS: Final = Histogram(
    "docent_handler_seconds", "Time in a handler", ["task", "outcome"], buckets=_LATENCY, registry=REGISTRY
)
# Messages in the broker's list, which are not all that waits: see BACKLOG_SECONDS.
QUEUE_DEPTH: Final = Gauge("docent_queue_depth", "Messages in a queue", ["queue"], registry=REGISTRY)
# Queued and running work over the measured pace of one worker: what autoscaling acts on.
BACKLOG_SECONDS: Final = Gauge("docent_backlog_seconds", "Work ahead, in seconds", ["queue"], registry=REGISTRY)
# Messages a worker would not run: unsealable, forged, replayed, unknown task, malformed.
REFUSED_MESSAGES: Final = Counter(
    "docent_refused_messages", "Messages refused by a worker", ["reason"], registry=REGISTRY
)
# Messages pushed again because their first copy was lost with a worker or the broker.
REPUSHED_MESSAGES: Final = Counter("docent_repushed_messages", "Messages pushed again", ["queue"], registry=REGISTRY)

# --- Jobs -------------------------------------------------------------------------------------------------------------

# Rows of the ledger, set by whoever is reconciler at the time.
JOBS: Final = Gauge("docent_jobs", "Jobs in the ledger", ["kind", "state"], registry=REGISTRY)
# Every attempt that began; over the jobs that finished, this is the redelivery rate.
JOB_ATTEMPTS: Final = Counter("docent_job_attempts", "Attempts at jobs", ["kind"], registry=REGISTRY)
# Jobs given up after their last attempt; each waits for the requeue verb.
DEAD_LETTERS: Final = Counter("docent_dead_letters", "Jobs given up", ["kind"], registry=REGISTRY)
# Time since the least recently renewed lease of a running job was renewed; above the lease's length a worker is gone.
LEASE_AGE_SECONDS: Final = Gauge("docent_lease_age_seconds", "Age of the oldest lease", ["kind"], registry=REGISTRY)

# --- Answers ----------------------------------------------------------------------------------------------------------

# Parts of the work, by `stage()`: embed, retrieve, complete, parse, chunk, store...
STAGE_SECONDS: Final = Histogram(
    "docent_stage_seconds", "Time in a stage of the work", ["stage"], buckets=_LATENCY, registry=REGISTRY
)
# From the gateway's receipt of a request to the first token it sends.
FIRST_TOKEN_SECONDS: Final = Histogram(
    "docent_first_token_seconds", "Time to the first token", buckets=_LATENCY, registry=REGISTRY
)
# Tokens as the model counted them; `kind` is input or output, `model` a configured one.
TOKENS: Final = Counter("docent_tokens", "Tokens used", ["kind", "model"], registry=REGISTRY)
# Answers by another model than the one asked for, because that one was away; `model` is the one that answered.
RERANK_FAILURES: Final = Counter("docent_rerank_failures", "Searches not reranked", registry=REGISTRY)
FALLBACK_ANSWERS: Final = Counter("docent_fallback_answers", "Answers by another model", ["model"], registry=REGISTRY)
# Look-ups by layer: answer and embedding on the cache Redis, the same with `_local` in the process's memory before it,
# and `alike`, the semantic cache; `result` is hit or miss.
CACHE_LOOKUPS: Final = Counter("docent_cache_lookups", "Cache look-ups", ["layer", "result"], registry=REGISTRY)

# --- Process and surroundings -----------------------------------------------------------------------------------------

# How late the event loop wakes a sleeper: all else in the process waits as long.
LOOP_LAG_SECONDS: Final = Histogram(
    "docent_event_loop_lag_seconds", "Lateness of the event loop", buckets=_LAG, registry=REGISTRY
)
# 0 closed (calls pass), 1 half open (one call tries), 2 open (calls fail at once).
BREAKER_STATE: Final = Gauge("docent_breaker_state", "State of a circuit breaker", ["dependency"], registry=REGISTRY)
# Calls made a second time; the budget keeps them below a tenth of the first ones.
RETRIES: Final = Counter("docent_retries", "Calls to dependencies tried again", ["dependency"], registry=REGISTRY)
# Things that could not be unsealed: a wrong or missing key, or tampering. `purpose` is the sealer's.
SEAL_FAILURES: Final = Counter("docent_seal_failures", "Unsealings refused", ["purpose"], registry=REGISTRY)
# Ids of the key that seals, and of all that open; a rotation waits until every process shows the new one.
KEYRING: Final = Info("docent_keyring", "Keys by id", registry=REGISTRY)
# This process's clock minus the broker's.
CLOCK_OFFSET_SECONDS: Final = Gauge("docent_clock_offset_seconds", "Clock offset to the broker", registry=REGISTRY)
# Constant 1, whose labels say what runs.
BUILD: Final = Info("docent_build", "What is running", registry=REGISTRY)


def set_build_info(service_name: str) -> None:
    """Say in the metrics which service and version this process is; once, at start."""
    BUILD.info({"service": service_name, "version": version("docent")})


def render() -> tuple[bytes, str]:
    """The body and content type of an answer to `GET /metrics`."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


class stage(AbstractContextManager[Span]):  # noqa: N801 - read as a verb, like contextlib.suppress
    """Times a block, `await`s included, as a stage of the work: in the histogram, and as a span of that name.

    Args:
        name: one of few, written in code.
        attributes: of the span alone.
    """

    __slots__ = ("_name", "_span", "_started")

    def __init__(self, name: str, **attributes: AttributeValue) -> None:
        self._name = name
        self._span = span(name, **attributes)

    def __enter__(self) -> Span:
        self._started = time.perf_counter()
        return self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        STAGE_SECONDS.labels(self._name).observe(time.perf_counter() - self._started)
        self._span.__exit__(kind, error, tb)
