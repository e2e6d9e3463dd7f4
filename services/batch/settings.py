"""The batch service's settings."""

from libs.common.settings import RetrievalSettings, WorkerSettings


class BatchSettings(WorkerSettings, RetrievalSettings):
    """What the batch service reads from the environment."""

    service_name: str = "batch"
    # Each slot holds some megabytes of a file, and SQL takes the work of only a few.
    worker_concurrency: int = 4

    # As the gateway's: what a body may name.
    chat_models: str = "docent-extractive"

    def allows_chat_model(self, name: str) -> bool:
        """Whether a batch's request may name this chat model."""
        names = [listed.strip() for listed in self.chat_models.split(",")]
        return "*" in names or name in names
