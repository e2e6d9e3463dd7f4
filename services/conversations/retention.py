"""Destroying what is past its time: a job that submits its own successor, so that the ledger always holds one."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final

from sqlalchemy import Connection, Row, delete, select
from sqlalchemy.exc import SQLAlchemyError

from libs.common import ledger, logs, reconciling
from libs.common.contracts.base import Empty
from libs.common.contracts.conversations import CLEAN_EXPIRED
from libs.common.errors import PlatformError
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import conversations, jobs, responses
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from services.conversations import job_requests, store

# No tenant's: whoever asks for their jobs does not see it.
PLATFORM: Final = "platform"
_STEP_ROWS: Final = 100
_LOOK_SECONDS: Final = 60.0
_KEEP_DONE_SECONDS: Final = 86_400.0

_log = logs.get_logger(__name__)


class Retention:
    """Crypto-shreds expired conversations and stored responses, every so often.

    Args:
        every_seconds: from the end of one round to the next.
        holder: a name for this process in the lease row that keeps two from beginning at once.
    """

    def __init__(self, database: Database, messages: MessageSealer, *, every_seconds: float, holder: str) -> None:
        self._database = database
        self._messages = messages
        self._every_seconds = every_seconds
        self._holder = holder
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See to it, from now on, that there is a next round: also after one that failed for good."""
        self._watching = asyncio.create_task(self._watch(), name="retention")

    async def stop(self) -> None:
        """Stop looking; the next round waits in the ledger."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        while True:
            try:
                await self._database.write(self.ensure_one)
            except (PlatformError, SQLAlchemyError) as error:
                _log.warning("the next cleaning could not be made sure of", error=type(error).__name__)
            await asyncio.sleep(_LOOK_SECONDS)

    def ensure_one(self, connection: Connection) -> None:
        """Submit a round unless there is one waiting or running."""
        # The lease's row makes processes look one after the other, so that no two of them begin.
        if not reconciling.take_lease(connection, CLEAN_EXPIRED.name, self._holder, seconds=0.0):
            return
        if not job_requests.under_way(connection, PLATFORM, CLEAN_EXPIRED.name, [CLEAN_EXPIRED.name]):
            self._submit(connection, delay_seconds=0.0)

    async def clean(self, _request: Empty, job: JobRun) -> None:
        """One round, in small transactions; the last one also submits the next round."""
        destroyed = 0
        while found := await self._database.read(_expired):
            await job.write(partial(_destroy, found=found))
            destroyed += len(found)
            await job.progress(destroyed, destroyed)
        await job.finish(self._next_round)
        if destroyed:
            _log.info("expired conversations and responses destroyed", count=destroyed)

    def _next_round(self, connection: Connection) -> None:
        self._submit(connection, delay_seconds=self._every_seconds)
        done = (
            jobs.c.tenant_id == PLATFORM,
            jobs.c.name == CLEAN_EXPIRED.name,
            jobs.c.state == ledger.SUCCEEDED,
            jobs.c.finished_at < epoch_now() - _KEEP_DONE_SECONDS,
        )
        connection.execute(delete(jobs).where(*done))

    def _submit(self, connection: Connection, *, delay_seconds: float) -> None:
        submit(
            connection,
            self._messages,
            CLEAN_EXPIRED,
            Empty(),
            tenant_id=PLATFORM,
            resource_id=CLEAN_EXPIRED.name,
            delay_seconds=delay_seconds,
        )


def _expired(connection: Connection) -> list[tuple[str, str, str]]:
    """(table, tenant, id) of some that have expired."""
    found: list[tuple[str, str, str]] = []
    for table in (conversations, responses):
        query = select(table.c.tenant_id, table.c.id).where(table.c.expires_at <= epoch_now())
        rows: Iterable[Row[tuple[str, str]]] = connection.execute(query.order_by(table.c.expires_at).limit(_STEP_ROWS))
        found += [(table.name, row.tenant_id, row.id) for row in rows]
    return found


def _destroy(connection: Connection, found: Iterable[tuple[str, str, str]]) -> None:
    for name, tenant_id, row_id in found:
        if name == conversations.name:
            store.remove_expired(connection, tenant_id, row_id)
        else:
            expired = responses.c.expires_at <= epoch_now()
            mine = (responses.c.tenant_id == tenant_id, responses.c.id == row_id)
            connection.execute(delete(responses).where(*mine, expired))
