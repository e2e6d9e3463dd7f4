"""The Redis and PostgreSQL servers that tests and the one-machine stack run."""

import os
import signal
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from libs.local.postgres import postgres_available, running_postgres
from libs.local.redis_servers import RedisServer, running_redis


def _client(server: RedisServer) -> "redis.Redis":
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_the_broker_keeps_what_it_was_given_across_a_kill(tmp_path: Path) -> None:
    with running_redis(tmp_path, persistent=True) as server:
        with _client(server) as client:
            client.rpush("queue", "first", "second")
        os.kill(server.pid, signal.SIGKILL)
    with running_redis(tmp_path, persistent=True) as again, _client(again) as client:
        assert client.lrange("queue", 0, -1) == ["first", "second"]


def test_the_broker_refuses_rather_than_evicts(tmp_path: Path) -> None:
    with running_redis(tmp_path, persistent=True) as server, _client(server) as client:
        assert client.config_get("maxmemory-policy", "append*", "save") == {
            **client.config_get("append*"),
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }


def test_the_cache_evicts_and_forgets(tmp_path: Path) -> None:
    with running_redis(tmp_path, persistent=False) as server, _client(server) as client:
        client.set("answer", "42")
        assert client.config_get("maxmemory", "maxmemory-policy") == {
            "maxmemory": str(256 * 1024 * 1024),
            "maxmemory-policy": "allkeys-lru",
        }
    with running_redis(tmp_path, persistent=False) as again, _client(again) as client:
        assert client.get("answer") is None


def test_redis_listens_on_the_loopback_address_only(tmp_path: Path) -> None:
    with running_redis(tmp_path, persistent=False) as server, _client(server) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_password_is_asked_for_and_not_shown_to_other_users(tmp_path: Path) -> None:
    with running_redis(tmp_path, persistent=True, password="s3cret") as server:
        assert b"s3cret" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert (tmp_path / "password.conf").stat().st_mode & 0o077 == 0
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        with _client(server) as client:
            assert client.ping()


def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "one", persistent=False) as server,
        pytest.raises(RuntimeError, match="Address already in use"),
        running_redis(tmp_path / "two", persistent=False, port=server.port),
    ):
        pass


@pytest.mark.postgres
@pytest.mark.skipif(postgres_available() is not None, reason=str(postgres_available()))
def test_postgres_starts_empty_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    with running_postgres(tmp_path) as server:
        url = server.url.replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("off",)
            assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert not Path(f"/proc/{server.pid}").exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
