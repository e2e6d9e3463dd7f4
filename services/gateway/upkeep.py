"""What one gateway at a time clears away."""

import asyncio
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from libs.common import reconciling
from libs.common.errors import PlatformError
from libs.common.logs import get_logger
from libs.common.records import files, idempotency, uploads
from libs.common.records.database import Database
from libs.common.tasks.wire import MessageSealer
from services.gateway import attachments

_log = get_logger(__name__)
_ROUND_SECONDS: Final = 60.0
_ROUND_ROWS: Final = 5_000
_ROUND_FILES: Final = 100


class Upkeep:
    """Deletes files whose time is over, ends uploads that were never completed, and forgets old requests.

    Args:
        holder: a name for this process in the lease row.
    """

    def __init__(self, database: Database, messages: MessageSealer, *, holder: str) -> None:
        self._database = database
        self._messages = messages
        self._holder = holder
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with a first round at once."""
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """Stop; the rest is for the next process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._database.write(self._round)
            except (PlatformError, SQLAlchemyError) as error:
                _log.warning("what has expired could not be cleared away", error=type(error).__name__)
            await asyncio.sleep(_ROUND_SECONDS)

    def _round(self, connection: Connection) -> None:
        if reconciling.take_lease(connection, "upkeep", self._holder, seconds=2 * _ROUND_SECONDS):
            idempotency.clear_expired(connection, limit=_ROUND_ROWS)
            self._end_uploads(connection)
            for tenant_id, file_id in files.expired(connection, limit=_ROUND_FILES):
                attachments.delete_file(connection, self._messages, tenant_id, file_id)

    def _end_uploads(self, connection: Connection) -> None:
        for tenant_id, upload_id, blob_ids in uploads.expire(connection, limit=_ROUND_FILES):
            attachments.purge_blobs(connection, self._messages, tenant_id, upload_id, blob_ids)
