"""Every key, channel and sealing purpose on Redis, defined once.

Broker Redis
    `<queue>`                 list    Celery's queue (kombu's own name for it)
    `workers:<queue>`         zset    live consumers: member worker name, score when it counts as gone
    `draining:<queue>`        zset    the same of consumers that only finish what they have
    `places:<worker>`         string  how many jobs this worker runs at once
    `claim:<task>:<id>:<n>`   string  the worker that took attempt n of a request
    `cancel:<id>`             string  the request is not wanted any more
    `rate:<tenant>:<key>`     string  GCRA's theoretical arrival time, ms
    `streams:<tenant>:<key>`  zset    open streams: member request id, score when it counts as gone
    `events:<id>`             stream  events of a stored response, entry id = sequence number + 1
    `answering:<tenant>:<id>` string  a live worker makes these events; expires soon after its death
    `replies:<process>`       channel events for the requests that one gateway process waits for
    `cancels`                 channel ids of requests to stop
Cache Redis
    `embedding:<tenant>:…`    string  sealed vectors by model and keyed hash of the text
    `pace:<model>:<unit>`     string  until when a model's requests or tokens are spent, Unix seconds; no tenant's own
    `answer:<tenant>:…`       string  sealed answers by keyed hash of the whole request
    `alike:<tenant>:…`        list    sealed vectors of questions that differ in wording alone, with their answers' keys
"""

from typing import Final

from libs.common.contracts.base import Queue

CANCELS: Final = "cancels"


def workers(queue: str) -> str:
    """Live consumers of a queue."""
    return f"workers:{queue}"


def draining(queue: str) -> str:
    """Workers that take nothing more from a queue, but still finish what they took."""
    return f"draining:{queue}"


def places(worker: str) -> str:
    """How many jobs a worker runs at once."""
    return f"places:{worker}"


def claim(task: str, request_id: str, attempt: int) -> str:
    """Who took this attempt."""
    return f"claim:{task}:{request_id}:{attempt}"


def cancel(request_id: str) -> str:
    """Set when a request is to be stopped."""
    return f"cancel:{request_id}"


def rate(tenant_id: str, key_id: str) -> str:
    """The rate limiter's state of one API key."""
    return f"rate:{tenant_id}:{key_id}"


def streams(tenant_id: str, key_id: str) -> str:
    """The open streams of one API key."""
    return f"streams:{tenant_id}:{key_id}"


def events(tenant_id: str, request_id: str) -> str:
    """The resumable events of a stored response."""
    return f"events:{tenant_id}:{request_id}"


def answering(tenant_id: str, request_id: str) -> str:
    """Set while a live worker makes the events of a request."""
    return f"answering:{tenant_id}:{request_id}"


def replies(process_id: str) -> str:
    """The reply channel of one gateway process."""
    return f"replies:{process_id}"


def embedding(tenant_id: str, model: str, digest: str) -> str:
    """The vector of a text."""
    return f"embedding:{tenant_id}:{model}:{digest}"


def embedding_pace(model: str, unit: str) -> str:
    """How much of what an embedding model may be sent is spent, by all tenants together."""
    return f"pace:{model}:{unit}"


def answer(tenant_id: str, digest: str) -> str:
    """A cached answer."""
    return f"answer:{tenant_id}:{digest}"


def alike(tenant_id: str, digest: str) -> str:
    """The questions that may share answers."""
    return f"alike:{tenant_id}:{digest}"


def queue_purpose(queue: str) -> str:
    """Sealing purpose of a queue's messages: held by its senders and its consumer."""
    return f"queue.{queue}"


REPLIES_PURPOSE: Final = "replies"
CACHE_PURPOSE: Final = "cache"
FILES_PURPOSE: Final = "files"
CHUNKS_PURPOSE: Final = "chunks"
CONVERSATIONS_PURPOSE: Final = "conversations"
COMPACTIONS_PURPOSE: Final = "compactions"
BATCHES_PURPOSE: Final = "batches"
IDEMPOTENCY_PURPOSE: Final = "idempotency"
API_KEYS_PURPOSE: Final = "api_keys"

# Every purpose there is: what a full keyring serves.
PURPOSES: Final = (
    REPLIES_PURPOSE,
    CACHE_PURPOSE,
    FILES_PURPOSE,
    CHUNKS_PURPOSE,
    CONVERSATIONS_PURPOSE,
    COMPACTIONS_PURPOSE,
    BATCHES_PURPOSE,
    IDEMPOTENCY_PURPOSE,
    API_KEYS_PURPOSE,
    *map(queue_purpose, Queue),
)
