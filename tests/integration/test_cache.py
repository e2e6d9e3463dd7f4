"""The cache over a real Redis: what it keeps, and that its failures are misses."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis

from libs.common import keys, metrics
from libs.common.cache.embeddings import CachedEmbedder
from libs.common.cache.store import Cache
from libs.common.keyring import Keyring
from libs.common.rag.embedder import Embedder, EmbedResult
from libs.common.settings import CacheSettings
from libs.local.ports import free_port
from libs.local.redis_servers import RedisServer, running_redis

KEY = keys.answer("tenant", "one")
CANARY = b"canary-4711"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path, persistent=False) as server:
        yield server


def settings(url: str, **changes: float) -> CacheSettings:
    # Patient, because the machine that runs the tests may be busy.
    return CacheSettings(cache_url=url, **{"cache_timeout_seconds": 2.0} | changes)  # type: ignore[arg-type]  # numbers


@pytest.fixture
async def cache(server: RedisServer, keyring: Keyring) -> AsyncIterator[Cache]:
    cache = Cache(settings(server.url), keyring)
    yield cache
    await cache.aclose()


@pytest.fixture
def plain(server: RedisServer) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(server.url) as client:
        yield client


async def arrived(plain: "redis.Redis", key: str) -> bytes:
    """What lies at a key, as soon as it is there: nobody waits for a value to be kept."""
    while True:
        value = await asyncio.to_thread(plain.get, key)
        if value is not None:
            return bytes(value)  # type: ignore[arg-type]  # redis-py's replies are not typed by command
        await asyncio.sleep(0.01)


async def test_a_value_is_kept_sealed_and_for_its_time(cache: Cache, plain: "redis.Redis") -> None:
    assert await cache.get(KEY) is None
    cache.put(KEY, CANARY, 60)
    assert CANARY not in await arrived(plain, KEY)
    assert 0 < int(plain.pttl(KEY)) <= 60_000
    assert await cache.get(KEY) == CANARY


async def test_what_was_read_lately_is_in_memory(cache: Cache, plain: "redis.Redis") -> None:
    cache.put(KEY, b"value", 60)
    await arrived(plain, KEY)
    assert await cache.get(KEY) == b"value"
    plain.flushall()
    assert await cache.get(KEY) == b"value"


async def test_a_value_moved_to_another_key_is_a_miss_and_counted(cache: Cache, plain: "redis.Redis") -> None:
    failures = metrics.SEAL_FAILURES.labels(purpose=keys.CACHE_PURPOSE)._value
    before = failures.get()
    cache.put(KEY, b"value", 60)
    await arrived(plain, KEY)
    foreign = keys.answer("other", "one")
    plain.rename(KEY, foreign)
    assert await cache.get(foreign) is None
    assert failures.get() == before + 1


async def test_a_value_beyond_its_time_is_a_miss_though_redis_has_it(cache: Cache, plain: "redis.Redis") -> None:
    cache.put(KEY, b"value", 0.3)
    await arrived(plain, KEY)
    plain.persist(KEY)
    await asyncio.sleep(0.4)
    assert plain.exists(KEY)
    assert await cache.get(KEY) is None


async def test_several_values_come_in_order(cache: Cache, plain: "redis.Redis") -> None:
    names = [keys.answer("tenant", name) for name in "abc"]
    for name in names[:2]:
        cache.put(name, name.encode(), 60)
        await arrived(plain, name)
    wanted = [names[1], names[2], names[0], names[1]]
    assert await cache.get_many(wanted) == [names[1].encode(), None, names[0].encode(), names[1].encode()]


async def test_a_list_keeps_the_latest(cache: Cache) -> None:
    for number in range(5):
        cache.add(keys.alike("tenant", "one"), str(number).encode(), 60, at_most=3)
    assert await cache.entries(keys.alike("tenant", "one")) == [b"4", b"3", b"2"]
    assert await cache.entries(keys.alike("other", "one")) == []


async def test_too_large_a_value_is_not_kept(cache: Cache, plain: "redis.Redis") -> None:
    cache.put(KEY, b"x" * (2 << 20), 60)
    cache.put(keys.answer("tenant", "small"), b"x", 60)
    await arrived(plain, keys.answer("tenant", "small"))
    assert not plain.exists(KEY)


async def test_a_dead_server_is_a_miss(keyring: Keyring) -> None:
    cache = Cache(settings(f"redis://127.0.0.1:{free_port()}/0"), keyring)
    for _ in range(3):
        cache.put(KEY, b"value", 60)
        assert await cache.get(KEY) is None
        assert await cache.entries(keys.alike("tenant", "one")) == []
    await cache.aclose()


async def test_a_frozen_server_costs_one_wait_and_comes_back(server: RedisServer, keyring: Keyring) -> None:
    cache = Cache(settings(server.url, cache_timeout_seconds=0.5), keyring)
    cache.put(KEY, b"value", 60)
    await settled(cache)
    assert await cache.get(KEY) == b"value"
    other = keys.answer("tenant", "two")
    os.kill(server.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert await cache.get(other) is None
        waited = time.monotonic() - began
        again = time.monotonic()
        assert [await cache.get(other) for _ in range(20)] == [None] * 20
        # Together less than one more wait: only the first of them asked.
        assert time.monotonic() - again < waited
        assert await cache.get(KEY) == b"value"
    finally:
        os.kill(server.pid, signal.SIGCONT)
    cache.put(other, b"dropped while it pauses", 60)
    while (found := await cache.get(other)) is None:
        await asyncio.sleep(0.05)
        cache.put(other, b"back", 60)
    assert found == b"back"
    await cache.aclose()


async def test_a_full_server_still_gives_what_it_has(cache: Cache, plain: "redis.Redis") -> None:
    cache.put(KEY, b"value", 60)
    await arrived(plain, KEY)
    plain.config_set("maxmemory-policy", "noeviction")
    plain.config_set("maxmemory", 1)
    cache.put(keys.answer("tenant", "two"), b"more", 60)
    assert await cache.get(keys.answer("tenant", "two")) is None
    assert await cache.get(KEY) == b"value"


class _Model(Embedder):
    """Embeds a text as its length and what `vector_of` makes of it, and notes what it was asked."""

    def __init__(self, vector_of: Callable[[str], list[float]] = lambda text: [float(len(text)), 0.1]) -> None:
        super().__init__("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
        self.asked: list[str] = []
        self._vector_of = vector_of

    async def embed(self, texts: Sequence[str]) -> EmbedResult:
        self.asked += texts
        return EmbedResult([self._vector_of(text) for text in texts], len(texts))


async def settled(cache: Cache) -> None:
    """Returns when all that was told to the server has arrived: a connection answers in order."""
    await cache.entries("settled")


async def test_a_text_is_embedded_once_per_tenant(cache: Cache) -> None:
    model = _Model()
    embedder = CachedEmbedder(model, cache, 60)
    first = await embedder.embed("a", ["one", "three", "one"])
    assert model.asked == ["one", "three"]
    assert [vector[0] for vector in first] == [3, 5, 3]
    await settled(cache)
    again = await embedder.embed("a", ["three", "seventeen", "one"])
    assert model.asked == ["one", "three", "seventeen"]
    assert [vector[0] for vector in again] == [5, 9, 3]
    assert again[0][1] == pytest.approx(0.1)
    await embedder.embed("b", ["one"])
    assert model.asked[3:] == ["one"]
    assert await embedder.embed("a", []) == []


async def test_another_model_has_vectors_of_its_own(cache: Cache) -> None:
    model, other = _Model(), _Model()
    other.model = "other"
    await CachedEmbedder(model, cache, 60).embed("a", ["one"])
    await settled(cache)
    await CachedEmbedder(other, cache, 60).embed("a", ["one"])
    assert other.asked == ["one"]


async def test_neither_keys_nor_values_of_embeddings_tell_the_text(cache: Cache, plain: "redis.Redis") -> None:
    await CachedEmbedder(_Model(), cache, 60).embed("a", [CANARY.decode()])
    await settled(cache)
    ((key, value),) = [(bytes(key), plain.get(key)) for key in plain.scan_iter("embedding:a:*")]
    assert isinstance(value, bytes)
    assert CANARY not in key + value
