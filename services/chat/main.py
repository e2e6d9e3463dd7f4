"""The chat service: answers, searches and embeddings.

Run by `python -m services.chat.main`. Consumes the queue `chat`, where people wait, and `chat_jobs`, batch items that
come after them. Needs the model upstream, the vector store, the database (reads of records, jobs) and both Redis.
"""

from libs.common.contracts.background import ANSWER_BACKGROUND
from libs.common.contracts.base import Queue
from libs.common.contracts.chat import ANSWER, ANSWER_SHARD, EMBED, SEARCH
from libs.common.rag.embedder import Embedder
from libs.common.rag.vectors import ChunkCollection
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.chat.background import BackgroundAnswers
from services.chat.completion import UpstreamCompleter
from services.chat.pipeline import AnswerPipeline
from services.chat.retrieval import HybridRetriever
from services.chat.settings import ChatSettings
from services.chat.shards import ShardRunner


def main() -> None:
    """Serve until told to stop."""
    settings = ChatSettings()
    database = Database(settings.database_url)
    embedder = Embedder(
        settings.embedding_base_url,
        settings.embedding_api_key.get_secret_value(),
        model=settings.embedding_model,
        dimension=settings.embedding_dimensions,
        concurrency=8,
    )
    collection = ChunkCollection.connect(
        settings.qdrant_url,
        model=settings.embedding_model,
        dimension=settings.embedding_dimensions,
        api_key=settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
    )
    completer = UpstreamCompleter(settings)

    async def close() -> None:
        await completer.aclose()
        await embedder.aclose()
        await collection.aclose()

    worker = Worker(
        settings,
        [Queue.CHAT, Queue.CHAT_JOBS],
        submits=[Queue.BATCH, Queue.CONVERSATIONS],
        database=database,
        shutdown=close,
    )
    pipeline = AnswerPipeline(HybridRetriever(database, collection, embedder, worker.keyring), completer, embedder)
    shards = ShardRunner(pipeline, database, worker.keyring, worker.messages, settings.shard_concurrency)
    worker.handles(ANSWER, pipeline.answer)
    worker.handles(SEARCH, pipeline.search)
    worker.handles(EMBED, pipeline.embed)
    worker.performs(ANSWER_SHARD, shards.run)
    worker.performs(ANSWER_BACKGROUND, BackgroundAnswers(pipeline, worker).run)
    worker.run()


if __name__ == "__main__":
    main()
