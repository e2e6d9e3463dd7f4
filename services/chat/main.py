"""The chat service: answers, searches and embeddings.

Run by `python -m services.chat.main`. Consumes the queue `chat`, where people wait, and `chat_jobs`, batch items that
come after them. Needs the model upstream, the vector store, the database (reads of records, jobs) and both Redis.
"""

from functools import partial

from libs.common import keys
from libs.common.blobs import BlobStore
from libs.common.cache.embeddings import CachedEmbedders
from libs.common.cache.pacing import pace_of
from libs.common.cache.store import Cache
from libs.common.configuration import configured
from libs.common.contracts.background import ANSWER_BACKGROUND
from libs.common.contracts.base import Queue
from libs.common.contracts.chat import ANSWER, ANSWER_SHARD, EMBED, SEARCH
from libs.common.contracts.compaction import COMPACT
from libs.common.contracts.completions import COMPLETE
from libs.common.contracts.conversations import SUMMARISE
from libs.common.contracts.file_content import READ_FILE
from libs.common.contracts.moderation import MODERATE
from libs.common.rag.collections import Collections
from libs.common.rag.embedder import embedders_of
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.chat.answer_cache import SharedAnswers
from services.chat.attached_files import AttachedFiles
from services.chat.background import BackgroundAnswers
from services.chat.caching import CachingAnswers
from services.chat.compaction import Compactions, Compactor
from services.chat.completion import UpstreamCompleter
from services.chat.file_content import FileContents
from services.chat.moderation import Moderation
from services.chat.pipeline import AnswerPipeline
from services.chat.preparing import Preparer
from services.chat.reranking import reranker_of
from services.chat.retrieval import HybridRetriever
from services.chat.rewriting import Rewriter
from services.chat.settings import ChatSettings
from services.chat.shards import ShardRunner
from services.chat.store_instructions import StoreInstructions
from services.chat.summaries import Summariser
from services.chat.text_completion import TextCompletions
from services.chat.upstream_moderation import moderated, moderator_of


def create_worker(settings: ChatSettings) -> Worker:
    """The service with its handlers, ready to run."""
    database = Database(settings.database_url)
    models = embedders_of(settings, concurrency=8, pace_of=partial(pace_of, settings, waits=False))
    collections = Collections.connect(settings)
    embedder = models[settings.embedding_model]
    upstream = UpstreamCompleter(settings)
    moderator = moderator_of(settings)
    reranker = reranker_of(settings)

    async def close() -> None:
        await upstream.aclose()
        await moderator.aclose()
        if reranker is not None:
            await reranker.aclose()
        await embedders.aclose()
        await collections.aclose()
        await cache.aclose()

    worker = Worker(
        settings,
        [Queue.CHAT, Queue.CHAT_JOBS],
        submits=[Queue.BATCH, Queue.CONVERSATIONS],
        database=database,
        shutdown=close,
    )
    cache = Cache(settings, worker.keyring)
    embedders = CachedEmbedders(models, cache, settings.embedding_cache_seconds)
    completer = moderated(upstream, moderator, settings)
    retriever = HybridRetriever(database, collections, embedders, worker.keyring, settings.relevance_gates, reranker)
    compactions = Compactions(worker.keyring)
    blobs = BlobStore.open(settings.blobs_url, worker.keyring.segment_sealer(keys.FILES_PURPOSE))
    files = AttachedFiles(database, blobs, settings.max_attached_bytes)
    preparer = Preparer(StoreInstructions(database), compactions, files, context_tokens=settings.context_tokens)
    rewriter = Rewriter(completer) if settings.rewrite_questions else None
    pipeline = AnswerPipeline(retriever, completer, embedder, preparer, rewriter, settings.passage_tokens)
    shared = SharedAnswers(cache, database, embedders.of(settings.embedding_model), settings)
    answers = CachingAnswers(pipeline, shared)
    shards = ShardRunner(pipeline, database, worker.keyring, worker.messages, settings.shard_concurrency)
    worker.handles(ANSWER, answers.answer)
    worker.handles(SEARCH, pipeline.search)
    worker.handles(EMBED, pipeline.embed)
    worker.handles(COMPLETE, TextCompletions(pipeline).complete)
    worker.handles(COMPACT, Compactor(upstream, compactions).compact)
    worker.handles(MODERATE, Moderation(moderator).moderate)
    worker.handles(READ_FILE, FileContents(database, collections, worker.keyring).read)
    worker.performs(ANSWER_SHARD, shards.run)
    worker.performs(ANSWER_BACKGROUND, BackgroundAnswers(pipeline, worker).run)
    worker.performs(SUMMARISE, Summariser(upstream, worker.messages).run)
    return worker


if __name__ == "__main__":
    configured(ChatSettings, create_worker).run()
