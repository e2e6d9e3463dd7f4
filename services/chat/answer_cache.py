"""Answers in the cache, as the chat service writes them; the gateway reads what was asked exactly so before.

The semantic part: per set of questions that differ in wording alone, the vectors of the latest, each with the digest
of its answer. Few enough to compare one by one.
"""

import math
import struct
from collections.abc import Sequence
from operator import mul
from typing import Final

from libs.common import keys, metrics
from libs.common.cache.answers import CachedAnswer
from libs.common.cache.embeddings import CachedEmbedder
from libs.common.cache.store import Cache
from libs.common.contracts.chat import AnswerRequest, CacheLeave
from libs.common.errors import PlatformError
from libs.common.logs import get_logger
from libs.common.rag.embedder import Vector
from libs.common.records import vector_stores
from libs.common.records.database import Database
from services.chat.prompt import question_of
from services.chat.settings import ChatSettings

_log = get_logger(__name__)
_MAX_QUESTIONS: Final = 128


class SharedAnswers:
    """The `AnswerCache` of the running service."""

    def __init__(self, cache: Cache, database: Database, embedder: CachedEmbedder, settings: ChatSettings) -> None:
        self._cache = cache
        self._database = database
        self._embedder = embedder
        self._keep_seconds = settings.answer_cache_seconds
        self._threshold = settings.semantic_cache_threshold

    async def alike(self, tenant_id: str, request: AnswerRequest) -> CachedAnswer | None:
        """See `AnswerCache`."""
        leave = request.cache
        if leave is None or leave.alike is None or not leave.may_read:
            return None
        entries = await self._cache.entries(keys.alike(tenant_id, leave.alike))
        digest = await self._nearest(tenant_id, request, entries) if entries else None
        content = await self._cache.get(keys.answer(tenant_id, digest)) if digest else None
        metrics.CACHE_LOOKUPS.labels(layer="alike", result="miss" if content is None else "hit").inc()
        return None if content is None else CachedAnswer.decode(content)

    async def keep(self, tenant_id: str, request: AnswerRequest, answer: CachedAnswer) -> None:
        """See `AnswerCache`."""
        leave = request.cache
        if leave is None or not await self._unchanged(tenant_id, leave):
            return
        self._cache.put(keys.answer(tenant_id, leave.exact), answer.encode(), self._keep_seconds)
        if leave.alike is not None and (vector := await self._direction(tenant_id, request)):
            entry = struct.pack(f"<{len(vector)}f", *vector) + leave.exact.encode()
            self._cache.add(keys.alike(tenant_id, leave.alike), entry, self._keep_seconds, at_most=_MAX_QUESTIONS)

    async def _unchanged(self, tenant_id: str, leave: CacheLeave) -> bool:
        # Revisions only grow: the same before and after means that nothing changed in between.
        if not leave.revisions:
            return True
        try:
            now = await self._database.read(
                lambda connection: vector_stores.revisions(connection, tenant_id, leave.revisions)
            )
        except PlatformError:
            return False
        return now == leave.revisions

    async def _nearest(self, tenant_id: str, request: AnswerRequest, entries: Sequence[bytes]) -> str | None:
        """The digest of the answer to the nearest question, if that is near enough."""
        asked = await self._direction(tenant_id, request)
        form = struct.Struct(f"<{len(asked)}f")
        near = [(sum(map(mul, asked, form.unpack_from(entry))), entry) for entry in entries]
        similarity, nearest = max(near)
        if not asked or similarity < self._threshold:
            return None
        return nearest[form.size :].decode()

    async def _direction(self, tenant_id: str, request: AnswerRequest) -> Vector:
        """The question's vector at length 1; empty where there is none."""
        try:
            (vector,) = await self._embedder.embed(tenant_id, [question_of(request.messages)])
        except PlatformError as error:
            # Whether the answer needs it too is for the pipeline to find out.
            _log.warning("a question could not be embedded for the cache", code=error.code.value)
            return []
        length = math.hypot(*vector)
        return [value / length for value in vector] if length else []
