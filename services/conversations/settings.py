"""The conversations service's settings."""

from libs.common.settings import WorkerSettings


class ConversationsSettings(WorkerSettings):
    """What the conversations service reads from the environment."""

    service_name: str = "conversations"
    # How much of a conversation goes into the prompt of its next turn, by estimate.
    history_tokens: int = 6000

    @property
    def turn_seconds(self) -> float:
        """How long a turn may last whose worker died: a little more than anybody waits for its answer."""
        return self.interactive_deadline_seconds + 10.0
