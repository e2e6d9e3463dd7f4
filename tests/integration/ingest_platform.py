"""The ingest service as tests meet it: its records, blobs, messages and chunks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, insert

from libs.common import keys
from libs.common.blobs import BlobStore
from libs.common.keyring import Keyring
from libs.common.rag.chunks import RetrievedChunk
from libs.common.rag.vectors import ChunkCollection
from libs.common.records import files, vector_store_files, vector_stores
from libs.common.records.database import Database, epoch_now
from libs.common.records.files import NewFile
from libs.common.records.tables import tenants
from libs.common.records.vector_store_files import AttachedFile, FileKey
from libs.common.tasks.wire import MessageSealer
from libs.local.running import Stack
from services.gateway import attachments
from services.gateway.attachments import Wanted
from services.ingest.settings import IngestSettings

TENANT, STORE = "tenant_a", "vs_1"
AUTO: Final = {"type": "auto"}
_SHARED: Final = ("qdrant_url", "embedding_model", "embedding_dimensions")


@contextmanager
def database_of(stack: Stack) -> Iterator[Database]:
    """The stack's database, with a tenant and a vector store of theirs."""
    environment = stack.environment("ingest")
    model = environment["EMBEDDING_MODEL"]

    def create(connection: Connection) -> None:
        connection.execute(insert(tenants).values(id=TENANT, name="a", created_at=epoch_now()))
        vector_stores.create(connection, TENANT, store_id=STORE, name="", metadata={}, embedding_model=model)

    with closing(Database(environment["DATABASE_URL"])) as opened:
        opened.write_now(create)
        yield opened


@dataclass(frozen=True, slots=True)
class Platform:
    """What the test shares with the service: records, blobs, messages and chunks."""

    stack: Stack
    database: Database
    blobs: BlobStore
    messages: MessageSealer
    keyring: Keyring
    chunks: ChunkCollection

    async def upload(self, name: str, text: str, *, filename: str | None = None) -> str:
        async def content() -> AsyncIterator[bytes]:
            yield text.encode()

        info = await self.blobs.write(TENANT, f"blob_{name}", content())
        new = NewFile(f"file-{name}", filename or f"{name}.md", "assistants", info.bytes, info.sha256, f"blob_{name}")
        await self.database.write(lambda connection: files.insert(connection, TENANT, new))
        return new.id

    async def attach(self, file_id: str, **options: Any) -> AttachedFile:
        wanted = Wanted(file_id, **({"attributes": {}, "chunking": AUTO} | options))
        attached: AttachedFile = await self.change(
            attachments.attach_file, tenant_id=TENANT, store_id=STORE, wanted=wanted
        )
        return attached

    async def change(self, query: Callable[..., Any], **arguments: Any) -> Any:
        return await self.database.write(lambda connection: query(connection, self.messages, **arguments))

    async def file(self, file_id: str) -> AttachedFile:
        key = FileKey(TENANT, STORE, file_id)
        return await self.database.read(lambda connection: vector_store_files.get(connection, key))

    async def ended(self, file_id: str) -> AttachedFile:
        await eventually(lambda: self._has_ended(file_id))
        return await self.file(file_id)

    async def _has_ended(self, file_id: str) -> bool:
        return (await self.file(file_id)).status != "in_progress"

    async def stored(self, file_id: str, version: int = 1) -> list[RetrievedChunk]:
        return await self.chunks.scroll_file(TENANT, STORE, file_id, version)

    async def count(self, file_id: str) -> int:
        return await self.chunks.count(TENANT, vector_store_id=STORE, file_id=file_id)


@asynccontextmanager
async def platform_of(stack: Stack, database: Database) -> AsyncIterator[Platform]:
    """What a running ingest service uses, opened beside it."""
    environment = stack.environment("ingest")
    keyring = Keyring.parse(await asyncio.to_thread(Path(environment["KEYRING_FILE"]).read_text))
    given = {name: value for name in _SHARED if (value := environment.get(name.upper()))}
    settings = IngestSettings.model_validate(given)
    chunks = ChunkCollection.connect(
        settings.qdrant_url, model=settings.embedding_model, dimension=settings.embedding_dimensions
    )
    blobs = BlobStore.open(environment["BLOBS_URL"], keyring.segment_sealer(keys.FILES_PURPOSE))
    yield Platform(stack, database, blobs, MessageSealer(keyring), keyring, chunks)
    await chunks.aclose()


async def eventually(holds: Callable[[], Any]) -> None:
    """Wait until something holds, a minute at most."""
    give_up_at = time.monotonic() + 60
    while not await holds():
        assert time.monotonic() < give_up_at, "it did not come true in time"
        await asyncio.sleep(0.05)
