"""Wrapping every data key anew after the keyring got a new active key, while everything is served.

What the data keys seal stays as it is. Readers meet either wrapping; both open until the old key is taken away.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, Table, func, select, update

from libs.common.contracts.conversations import RewrapKeys
from libs.common.errors import ErrorCode, RetryableError
from libs.common.keyring import Keyring
from libs.common.keyring_watch import RELOAD_SECONDS
from libs.common.records.database import Database
from libs.common.records.tables import conversations, responses
from libs.common.tasks.jobs import JobRun
from services.conversations.encryption import DataKeys

_STEP_ROWS: Final = 200
_TABLES: Final = (conversations, responses)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    tenant_id: str
    id: str
    key: bytes


class Rotation:
    """Re-wraps the keys of all conversations and stored responses, of every tenant.

    Args:
        settle_seconds: after this, every process of this service wraps under the new key.
    """

    def __init__(
        self, database: Database, data_keys: DataKeys, keyring: Keyring, *, settle_seconds: float = 3 * RELOAD_SECONDS
    ) -> None:
        self._database = database
        self._keys = data_keys
        self._keyring = keyring
        self._settle_seconds = settle_seconds

    async def rewrap(self, request: RewrapKeys, job: JobRun) -> None:
        """Wrap anew what is not under the active key, twice: until it settled, a neighbour may have used the old one.

        Raises:
            RetryableError: SERVER_ERROR while this process has not read the keyring that is meant.
            PermanentError: DECRYPT_FAILED for a key that is damaged.
        """
        if self._keyring.active != request.key_id:
            message = "The keyring was changed again, or this process has not read it yet."
            raise RetryableError(ErrorCode.SERVER_ERROR, message, retry_after_seconds=2 * RELOAD_SECONDS)
        await self._rewrap_all(job)
        await asyncio.sleep(self._settle_seconds)
        await self._rewrap_all(job)

    async def _rewrap_all(self, job: JobRun) -> None:
        total = await self._database.read(_count)
        done = 0
        for table in _TABLES:
            after = ""
            while found := await self._database.read(partial(_page, table=table, after=after)):
                # On another thread: a key management service takes its time.
                stale = await asyncio.to_thread(self._rewrapped, found)
                await job.write(partial(_replace, table=table, stale=stale))
                after = found[-1].id
                done += len(found)
                await job.progress(done, max(done, total))

    def _rewrapped(self, found: list[_Wrapped]) -> list[tuple[_Wrapped, bytes]]:
        fresh = [(each, self._keys.rewrap(each.tenant_id, each.id, each.key)) for each in found]
        return [(each, key) for each, key in fresh if key is not None]


def _count(connection: Connection) -> int:
    return sum(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in _TABLES)


def _page(connection: Connection, table: Table, after: str) -> list[_Wrapped]:
    query = select(table.c.tenant_id, table.c.id, table.c.wrapped_key).where(table.c.id > after)
    return [_Wrapped(*row) for row in connection.execute(query.order_by(table.c.id).limit(_STEP_ROWS))]


def _replace(connection: Connection, table: Table, stale: list[tuple[_Wrapped, bytes]]) -> None:
    for old, key in stale:
        connection.execute(
            update(table)
            .where(table.c.tenant_id == old.tenant_id, table.c.id == old.id, table.c.wrapped_key == old.key)
            .values(wrapped_key=key)
        )
