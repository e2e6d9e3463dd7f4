"""The conversations service's settings."""

from typing import Literal

from libs.common.settings import WorkerSettings


class ConversationsSettings(WorkerSettings):
    """What the conversations service reads from the environment."""

    service_name: str = "conversations"
    worker_memory_bytes: int = 384 << 20
    # How much of a conversation goes into the prompt of its next turn, by estimate.
    history_tokens: int = 6000
    # Whether what no longer fits is summarised by the model that answers; `auto`: not by the extractive one.
    summaries: Literal["auto", "on", "off"] = "auto"
    # From one look for expired conversations and responses to the next.
    clean_interval_seconds: float = 600.0
    # Where data keys are wrapped: `module:callable`, called with the keyring; by default, the keyring itself.
    key_wrapper: str = "services.conversations.wrapping:KeyringWrapper"

    @property
    def turn_seconds(self) -> float:
        """How long a turn may last whose worker died: a little more than anybody waits for its answer."""
        return self.interactive_deadline_seconds + 10.0
