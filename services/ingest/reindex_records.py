"""The port `ReindexRecords` over the real records."""

from typing import Final

from sqlalchemy import Connection

from libs.common.contracts.ingest import Place
from libs.common.records import reindexing, vector_stores
from libs.common.records.database import Database
from libs.common.records.reindexing import Built
from libs.common.records.vector_store_files import FileKey
from services.ingest.ports import Attachment, Job, Reindexed, Store, Target

_FILES: Final = 100


class StoreRecords:
    """Vector stores that are built anew, and the marks on their files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, tenant_id: str, vector_store_id: str) -> Store | None:
        found = await self._database.read(lambda connection: vector_stores.find(connection, tenant_id, vector_store_id))
        return None if found is None else Store(found.place, found.reindex_job_id)

    async def progress(self, tenant_id: str, vector_store_id: str) -> Reindexed:
        now = await self._database.read(lambda connection: reindexing.progress(connection, tenant_id, vector_store_id))
        return Reindexed(now.total, now.done, now.chunks)

    async def unbuilt(self, tenant_id: str, vector_store_id: str) -> list[str]:
        return await self._database.read(
            lambda connection: reindexing.unbuilt(connection, tenant_id, vector_store_id, limit=_FILES)
        )

    async def mark(self, job: Job, target: Target, built: Attachment, chunks: int, usage_bytes: int) -> bool:
        marked = False

        def step(connection: Connection) -> None:
            nonlocal marked
            key = FileKey(target.tenant_id, target.vector_store_id, target.file_id)
            marked = reindexing.mark(connection, key, Built(target.version, built.attributes, chunks, usage_bytes))

        await job.write(step)
        return marked

    async def forget(self, job: Job, vector_store_id: str) -> None:
        await job.write(lambda connection: reindexing.forget(connection, job.tenant_id, vector_store_id))

    async def switch(self, job: Job, vector_store_id: str, goal: Place) -> bool:
        switched = False

        def step(connection: Connection) -> None:
            nonlocal switched
            switched = reindexing.switch(connection, job.tenant_id, vector_store_id, goal)

        await job.write(step)
        return switched

    async def finish(self, job: Job, vector_store_id: str) -> None:
        await job.finish(lambda connection: reindexing.finish(connection, job.tenant_id, vector_store_id))
