"""Settings shared by the services: read once from the environment at start, then frozen.

Field names are the environment variables in lower case. There is deliberately no prefix: pydantic-settings would
re-prefix inherited fields without a word.
"""

import json
import logging
import math
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from libs.common.outbound.addresses import Policy

_REDIS: Final = ("redis", "rediss", "unix")
# Of every other URL: http and https.
_SCHEMES: Final = {
    "broker_url": _REDIS,
    "cache_url": _REDIS,
    "database_url": ("sqlite", "postgresql+psycopg"),
    "blobs_url": ("file", "s3", "gs", "azure", "memory"),
}


class CommonSettings(BaseSettings):
    """What every service needs.

    What is wrong shows when the environment is read, not at the first use: numbers are finite and not negative, URLs
    have a scheme that can be served.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    service_name: str = "docent"
    broker_url: str = "redis://127.0.0.1:6390/0"
    cache_url: str = "redis://127.0.0.1:6391/0"
    database_url: str = "sqlite:///.local/docent.db"
    blobs_url: str = "file://.local/blobs"
    keyring: SecretStr | None = Field(default=None, description="the keyring itself; wins over keyring_file")
    keyring_file: Path | None = None
    log_level: str = "INFO"

    # The answer to "how long may a person wait" travels inside every interactive message.
    interactive_deadline_seconds: float = 120.0

    # The job lane. A lease must outlive several missed heartbeats on a busy machine.
    lease_seconds: float = 15.0
    heartbeat_seconds: float = 5.0
    # Of the places for jobs of all live workers of a queue; the rest is for whoever else comes.
    tenant_share: float = Field(default=0.5, gt=0, le=1)
    reconcile_interval_seconds: float = 1.0
    max_attempts: int = 3
    # From one progress report or write of a job to the next.
    job_step_seconds: float = 600.0
    # A process whose event loop does not answer for so long ends itself, for nothing else can stop its handler.
    loop_blocked_seconds: float = 60.0
    # How long a suspect waits for the other jobs of its process to end; longer with every attempt.
    alone_wait_seconds: float = 30.0

    @field_validator("*")
    @classmethod
    def _usable(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError("must be a number that is not negative")
        if isinstance(value, str) and name.endswith("_url"):
            _check_url(value, _SCHEMES.get(name, ("http", "https")))
        if name == "log_level" and str(value).upper() not in logging.getLevelNamesMapping():
            raise ValueError("must be one of DEBUG, INFO, WARNING, ERROR and CRITICAL")
        return value


def _check_url(url: str, schemes: tuple[str, ...]) -> None:
    # Never shown: it may hold a password.
    if url.partition("://")[0] not in schemes:
        raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("must be a URL whose host and port can be read") from None


class WorkerSettings(CommonSettings):
    """What every Celery service needs beside the common settings."""

    # 0 means: no health port. Kubernetes probes and the local supervisor set one.
    health_host: str = "127.0.0.1"
    health_port: int = 0
    # Handlers are coroutines: a slot is a request in flight, not a thread.
    worker_concurrency: int = 64
    # Of these, jobs: what nobody waits for must leave room for people.
    job_concurrency: int = 16
    # A process that holds more ends itself: below the container's limit, so that the log says why. 0: no limit.
    worker_memory_bytes: int = 768 << 20
    # From a job's first attempt on: how long it waits, uncharged, for what it depends on.
    outage_patience_seconds: float = 86_400.0
    # How long a worker told to stop may finish what it runs; Kubernetes' grace period must be longer.
    drain_seconds: float = 20.0


class CacheSettings(CommonSettings):
    """How gateway, chat and ingest use the cache Redis (CACHE_URL)."""

    # A cache that does not answer within this is a miss; longer than that, asking the model may be as fast.
    cache_timeout_seconds: float = 0.05
    # What a process keeps of it in its own memory.
    cache_memory_bytes: int = 32 << 20
    # Answers are found by the revisions of their vector stores, so this only bounds how long a model's answer counts.
    answer_cache_seconds: float = 3600.0
    # A text's vector changes only with the model behind the name.
    embedding_cache_seconds: float = 604_800.0


class FurtherModel(BaseModel):
    """An embedding model beside the default one; without a `base_url` the same server has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(gt=0)
    base_url: str | None = None

    @field_validator("base_url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        if url is not None:
            _check_url(url, ("http", "https"))
        return url


class RetrievalSettings(CacheSettings):
    """Where vectors and embeddings come from; chat and ingest need the same answer."""

    qdrant_url: str = "http://127.0.0.1:6343"
    qdrant_api_key: SecretStr | None = None
    embedding_base_url: str = "http://127.0.0.1:8091/v1"
    embedding_api_key: SecretStr = SecretStr("local")
    embedding_model: str = "all-minilm-l6-v2"
    embedding_dimensions: int = 384
    # What each embedding model may be sent, by all processes together; 0 is no limit. Tokens are estimated.
    embedding_requests_per_minute: float = Field(0, ge=0)
    embedding_tokens_per_minute: float = Field(0, ge=0)
    # Models that vector stores may move to, or have not moved from yet: {"name": {"dimensions": 1024}}.
    embedding_models: Annotated[dict[str, FurtherModel], NoDecode] = {}

    @field_validator("embedding_models", mode="before")
    @classmethod
    def _decoded(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError('must be JSON such as {"name": {"dimensions": 1024}}') from None

    def dimensions_by_model(self) -> dict[str, int]:
        """Every embedding model of the deployment with the length of its vectors."""
        further = {name: model.dimensions for name, model in self.embedding_models.items()}
        return further | {self.embedding_model: self.embedding_dimensions}


class ImportSettings(CommonSettings):
    """From where files may be imported; the gateway refuses what it can, and ingest asks."""

    import_ports: str = "80,443"
    # Hosts, with or without a port and separated by commas, that may be asked though they are at private addresses.
    import_allowed_hosts: str = ""

    def import_policy(self) -> Policy:
        """Both, read."""
        return Policy.parse(self.import_ports, self.import_allowed_hosts)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.import_policy()
        return self
