"""The ingest service: makes files searchable, and clears away what was deleted.

Consumes the queue `ingest`. Run by `python -m services.ingest.main`.
"""

from functools import partial
from typing import Final

from libs.common import keys
from libs.common.blobs import BlobStore
from libs.common.cache.embeddings import CachedEmbedders
from libs.common.cache.pacing import pace_of
from libs.common.cache.store import Cache
from libs.common.configuration import configured
from libs.common.contracts.base import Queue
from libs.common.contracts.ingest import (
    IMPORT_FILE,
    INGEST_FILE,
    PURGE_BLOB,
    PURGE_FILE,
    PURGE_STORE,
    PURGE_STRAYS,
    REINDEX_STORE,
    Place,
)
from libs.common.outbound.fetching import Outbound
from libs.common.rag.collections import Collections
from libs.common.rag.embedder import embedders_of
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.ingest.adapters import AttachedFiles, SealedChunkIndex
from services.ingest.importing import Importer
from services.ingest.parsing import Parser
from services.ingest.pipeline import Pipeline
from services.ingest.reindex_records import StoreRecords
from services.ingest.reindexing import Reindexing
from services.ingest.settings import IngestSettings

# Small files go to the model together; what asks for so much less often is quicker in all.
_EMBEDDING_LINGER_SECONDS: Final = 0.02


def build(settings: IngestSettings) -> Worker:
    """The service's worker with its handlers."""
    database = Database(settings.database_url)
    parser = Parser(settings.parse_children, settings.ocr_pages)

    async def close() -> None:
        await embeddings.aclose()
        await cache.aclose()
        await index.aclose()
        parser.close()

    worker = Worker(settings, [Queue.INGEST], database=database, shutdown=close)
    cache = Cache(settings, worker.keyring)
    pace = partial(pace_of, settings, waits=True)
    models = embedders_of(settings, concurrency=settings.embedding_concurrency, pace_of=pace)
    embeddings = CachedEmbedders(
        models, cache, settings.embedding_cache_seconds, linger_seconds=_EMBEDDING_LINGER_SECONDS
    )
    index = SealedChunkIndex(Collections.connect(settings), worker.keyring.sealer(keys.CHUNKS_PURPOSE))
    blobs = BlobStore.open(settings.blobs_url, worker.keyring.segment_sealer(keys.FILES_PURPOSE))
    pipeline = Pipeline(AttachedFiles(database, worker.messages), blobs, parser, embeddings, index)
    reindexing = Reindexing(StoreRecords(database), pipeline)
    worker.performs(INGEST_FILE, pipeline.ingest)
    outbound = Outbound(settings.import_policy())
    importer = Importer(outbound, blobs, settings.import_max_bytes, settings.import_seconds)
    worker.performs(IMPORT_FILE, importer.run)
    worker.performs(PURGE_FILE, pipeline.purge_file)
    worker.performs(PURGE_STORE, pipeline.purge_store)
    worker.performs(REINDEX_STORE, reindexing.reindex)
    worker.performs(PURGE_STRAYS, reindexing.purge_strays)
    worker.performs(PURGE_BLOB, pipeline.purge_blob)
    # Not required: jobs wait in the ledger for the vector database, wherever they are taken up.
    worker.readiness.add("qdrant", lambda: index.check(Place(settings.embedding_model)), required=False)
    return worker


if __name__ == "__main__":
    configured(IngestSettings, build).run()
