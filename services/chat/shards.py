"""Batch items: the same pipeline, a shard of lines per job, each result into the batch's records as it comes.

Whatever an item does is its own result: one that fails has a line in the error file, and so has one that ends the
process that answers it. To find that one, a shard whose worker died is divided into a job for each item.
"""

import asyncio
from collections.abc import Sequence

from sqlalchemy import Connection

from libs.common import batch_jobs, keys
from libs.common.contracts.batch_lines import error_line, output_line
from libs.common.contracts.chat import BatchItem, JsonObject, ShardRequest
from libs.common.contracts.requests import embedding_page
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.keyring import Keyring
from libs.common.logs import get_logger
from libs.common.records import batches
from libs.common.records.batches import PendingItem
from libs.common.records.database import Database
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.wire import MessageSealer
from services.chat.pipeline import AnswerPipeline, renderer_of
from services.chat.rendering import Event

_log = get_logger(__name__)


class ShardRunner:
    """Answers shards of batches.

    Args:
        concurrency: items of one shard answered side by side.
    """

    def __init__(
        self, pipeline: AnswerPipeline, database: Database, keyring: Keyring, messages: MessageSealer, concurrency: int
    ) -> None:
        self._pipeline = pipeline
        self._database = database
        self._sealer = keyring.sealer(keys.BATCHES_PURPOSE)
        self._messages = messages
        self._concurrency = concurrency

    async def run(self, request: ShardRequest, job: JobRun) -> None:
        """Answer what is still pending; the run that answers the batch's last item has it finalised.

        Raises:
            RetryableError: an item may succeed later, and tries are left.
        """
        pending = await self._database.read(
            lambda connection: batches.pending_items(
                connection, job.tenant_id, request.batch_id, request.first, request.last
            )
        )
        if job.suspect and len(pending) > 1:
            await job.finish(lambda connection: self._divide(connection, request, pending, job))
        else:
            await self._answer(request, pending, job)
        job.nudge()

    async def _answer(self, request: ShardRequest, pending: Sequence[PendingItem], job: JobRun) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        done = 0

        async def one(item: PendingItem) -> None:
            nonlocal done
            async with slots:
                await self._item(request.batch_id, item, job)
            done += 1
            await job.progress(done, len(pending))

        outcomes = await asyncio.gather(*map(one, pending), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await job.finish(lambda connection: self._finalise_if_last(connection, request, job))

    def _finalise_if_last(self, connection: Connection, request: ShardRequest, job: JobRun) -> None:
        batch_jobs.finalize_if_done(connection, self._messages, job.tenant_id, request.batch_id)

    def _divide(
        self, connection: Connection, request: ShardRequest, pending: Sequence[PendingItem], job: JobRun
    ) -> None:
        positions = [item.position for item in pending]
        batch_jobs.divide_shard(connection, self._messages, job.tenant_id, request.batch_id, positions)

    async def _item(self, batch_id: str, pending: PendingItem, job: JobRun) -> None:
        context = (job.tenant_id, batch_id, str(pending.position))
        item = BatchItem.model_validate_json(self._sealer.open(pending.sealed_request, *context))
        try:
            line = output_line(batch_id, item.position, item.custom_id, await self._body(item, job))
            succeeded = True
        except PlatformError as error:
            if isinstance(error, RetryableError) and not job.is_last_error(error):
                raise
            line = error_line(batch_id, item.position, item.custom_id, error)
            succeeded = False
        sealed = self._sealer.seal(line, *context, "result")
        await self._database.write(
            lambda connection: batches.complete_item(
                connection, job.tenant_id, batch_id, item.position, succeeded=succeeded, sealed_result=sealed
            )
        )

    async def _body(self, item: BatchItem, job: JobRun) -> JsonObject:
        death = RetryableError(
            ErrorCode.SERVER_ERROR, "The processes that answered this request ended, each time; it is not tried again."
        )
        if job.suspect and job.is_last_error(death):
            raise death
        try:
            return await self._answered(item, job.tenant_id)
        except PlatformError:
            raise
        except Exception as error:
            _log.error("a batch item failed", position=item.position, exc_info=error)
            raise RetryableError(ErrorCode.SERVER_ERROR, "The server failed on this request.") from error

    async def _answered(self, item: BatchItem, tenant_id: str) -> JsonObject:
        if item.embed is not None:
            embedded = await self._pipeline.embedded(item.embed)
            return embedding_page(item.embed.model, embedded.vectors, embedded.tokens, encoding_format="float")
        if item.answer is None:
            raise PermanentError(ErrorCode.INVALID_VALUE, "The item holds no request.")
        renderer = renderer_of(item.answer)
        await self._pipeline.run(item.answer, renderer, tenant_id, _nobody_listens)
        return renderer.body()


def _nobody_listens(_events: list[Event]) -> None:
    """A batch item's events go nowhere."""
