"""Fixtures of the servers and handles that many tests need; each test gets an empty one."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings

from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.migrate import migrate
from libs.local.postgres import postgres_available, running_postgres
from libs.local.redis_servers import running_redis

# How long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for all tests that leave it as it is; those that stop or freeze theirs start one of their own."""
    with running_redis(tmp_path_factory.mktemp("broker"), persistent=True) as server:
        yield server.url


@pytest.fixture
def broker_url(redis_url: str) -> str:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture(scope="session")
def postgres_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := postgres_available():
        pytest.skip(reason)
    with running_postgres(tmp_path_factory.mktemp("postgres_server")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/docent.db"
    server_url: str = request.getfixturevalue("postgres_server_url")
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server_url.rpartition('/')[0]}/{name}"


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    migrate(database.engine)
    yield database
    database.close()


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    return Keyring.parse(Keyring.generate())
