"""Settings shared by the services: read once from the environment at start, then frozen.

Field names are the environment variables in lower case. There is deliberately no prefix: pydantic-settings would
re-prefix inherited fields without a word.
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommonSettings(BaseSettings):
    """What every service needs."""

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
    dispatch_window_per_tenant: int = 32
    reconcile_interval_seconds: float = 1.0
    max_attempts: int = 3
    # From one progress report or write of a job to the next.
    job_step_seconds: float = 600.0
    # A process whose event loop does not answer for so long ends itself, for nothing else can stop its handler.
    loop_blocked_seconds: float = 60.0
    # How long a suspect waits for the other jobs of its process to end; longer with every attempt.
    alone_wait_seconds: float = 30.0


class WorkerSettings(CommonSettings):
    """What every Celery service needs beside the common settings."""

    # 0 means: no health port. Kubernetes probes and the local supervisor set one.
    health_host: str = "127.0.0.1"
    health_port: int = 0
    # Handlers are coroutines: a slot is a request in flight, not a thread.
    worker_concurrency: int = 64
    # How long a worker told to stop may finish what it runs; Kubernetes' grace period must be longer.
    drain_seconds: float = 20.0


class RetrievalSettings(CommonSettings):
    """Where vectors and embeddings come from; chat and ingest need the same answer."""

    qdrant_url: str = "http://127.0.0.1:6343"
    qdrant_api_key: SecretStr | None = None
    embedding_base_url: str = "http://127.0.0.1:8091/v1"
    embedding_api_key: SecretStr = SecretStr("local")
    embedding_model: str = "all-minilm-l6-v2"
    embedding_dimensions: int = 384
