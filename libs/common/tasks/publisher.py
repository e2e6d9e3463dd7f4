"""Admission and publishing in one script on the broker: rate limit, parallel streams, queue depth, push."""

from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoScriptError

from libs.common import keys, metrics
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.tasks.broker import Argument, BrokerClock, BrokerConnection

# Rate limiting is GCRA: one key holds the theoretical arrival time, so there is no window edge to burst across.
# (Generic Cell Rate Algorithm, ITU-T I.371.) All or nothing: what is refused has changed no counter.
_ADMIT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local next_arrival = arrival + interval
local room = now + interval * burst - next_arrival
local counted = ARGV[8] ~= ''
-- A double of this size is exact to 0.25 us only: sums of uneven intervals may miss by some of these.
if not counted and room < -0.1 then return {'rate', 0, math.ceil(-room)} end
room = math.max(room, 0)
local stream = ARGV[3]
if stream ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return {'streams', 0, 1000} end
end
if ARGV[6] ~= '' then
  if redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[7]) then return {'full', 0, 1000} end
  redis.call('LPUSH', KEYS[3], ARGV[6])
end
if stream ~= '' then
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[5]), stream)
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
if not counted then redis.call('SET', KEYS[1], next_arrival, 'PX', math.ceil(next_arrival - now) + 1) end
return {'ok', math.floor(room / interval), math.ceil(next_arrival - now)}
"""


# Longer than a worker counts as live without a report.
_PLACES_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one API key."""

    tenant_id: str
    key_id: str
    requests_per_minute: int
    parallel_streams: int


@dataclass(frozen=True, slots=True)
class Admission:
    """What a client may know of its limit after an admitted request."""

    limit_requests: int
    remaining_requests: int
    reset_seconds: float


class Publisher:
    """Puts messages into queues. Must be used within one event loop.

    Args:
        max_queue_depth: messages that may wait in one interactive queue before requests are refused.
    """

    def __init__(self, broker: BrokerConnection, *, max_queue_depth: int = 2000) -> None:
        self._broker = broker
        self._max_queue_depth = max_queue_depth
        self._admit_sha: str | None = None

    async def admit(self, limits: Limits, *, stream_id: str = "", stream_seconds: float = 0.0) -> Admission:
        """Count one request of a key that does not go into a queue.

        Raises:
            RetryableError: RATE_LIMIT_EXCEEDED, TOO_MANY_STREAMS, or QUEUE_UNAVAILABLE when the broker is away.
        """
        return await self._run_admission(limits, "", b"", stream_id, stream_seconds)

    async def admit_and_push(
        self,
        limits: Limits,
        queue: str,
        message: bytes,
        *,
        stream_id: str = "",
        stream_seconds: float = 0.0,
        counted: bool = False,
    ) -> Admission:
        """Count one request of a key, unless it was by `admit`, and push its message, or neither.

        Raises:
            RetryableError: as `admit`, or QUEUE_FULL.
        """
        with metrics.PUBLISH_SECONDS.labels(queue=queue).time():
            return await self._run_admission(limits, queue, message, stream_id, stream_seconds, counted=counted)

    async def push(self, queue: str, message: bytes) -> None:
        """Push a message of work that was admitted before.

        Raises:
            RetryableError: QUEUE_UNAVAILABLE.
        """
        await self._broker.execute("LPUSH", queue, message)

    async def withdraw(self, queue: str, message: bytes) -> bool:
        """Take a message back that nobody has taken yet.

        Returns:
            Whether it was still there.
        """
        return bool(await self._broker.execute("LREM", queue, "1", message))

    async def holds(self, queue: str, message: bytes) -> bool:
        """Whether a message still waits in a queue."""
        return await self._broker.execute("LPOS", queue, message) is not None

    async def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return int(await self._broker.execute("LLEN", queue))

    def release_stream(self, limits: Limits, stream_id: str) -> None:
        """A stream ended; if this does not arrive, the entry ends with its deadline."""
        self._broker.send("ZREM", keys.streams(limits.tenant_id, limits.key_id), stream_id)

    async def _run_admission(
        self,
        limits: Limits,
        queue: str,
        message: bytes,
        stream_id: str,
        stream_seconds: float,
        *,
        counted: bool = False,
    ) -> Admission:
        script_keys = (
            keys.rate(limits.tenant_id, limits.key_id),
            keys.streams(limits.tenant_id, limits.key_id),
            queue or "-",
        )
        arguments: tuple[Argument, ...] = (
            60_000 / limits.requests_per_minute,
            limits.requests_per_minute,
            stream_id,
            limits.parallel_streams,
            int(stream_seconds * 1000),
            message,
            self._max_queue_depth,
            "1" if counted else "",
        )
        verdict, remaining, milliseconds = await self._evaluate(script_keys, arguments)
        if verdict != b"ok":
            raise _refusal(verdict, milliseconds / 1000)
        return Admission(limits.requests_per_minute, int(remaining), milliseconds / 1000)

    async def _evaluate(self, script_keys: tuple[str, ...], arguments: tuple[Argument, ...]) -> Any:  # noqa: ANN401
        if self._admit_sha is not None:
            try:
                return await self._broker.execute(
                    "EVALSHA", self._admit_sha, len(script_keys), *script_keys, *arguments
                )
            except NoScriptError:
                pass  # the broker restarted or was flushed
        sha: bytes = await self._broker.execute("SCRIPT", "LOAD", _ADMIT)
        self._admit_sha = sha.decode()
        return await self._broker.execute("EVALSHA", self._admit_sha, len(script_keys), *script_keys, *arguments)


