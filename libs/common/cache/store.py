"""Sealed values on the cache Redis, the latest of them in this process's memory.

Nobody depends on what is here: what cannot be had within milliseconds, or cannot be opened, is a miss. After a failure
Redis is left alone for a moment, so that a dead or frozen one costs one caller a short wait, not every caller.
"""

import asyncio
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from libs.common import keys, metrics
from libs.common.cache.memory import RecentValues
from libs.common.errors import ErrorCode, PermanentError, PlatformError
from libs.common.keyring import Keyring
from libs.common.logs import get_logger
from libs.common.settings import CacheSettings
from libs.common.tasks.broker import Argument, BrokerConnection

_log = get_logger(__name__)
_PAUSE_SECONDS: Final = 1.0
# Other processes delete nothing here, but an operator who empties Redis should not wait long for the effect.
_MEMORY_SECONDS: Final = 60.0
_MAX_VALUE_BYTES: Final = 1 << 20
_EXPIRY: Final = struct.Struct(">d")


class Cache:
    """Values by key. Each is sealed for its key, so one that was moved to another key is refused.

    Keys come from `libs.common.keys` and name their tenant. Must be used within one event loop.
    """

    def __init__(self, settings: CacheSettings, keyring: Keyring) -> None:
        self._redis = BrokerConnection(settings.cache_url, timeout_seconds=settings.cache_timeout_seconds, name="cache")
        self._sealer = keyring.sealer(keys.CACHE_PURPOSE)
        self._mac = keyring.mac(keys.CACHE_PURPOSE)
        self._memory = RecentValues(settings.cache_memory_bytes, _MEMORY_SECONDS)
        self._paused_until = 0.0

    def digest(self, content: bytes) -> str:
        """What stands for content in a key: keyed, so that nobody who reads keys can try out short texts."""
        return self._mac.digest(content).hex()

    async def get(self, key: str) -> bytes | None:
        """The value of one key; None for a miss of any kind."""
        return (await self.get_many([key]))[0]

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """The values of keys of one kind, in order; None for each miss."""
        found = {name: value for name in names if (value := self._memory.get(name)) is not None}
        _count(names, len(found), "_local")
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            sealed: list[bytes | None] = await self._ask("MGET", *missing) or []
            opened = dict(self._opened(zip(missing, sealed, strict=False)))
            _count(missing, len(opened))
            for name, (value, expires_at) in opened.items():
                self._memory.put(name, value, expires_at)
                found[name] = value
        return [found.get(name) for name in names]

    def put(self, key: str, value: bytes, seconds: float) -> None:
        """Keep a value for so long. Nobody waits for it, and it may be dropped at any time."""
        if len(value) <= _MAX_VALUE_BYTES:
            self._tell("SET", key, self._sealed(key, value, seconds), "PX", int(seconds * 1000))

    async def entries(self, key: str) -> list[bytes]:
        """What was added to a list, the latest first."""
        sealed: list[bytes] = await self._ask("LRANGE", key, 0, -1) or []
        return [value for _, (value, _) in self._opened((key, each) for each in sealed)]

    def add(self, key: str, value: bytes, seconds: float, *, at_most: int) -> None:
        """Add a value to a list, which keeps the latest so many and lives so long from now on."""
        self._tell("LPUSH", key, self._sealed(key, value, seconds))
        self._tell("LTRIM", key, 0, at_most - 1)
        self._tell("PEXPIRE", key, int(seconds * 1000))

    async def aclose(self) -> None:
        """Send what is waiting, then close."""
        await self._redis.close()

    def _sealed(self, key: str, value: bytes, seconds: float) -> bytes:
        return self._sealer.seal(_EXPIRY.pack(time.time() + seconds) + value, key)

    def _opened(self, sealed: Iterable[tuple[str, bytes | None]]) -> Iterator[tuple[str, tuple[bytes, float]]]:
        """What opens and has not expired, with its expiry."""
        for key, each in sealed:
            if each is None:
                continue
            try:
                content = self._sealer.open(each, key)
            except PermanentError:
                metrics.SEAL_FAILURES.labels(purpose=keys.CACHE_PURPOSE).inc()
                _log.warning("a cached value cannot be unsealed")
                continue
            (expires_at,) = _EXPIRY.unpack_from(content)
            if expires_at > time.time():
                yield key, (content[_EXPIRY.size :], expires_at)

    async def _ask(self, *command: Argument) -> Any:  # noqa: ANN401 - Redis replies have no common type
        """The reply, or None where there is none to be had soon."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            return await self._redis.execute(*command)
        except (PlatformError, RedisError) as error:
            self._failed(error)
            return None

    def _tell(self, *command: Argument) -> None:
        if time.monotonic() >= self._paused_until:
            self._redis.send(*command).add_done_callback(self._told)

    def _told(self, done: "asyncio.Future[Any]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        # A server that only refuses, for want of memory, still answers at once.
        if isinstance(error, PlatformError) and error.code is ErrorCode.QUEUE_UNAVAILABLE:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS


def _count(names: Sequence[str], hits: int, suffix: str = "") -> None:
    layer = names[0].partition(":")[0] + suffix
    metrics.CACHE_LOOKUPS.labels(layer=layer, result="hit").inc(hits)
    metrics.CACHE_LOOKUPS.labels(layer=layer, result="miss").inc(len(names) - hits)
