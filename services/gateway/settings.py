"""The gateway's settings."""

from libs.common.settings import CommonSettings, RetrievalSettings


class GatewaySettings(RetrievalSettings, CommonSettings):
    """What the gateway reads from the environment."""

    service_name: str = "gateway"
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8080

    # Models a client may name, separated by commas; "*" lets the upstream decide.
    chat_models: str = "docent-extractive"

    max_json_bytes: int = 4 << 20
    max_file_bytes: int = 512 << 20
    max_header_bytes: int = 16 << 10
    max_queue_depth: int = 2000
    keep_alive_seconds: float = 15.0

    # Limits of a new API key.
    requests_per_minute: int = 6000
    parallel_streams: int = 256

    # How long queues may be without a consumer before callers are refused: longer than a worker takes to restart.
    consumerless_seconds: float = 8.0

    def model_names(self) -> tuple[str, ...]:
        """The chat models to list, without the wildcard."""
        return tuple(name for raw in self.chat_models.split(",") if (name := raw.strip()) and name != "*")

    def allows_model(self, name: str) -> bool:
        """Whether a client may name this chat model."""
        return "*" in self.chat_models or name in self.model_names()
