"""The text of a file in a vector store, put together from the chunks that are searched."""

from collections.abc import Iterable, Iterator
from functools import partial

import orjson
from sqlalchemy import Connection

from libs.common import keys
from libs.common.contracts.chat import JsonObject
from libs.common.contracts.file_content import FileText, ReadFile
from libs.common.contracts.ingest import Place
from libs.common.keyring import Keyring
from libs.common.rag.chunks import RetrievedChunk
from libs.common.rag.collections import Collections
from libs.common.rag.vectors import CollectionMissingError
from libs.common.records import vector_store_files, vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_store_files import FileKey
from libs.common.tasks.replies import Reply


class FileContents:
    """Reads the chunks of the version that answers."""

    def __init__(self, database: Database, collections: Collections, keyring: Keyring) -> None:
        self._database = database
        self._collections = collections
        self._sealer = keyring.sealer(keys.CHUNKS_PURPOSE)

    async def read(self, request: ReadFile, reply: Reply[FileText]) -> None:
        """The file's text.

        Raises:
            PermanentError: NOT_FOUND; DECRYPT_FAILED for a damaged chunk, since a text with a hole looks whole.
            RetryableError: RETRIEVAL_UNAVAILABLE.
        """
        key = FileKey(reply.tenant_id, request.vector_store_id, request.file_id)
        chunks = await self._chunks(key)
        contents = [self._content(key, chunk) for chunk in chunks]
        await reply.done(FileText(pieces=tuple(without_overlap(contents))))

    async def _chunks(self, key: FileKey) -> list[RetrievedChunk]:
        version, place = await self._database.read(partial(_live_at, key=key))
        if version == 0:
            return []
        found = await self._scrolled(key, version, place)
        now = await self._database.read(partial(_live_at, key=key))
        # The chunks may have been leaving that place, or the version another's way, while they were read.
        return found if now == (version, place) else await self._scrolled(key, *now)

    async def _scrolled(self, key: FileKey, version: int, place: Place) -> list[RetrievedChunk]:
        try:
            collection = self._collections.at(place)
            return await collection.scroll_file(key.tenant_id, key.vector_store_id, key.file_id, version)
        except CollectionMissingError:
            return []  # nothing was ever stored

    def _content(self, key: FileKey, chunk: RetrievedChunk) -> JsonObject:
        context = (key.tenant_id, key.vector_store_id, key.file_id, str(chunk.version), str(chunk.position))
        content: JsonObject = orjson.loads(self._sealer.open(chunk.sealed, *context))
        return content


def _live_at(connection: Connection, key: FileKey) -> tuple[int, Place]:
    """The version that answers, and where its chunks are."""
    attached = vector_store_files.get(connection, key)
    store = vector_stores.get(connection, key.tenant_id, key.vector_store_id)
    return attached.live_version, store.place


def without_overlap(contents: Iterable[JsonObject]) -> Iterator[str]:
    """The texts of chunks in order, each without what the one before it ended with."""
    end = 0
    for content in contents:
        text = content["text"][max(0, end - content["start"]) :]
        end = max(end, content["end"])
        if text:
            yield text
