"""The batch service's settings."""

from libs.common.settings import RetrievalSettings, WorkerSettings
from services.batch.lines import Offer


class BatchSettings(WorkerSettings, RetrievalSettings):
    """What the batch service reads from the environment."""

    service_name: str = "batch"
    # Each slot holds some megabytes of a file, and SQL takes the work of only a few.
    worker_concurrency: int = 4

    # As the gateway's: what a body may name.
    chat_models: str = "docent-extractive"

    def offer(self) -> Offer:
        """The models that a batch's requests may name, and the one of those that name none."""
        names = [name for listed in self.chat_models.split(",") if (name := listed.strip())]
        return Offer(
            lambda name: "*" in names or name in names,
            self.embedding_model,
            self.embedding_dimensions,
            default_chat_model=next((name for name in names if name != "*"), None),
        )
