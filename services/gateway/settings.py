"""The gateway's settings."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from libs.common.settings import ImportSettings, RetrievalSettings


class GatewaySettings(RetrievalSettings, ImportSettings):
    """What the gateway reads from the environment."""

    service_name: str = "gateway"
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8080

    # Models a client may name, separated by commas; "*" lets the upstream decide.
    chat_models: str = "docent-extractive"

    max_json_bytes: int = 4 << 20
    max_file_bytes: int = 512 << 20
    # Of files that come in parts, and of one part.
    max_upload_bytes: int = 8 << 30
    max_part_bytes: int = 64 << 20
    max_header_bytes: int = 16 << 10
    max_queue_depth: int = 2000

    # What a client may take its time with. A head is a request line and its headers.
    header_seconds: float = Field(default=10.0, gt=0)
    # Silence within a body, and what its whole may last beyond its bytes at the least rate.
    body_seconds: float = Field(default=20.0, gt=0)
    body_bytes_per_second: int = Field(default=1024, gt=0)
    # Until a client that does not read its answer is cut off.
    write_seconds: float = Field(default=30.0, gt=0)
    # Between requests; longer than a load balancer keeps its own connections, or it sends into a closing one.
    idle_seconds: int = Field(default=75, gt=0)
    # Connections without a request, and requests under way, of this process.
    waiting_connections: int = Field(default=1024, gt=0)
    parallel_requests: int = Field(default=4096, gt=0)
    keep_alive_seconds: float = 15.0

    # Which answers may be given again: "deterministic" are those to questions with temperature 0 or a seed, and those
    # of models that always answer alike.
    answer_cache: Literal["off", "deterministic", "all"] = "deterministic"
    deterministic_models: str = "docent-extractive"
    # Tenants whose questions may be answered as ones in other words were, by their ids, separated by commas.
    semantic_cache_tenants: str = ""

    # Limits of a new API key.
    requests_per_minute: int = 6000
    parallel_streams: int = 256

    # How long queues may be without a consumer before callers are refused: longer than a worker takes to restart.
    consumerless_seconds: float = 8.0

    def may_cache(self, model: str, parameters: Mapping[str, object]) -> bool:
        """Whether an answer by this model with these sampling parameters may be given again."""
        if self.answer_cache == "deterministic":
            alike = model in _names(self.deterministic_models)
            return alike or parameters.get("temperature") == 0 or "seed" in parameters
        return self.answer_cache == "all"

    def has_semantic_cache(self, tenant_id: str) -> bool:
        """Whether this tenant's questions may be answered as ones in other words were."""
        return tenant_id in _names(self.semantic_cache_tenants)

    def model_names(self) -> tuple[str, ...]:
        """The chat models to list, without the wildcard."""
        return tuple(name for name in _names(self.chat_models) if name != "*")

    def default_model(self) -> str | None:
        """The chat model of a response that names none; None if there is nothing but the wildcard."""
        return next(iter(self.model_names()), None)

    def allows_model(self, name: str) -> bool:
        """Whether a client may name this chat model."""
        return "*" in self.chat_models or name in self.model_names()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for raw in text.split(",") if (name := raw.strip()))
