"""Importing a file from a URL: its bytes are counted and sealed as they come, and recorded when all are there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx

from libs.common.blobs import BlobStore
from libs.common.contracts.ingest import ImportFile
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.ledger import LeaseLostError
from libs.common.outbound.fetching import Outbound, refuse_unless_ok
from libs.common.records import files
from libs.common.records.files import NewFile
from libs.common.tasks.jobs import JobRun

# Of earlier attempts, whose workers died with a blob stored and not recorded.
_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Importer:
    """Fetches files into the blob store.

    Args:
        max_bytes: of one file.
        seconds: for one file, from the first byte to the last.
    """

    outbound: Outbound
    blobs: BlobStore
    max_bytes: int
    seconds: float

    async def run(self, request: ImportFile, job: JobRun) -> None:
        """Fetch, store and record one file.

        Raises:
            PermanentError: INVALID_URL, BODY_TOO_LARGE or EMPTY_FILE.
            RetryableError: DOWNLOAD_FAILED, or the store's.
        """
        for attempt in range(max(1, job.attempt - _ATTEMPTS), job.attempt):
            await self.blobs.delete(job.tenant_id, _blob_id(request, attempt))
        # One for each attempt: a worker that was given up may still be writing its own.
        blob_id = _blob_id(request, job.attempt)
        new = await self._fetched(request, job, blob_id)
        try:
            await job.finish(lambda connection: files.insert(connection, job.tenant_id, new))
        except LeaseLostError:
            # After any other error the commit may have happened, and a record must never lose its bytes.
            await self._discard(job, blob_id)
            raise

    async def _fetched(self, request: ImportFile, job: JobRun, blob_id: str) -> NewFile:
        try:
            async with asyncio.timeout(self.seconds), self.outbound.request("GET", request.url) as response:
                refuse_unless_ok(response)
                stored = await self.blobs.write(job.tenant_id, blob_id, self._content(response, job))
        except TimeoutError:
            message = f"The file did not arrive within {self.seconds:g} seconds."
            raise RetryableError(ErrorCode.DOWNLOAD_FAILED, message) from None
        if stored.bytes == 0:
            await self._discard(job, blob_id)
            raise PermanentError(ErrorCode.EMPTY_FILE, "The file is empty (0 bytes).", param="url")
        return NewFile(request.file_id, request.filename, request.purpose, stored.bytes, stored.sha256, blob_id)

    async def _content(self, response: httpx.Response, job: JobRun) -> AsyncIterator[bytes]:
        announced = int(response.headers.get("content-length", 0))
        self._require_size(announced)
        done = 0
        async for data in response.aiter_raw():
            done += len(data)
            self._require_size(done)
            await job.progress(done, max(announced, done))
            yield data

    async def _discard(self, job: JobRun, blob_id: str) -> None:
        with suppress(RetryableError):
            await self.blobs.delete(job.tenant_id, blob_id)

    def _require_size(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            message = f"The file is larger than {self.max_bytes} bytes."
            raise PermanentError(ErrorCode.BODY_TOO_LARGE, message, param="url")


def _blob_id(request: ImportFile, attempt: int) -> str:
    return f"blob_{request.file_id.removeprefix('file-')}_{attempt}"
