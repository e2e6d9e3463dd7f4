"""The records of one batch, as one attempt at one of its jobs may change them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from libs.common import batch_jobs
from libs.common.contracts.batch import EXPIRE_BATCH
from libs.common.errors import not_found
from libs.common.records import batch_results, batches
from libs.common.records.batch_results import EndedItem, ResultFile
from libs.common.records.batches import NewItem
from libs.common.records.database import Database
from libs.common.records.tables import files
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.wire import MessageSealer
from services.batch.lines import Problem
from services.batch.ports import BatchEndedError, Closing, Input

# Few, since one result may hold megabytes of embeddings.
_PAGE_ITEMS: Final = 16


class IntakeRecords:
    """A batch under validation, by its job."""

    def __init__(self, database: Database, messages: MessageSealer, job: JobRun, batch_id: str) -> None:
        self._database = database
        self._messages = messages
        self._job = job
        self._tenant_id = job.tenant_id
        self._batch_id = batch_id

    async def begin(self) -> Input:
        await self._job.write(
            lambda connection: _require(batches.clear_items(connection, self._tenant_id, self._batch_id))
        )
        return await self._database.read(self._input)

    def _input(self, connection: Connection) -> Input:
        batch = batches.get(connection, self._tenant_id, self._batch_id)
        file = _file(connection, self._tenant_id, batch.input_file_id)
        return Input(self._tenant_id, self._batch_id, batch.endpoint, file.blob_id, file.bytes)

    async def add(self, items: Sequence[NewItem]) -> None:
        await self._job.write(
            lambda connection: _require(batches.add_items(connection, self._tenant_id, self._batch_id, items))
        )

    async def accept(self, total: int) -> None:
        await self._job.finish(
            lambda connection: _require(
                batch_jobs.start_shards(connection, self._messages, self._tenant_id, self._batch_id, total)
            )
        )

    async def refuse(self, problems: Sequence[Problem]) -> None:
        errors = [asdict(problem) for problem in problems]
        await self._job.finish(
            _ending(
                self._tenant_id,
                self._batch_id,
                lambda connection: batches.refuse(connection, self._tenant_id, self._batch_id, errors),
            )
        )


class ResultRecords:
    """A batch whose files are to be written, by its job."""

    def __init__(self, database: Database, job: JobRun, batch_id: str) -> None:
        self._database = database
        self._job = job
        self._tenant_id = job.tenant_id
        self._batch_id = batch_id

    async def begin(self) -> Closing:
        return await self._database.read(self._closing)

    def _closing(self, connection: Connection) -> Closing:
        _require(batch_results.closing_outcome(batches.get(connection, self._tenant_id, self._batch_id)) is not None)
        found = batches.counts(connection, self._tenant_id, [self._batch_id]).get(self._batch_id, batches.Counts())
        return Closing(self._tenant_id, self._batch_id, found.completed, found.failed)

    async def page(self, *, succeeded: bool, after: int) -> list[EndedItem]:
        items = await self._database.read(
            lambda connection: batch_results.ended_items(
                connection, self._tenant_id, self._batch_id, succeeded=succeeded, after=after, limit=_PAGE_ITEMS
            )
        )
        if items is None:
            raise BatchEndedError
        return items

    async def close(self, output: ResultFile | None, errors: ResultFile | None) -> None:
        await self._job.finish(
            _ending(
                self._tenant_id,
                self._batch_id,
                lambda connection: batch_results.close(
                    connection, self._tenant_id, self._batch_id, output=output, errors=errors
                ),
            )
        )


def _ending(tenant_id: str, batch_id: str, end: Callable[[Connection], bool]) -> Callable[[Connection], None]:
    """A last step after which the batch cannot expire any more."""

    def last_step(connection: Connection) -> None:
        # Jobs are locked before batches, by everybody.
        batch_jobs.drop_jobs(connection, tenant_id, batch_id, EXPIRE_BATCH)
        _require(end(connection))

    return last_step


def _require(changed: bool) -> None:
    if not changed:
        raise BatchEndedError


def _file(connection: Connection, tenant_id: str, file_id: str) -> Row[Any]:
    row = connection.execute(select(files).where(files.c.id == file_id, files.c.tenant_id == tenant_id)).one_or_none()
    if row is None:
        raise not_found("file", file_id)
    return row
