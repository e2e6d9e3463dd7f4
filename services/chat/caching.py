"""Answering with the cache: what may be given again is kept when it is done, and given to who asks alike."""

import orjson

from libs.common.cache.answers import CachedAnswer
from libs.common.contracts.chat import Answer, AnswerRequest, Shape
from libs.common.tasks.replies import DONE_BLOCK, Reply, sse_block
from services.chat.pipeline import AnswerPipeline, renderer_of
from services.chat.ports import AnswerCache
from services.chat.prompt import question_of
from services.chat.recording import Recorder
from services.chat.rendering import Event


class CachingAnswers:
    """Answers questions, with the cache where the request has leave for it."""

    def __init__(self, pipeline: AnswerPipeline, cache: AnswerCache) -> None:
        self._pipeline = pipeline
        self._cache = cache

    async def answer(self, request: AnswerRequest, reply: Reply[Answer]) -> None:
        """See `AnswerPipeline.answer`. The gateway has looked for this very request before."""
        if request.cache is None:
            await self._pipeline.answer(request, reply)
            return
        found = await self._cache.alike(reply.tenant_id, request)
        if found is not None:
            await _give(found, request, reply)
            return
        recorder = Recorder(renderer_of(request))
        await self._pipeline.answer(request, reply, recorder)
        if recorder.is_whole:
            await self._cache.keep(reply.tenant_id, request, recorder.cached(request, renderer_of, _stream))


async def _give(found: CachedAnswer, request: AnswerRequest, reply: Reply[Answer]) -> None:
    reply.from_cache, reply.model = True, request.model
    content = found.content(request, query=question_of(request.messages))
    if not request.stream:
        await reply.done(Answer(body=orjson.loads(content)))
        return
    reply.event(content)
    await reply.done(Answer(body={}))  # who streams has seen it


def _stream(request: AnswerRequest, events: list[Event]) -> bytes:
    blocks = [sse_block(data, name=name) for name, data in events]
    if request.shape is Shape.CHAT:
        blocks.append(DONE_BLOCK)
    return b"".join(blocks)
