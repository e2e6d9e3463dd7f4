"""The batch service: checks the input of batches, ends those whose window is over, and writes their files.

Run by `python -m services.batch.main`. It consumes the jobs of the queue `batch`; the items themselves are answered by
the chat service.
"""

import asyncio
from contextlib import suppress

from sqlalchemy import Connection

from libs.common import batch_jobs, keys
from libs.common.blobs import BlobStore
from libs.common.configuration import configured
from libs.common.contracts.base import Queue
from libs.common.contracts.batch import EXPIRE_BATCH, FINALIZE_BATCH, VALIDATE_BATCH, BatchId
from libs.common.records.database import Database
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.worker import Worker
from services.batch import pipeline
from services.batch.ports import BatchEndedError
from services.batch.settings import BatchSettings
from services.batch.store import IntakeRecords, ResultRecords


def create_worker(settings: BatchSettings) -> Worker:
    """The service with its handlers, ready to run."""
    database = Database(settings.database_url)
    worker = Worker(settings, [Queue.BATCH], database=database, shutdown=lambda: asyncio.to_thread(database.close))
    blobs = BlobStore.open(settings.blobs_url, worker.keyring.segment_sealer(keys.FILES_PURPOSE))
    sealer = worker.keyring.sealer(keys.BATCHES_PURPOSE)
    offer = settings.offer()

    async def validate(request: BatchId, job: JobRun) -> None:
        with suppress(BatchEndedError):
            await pipeline.take_in(
                IntakeRecords(database, worker.messages, job, request.batch_id), blobs, sealer, offer
            )

    async def finalize(request: BatchId, job: JobRun) -> None:
        with suppress(BatchEndedError):
            await pipeline.write_results(ResultRecords(database, job, request.batch_id), blobs, sealer)

    async def expire(request: BatchId, job: JobRun) -> None:
        def last_step(connection: Connection) -> None:
            batch_jobs.end_early(connection, worker.messages, job.tenant_id, request.batch_id, "expired")

        await job.finish(last_step)

    worker.performs(VALIDATE_BATCH, validate)
    worker.performs(FINALIZE_BATCH, finalize)
    worker.performs(EXPIRE_BATCH, expire)
    return worker


if __name__ == "__main__":
    configured(BatchSettings, create_worker).run()
