"""Building a vector store anew, with another embedding model or the same, while it answers as before.

Shadow: every file that answers is read, embedded and stored in the goal's collection. Compare: nothing is missing
there. Switch: one commit. Then what the store has elsewhere is purged. A mark on each file's record says how far it
came, so a job whose worker dies goes on where it was.
"""

from dataclasses import dataclass

from libs.common.contracts.ingest import PurgeStrays, ReindexStore
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from services.ingest.pipeline import Pipeline
from services.ingest.ports import Attachment, Job, ReindexRecords, Target


@dataclass(frozen=True, slots=True)
class _Files:
    """Progress in files, whatever is told of the chunks of one."""

    job: Job
    done: int
    total: int

    async def progress(self, _done: int, _total: int) -> None:
        await self.job.progress(self.done, self.total)


@dataclass(frozen=True, slots=True)
class Reindexing:
    """The steps of a reindex over the ports of the pipeline."""

    records: ReindexRecords
    pipeline: Pipeline

    async def reindex(self, request: ReindexStore, job: Job) -> None:
        """Move a vector store to the goal, unless it was deleted or the job given up meanwhile.

        Raises:
            PermanentError: a file can no longer be read; the store stays as it is.
            RetryableError: a store or an embedding model is away, or chunks are missing at the goal.
        """
        index, store_id = self.pipeline.index, request.vector_store_id
        store = await self.records.store(job.tenant_id, store_id)
        if store is None:
            await index.delete_store(job.tenant_id, store_id)
            return
        if store.reindex_job_id != job.id:
            return
        if store.place != request.goal:
            if (await self.records.progress(job.tenant_id, store_id)).done == 0:
                await index.delete_store(job.tenant_id, store_id, keep=store.place)  # what another one left
            if not await self._moved(request, job):
                return
        await index.delete_store(job.tenant_id, store_id, keep=request.goal)
        await self.records.finish(job, store_id)

    async def purge_strays(self, request: PurgeStrays, job: Job) -> None:
        """Remove a vector store's chunks from everywhere but its place, unless it is being built anew."""
        store = await self.records.store(job.tenant_id, request.vector_store_id)
        if store is None or store.reindex_job_id is None:
            keep = None if store is None else store.place
            await self.pipeline.index.delete_store(job.tenant_id, request.vector_store_id, keep=keep)

    async def _moved(self, request: ReindexStore, job: Job) -> bool:
        """Shadow, compare and switch; False if the store was deleted."""
        store_id = request.vector_store_id
        while True:
            while file_ids := await self.records.unbuilt(job.tenant_id, store_id):
                so_far = await self.records.progress(job.tenant_id, store_id)
                for number, file_id in enumerate(file_ids):
                    files = _Files(job, so_far.done + number, so_far.total)
                    await self._build(request, job, files, file_id)
            if await self.records.store(job.tenant_id, store_id) is None:
                await self.pipeline.index.delete_store(job.tenant_id, store_id)
                return False
            await self._compare(request, job)
            if await self.records.switch(job, store_id, request.goal):
                return True

    async def _build(self, request: ReindexStore, job: Job, files: _Files, file_id: str) -> None:
        """Store the live version of one file at the goal, and mark it."""
        found = await self.pipeline.records.attachment(job.tenant_id, request.vector_store_id, file_id)
        if found is None or found.live_version == 0:
            return
        target = Target(job.tenant_id, request.vector_store_id, file_id, found.live_version)
        try:
            chunked = await self.pipeline.chunked(files, target, found)
        except PermanentError as error:
            raise PermanentError(error.code, f"{file_id} stands in the way: {error.message}") from error
        if chunked is None:
            return
        index = self.pipeline.index
        await index.delete_older(target, from_position=len(chunked.chunks), place=request.goal)
        made = await self.pipeline.stored(files, request.goal, target, found, chunked)
        count = await index.count(request.goal, job.tenant_id, request.vector_store_id, target)
        if count != made.chunks:
            raise _incomplete(made.chunks, count)
        if not await self.records.mark(job, target, found, made.chunks, made.usage_bytes):
            await self._clear(request, target)

    async def _clear(self, request: ReindexStore, target: Target) -> None:
        """Leave nothing at the goal of a file that was detached while it was built."""
        now: Attachment | None = await self.pipeline.records.attachment(
            target.tenant_id, target.vector_store_id, target.file_id
        )
        if now is None:
            await self.pipeline.index.delete_older(target, from_position=0, place=request.goal)

    async def _compare(self, request: ReindexStore, job: Job) -> None:
        """Make sure that what the marks say is there; more may be, of files that were detached just now."""
        expected = (await self.records.progress(job.tenant_id, request.vector_store_id)).chunks
        count = await self.pipeline.index.count(request.goal, job.tenant_id, request.vector_store_id)
        if count < expected:
            await self.records.forget(job, request.vector_store_id)
            raise _incomplete(expected, count)


def _incomplete(expected: int, found: int) -> RetryableError:
    message = f"Of {expected} chunks {found} were found after they had been stored; the store is built once more."
    return RetryableError(ErrorCode.SERVER_ERROR, message)