def _refusal(verdict: bytes, retry_after_seconds: float) -> PlatformError:
    if verdict == b"rate":
        return RetryableError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            "This API key has sent more requests per minute than its limit. Wait as long as Retry-After says.",
            retry_after_seconds=retry_after_seconds,
        )
    if verdict == b"streams":
        return RetryableError(
            ErrorCode.TOO_MANY_STREAMS,
            "This API key has as many streams open as its limit. Close one, or wait for one to end.",
            retry_after_seconds=retry_after_seconds,
        )
    return RetryableError(
        ErrorCode.QUEUE_FULL, "The server has more work waiting than it takes on. Try again.", retry_after_seconds=2
    )


class Consumers:
    """Who consumes a queue right now, by the broker's clock."""

    def __init__(self, broker: BrokerConnection, clock: BrokerClock) -> None:
        self._broker = broker
        self._clock = clock

    async def count(self, queue: str) -> int:
        """How many live workers consume the queue."""
        return int(await self._broker.execute("ZCOUNT", keys.workers(queue), self._clock.now(), "+inf"))

    async def is_alive(self, queue: str, worker: str) -> bool:
        """Whether this worker has reported lately."""
        consuming = self._broker.send("ZSCORE", keys.workers(queue), worker)
        draining = await self._broker.execute("ZSCORE", keys.draining(queue), worker)
        scores = [float(score) for score in (await consuming, draining) if score is not None]
        return max(scores, default=0.0) > self._clock.now()

    async def places(self, queue: str) -> dict[str, int]:
        """How many jobs each live worker of the queue runs at once, by its name."""
        live = await self._broker.execute("ZRANGEBYSCORE", keys.workers(queue), self._clock.now(), "+inf")
        names = [name.decode() for name in live]
        if not names:
            return {}
        places = await self._broker.execute("MGET", *map(keys.places, names))
        return {name: int(count) for name, count in zip(names, places, strict=True) if count is not None}

    async def report(
        self, queues: tuple[str, ...], worker: str, *, places: int, seconds: float, draining: bool = False
    ) -> None:
        """This worker lives for the next `seconds`, and consumes these queues or only finishes what it took.

        Args:
            places: how many jobs it runs at once.
        """
        now = self._clock.now()
        self._broker.send("SET", keys.places(worker), places, "EX", _PLACES_SECONDS)
        for queue in queues:
            key = keys.draining(queue) if draining else keys.workers(queue)
            if draining:
                self._broker.send("ZREM", keys.workers(queue), worker)
            self._broker.send("ZREMRANGEBYSCORE", key, "-inf", now - 60)
            await self._broker.execute("ZADD", key, now + seconds, worker)

    def retire(self, queues: tuple[str, ...], worker: str) -> None:
        """This worker is gone."""
        for queue in queues:
            self._broker.send("ZREM", keys.workers(queue), worker)
            self._broker.send("ZREM", keys.draining(queue), worker)
