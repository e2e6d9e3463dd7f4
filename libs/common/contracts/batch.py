"""What callers know of the batch service."""

from libs.common.contracts.base import JobSpec, Message, Queue


class BatchId(Message):
    """Names one batch."""

    batch_id: str


VALIDATE_BATCH = JobSpec("batch.validate", Queue.BATCH, BatchId)
FINALIZE_BATCH = JobSpec("batch.finalize", Queue.BATCH, BatchId)
EXPIRE_BATCH = JobSpec("batch.expire", Queue.BATCH, BatchId)
