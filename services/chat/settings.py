"""The chat service's settings."""

from pydantic import SecretStr

from libs.common.settings import RetrievalSettings, WorkerSettings


class ChatSettings(RetrievalSettings, WorkerSettings):
    """What the chat service reads from the environment."""

    service_name: str = "chat"
    openai_base_url: str = "http://127.0.0.1:8091/v1"
    openai_api_key: SecretStr = SecretStr("local")
    # The longest silence of the upstream that is still taken for thinking.
    model_read_timeout_seconds: float = 60.0
    model_connect_timeout_seconds: float = 5.0
    # Items of one batch shard that are answered side by side.
    shard_concurrency: int = 4
