"""No more requests and tokens a minute than an embedding model's server allows, over all processes of a deployment.

The generic cell rate algorithm (ITU-T I.371) on the cache Redis, once for requests and once for tokens: each has a time
up to which it is spent. Ingestion waits its turn; questions do not wait, but count, so that ingestion yields to them.
"""

import asyncio
import time
from typing import Final

from redis.exceptions import RedisError

from libs.common import keys
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.settings import RetrievalSettings
from libs.common.tasks.broker import BrokerConnection

# Of a minute's allowance, so much may be spent at once.
BURST_SECONDS: Final = 6.0
# Who would have to wait longer comes back later, and leaves its place to others.
LONGEST_WAIT_SECONDS: Final = 60.0
_MINUTE_SECONDS: Final = 60.0

_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local wait, spent = 0, {}
for i = 1, #KEYS do
  local until_now = math.max(now, tonumber(redis.call('GET', KEYS[i]) or 0))
  wait = math.max(wait, until_now - now - tonumber(ARGV[2]))
  spent[i] = until_now + tonumber(ARGV[2 + i])
end
if wait <= tonumber(ARGV[1]) then
  for i = 1, #KEYS do
    redis.call('SET', KEYS[i], string.format('%.6f', spent[i]), 'EX', math.ceil(spent[i] - now) + 1)
  end
end
return tostring(wait)
"""


class SharedPace:
    """The pace of one model's requests. Must be used within one event loop.

    While Redis is away each process keeps the whole pace by itself.

    Args:
        requests_per_minute: 0 is no limit; of tokens likewise.
        waits: whether to wait for one's turn.
    """

    def __init__(
        self, redis: BrokerConnection, model: str, *, requests_per_minute: float, tokens_per_minute: float, waits: bool
    ) -> None:
        self._redis = redis
        self._waits = waits
        self._seconds = {
            keys.embedding_pace(model, unit): _MINUTE_SECONDS / per_minute
            for unit, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if per_minute
        }
        self._spent = dict.fromkeys(self._seconds, 0.0)

    async def turn(self, tokens: int) -> None:
        """Return when one request of so many tokens may be sent.

        Raises:
            RetryableError: LLM_UNAVAILABLE, when that is not soon; nothing was counted.
        """
        units = {name: tokens if name.endswith("tokens") else 1 for name in self._seconds}
        costs = [units[name] * seconds for name, seconds in self._seconds.items()]
        wait_seconds = await self._taken(costs)
        if not self._waits or wait_seconds <= 0:
            return
        if wait_seconds > LONGEST_WAIT_SECONDS:
            message = "The embedding model has all the requests that it may be sent for the moment. Try again."
            raise RetryableError(ErrorCode.LLM_UNAVAILABLE, message, retry_after_seconds=wait_seconds)
        await asyncio.sleep(wait_seconds)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.close()

    async def _taken(self, costs: list[float]) -> float:
        """Seconds until the request's turn; it is counted unless that is too long."""
        most = LONGEST_WAIT_SECONDS if self._waits else float("1e9")
        try:
            reply = await self._redis.execute(
                "EVAL", _TAKE, len(self._seconds), *self._seconds, most, BURST_SECONDS, *costs
            )
            return float(reply)
        except (PlatformError, RedisError):
            return self._taken_here(costs, most)

    def _taken_here(self, costs: list[float], most: float) -> float:
        now = time.monotonic()
        spent = {name: max(now, until) for name, until in self._spent.items()}
        wait_seconds = max(0.0, *(until - now - BURST_SECONDS for until in spent.values()))
        if wait_seconds <= most:
            self._spent = {name: until + cost for (name, until), cost in zip(spent.items(), costs, strict=True)}
        return wait_seconds


def pace_of(settings: RetrievalSettings, model: str, *, waits: bool) -> SharedPace | None:
    """The pace of a model, if the settings limit it."""
    requests, tokens = settings.embedding_requests_per_minute, settings.embedding_tokens_per_minute
    if not requests and not tokens:
        return None
    redis = BrokerConnection(settings.cache_url, timeout_seconds=settings.cache_timeout_seconds, name="cache")
    return SharedPace(redis, model, requests_per_minute=requests, tokens_per_minute=tokens, waits=waits)
