"""Legacy completions: each choice is an answer of its own, and several are made side by side."""

import asyncio
from typing import Final

from libs.common.contracts.chat import Answer, AnswerRequest
from libs.common.contracts.completions import CompletionRequest
from libs.common.tasks.replies import DONE_BLOCK, Reply, sse_block
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Usage
from services.chat.rendering import Event
from services.chat.text_rendering import TextRenderer, text_completion

_SIDE_BY_SIDE: Final = 4


class TextCompletions:
    """Makes the choices of a completion by the answer pipeline."""

    def __init__(self, pipeline: AnswerPipeline) -> None:
        self._pipeline = pipeline

    async def complete(self, request: CompletionRequest, reply: Reply[Answer]) -> None:
        """Continue every prompt; if one fails, the whole completion does."""

        def emit(events: list[Event]) -> None:
            if request.stream:
                for name, data in events:
                    reply.event(sse_block(data, name=name))

        slots = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def make(question: AnswerRequest, renderer: TextRenderer) -> None:
            async with slots:
                await self._pipeline.run(question, renderer, reply.tenant_id, emit)

        questions = request.questions()
        renderers = [TextRenderer(request, index) for index in range(len(questions))]
        try:
            async with asyncio.TaskGroup() as group:
                for question, renderer in zip(questions, renderers, strict=True):
                    group.create_task(make(question, renderer))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        usage = _sum([renderer.usage for renderer in renderers])
        if request.include_usage:
            emit([(None, text_completion(request, [], usage))])
        if request.stream:
            reply.event(DONE_BLOCK)
        await reply.done(Answer(body=text_completion(request, [renderer.body() for renderer in renderers], usage)))


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )
