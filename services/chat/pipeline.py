"""From a question to a cited answer: retrieve, prompt, complete, check citations, render.

Plain orchestration over the ports; knows neither Celery nor Redis nor any server.
"""

import base64
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress

from libs.common import metrics
from libs.common.contracts.chat import (
    Answer,
    AnswerRequest,
    EmbedReply,
    EmbedRequest,
    SearchReply,
    SearchRequest,
    SearchResult,
    Shape,
)
from libs.common.contracts.conversations import ABANDON_TURN, CLOSE_TURN, AbandonTurn, CloseTurn
from libs.common.errors import PlatformError
from libs.common.rag.embedder import Embedder
from libs.common.tasks.replies import DONE_BLOCK, Reply, sse_block
from services.chat.chat_rendering import ChatRenderer
from services.chat.citations import Citation, CitationFilter
from services.chat.extraction import EXTRACTIVE_MODEL, extracted
from services.chat.ports import Completer, Delta, ForAnswer, ModelsAwayError, Passage, Retriever, Usage
from services.chat.preparing import Preparer
from services.chat.prompt import build_prompt, question_of
from services.chat.rendering import Author, Event, Renderer
from services.chat.response_rendering import ResponseRenderer
from services.chat.rewriting import Rewriter

Emit = Callable[[list[Event]], None]

NOT_IN_DOCUMENTS = "The documents do not answer this question."


class AnswerPipeline:
    """Answers, searches and embeds.

    Args:
        passage_tokens: how far a passage that a model is shown grows by what stands around it; 0: not at all.
    """

    def __init__(
        self,
        retriever: Retriever,
        completer: Completer,
        embedder: Embedder,
        preparer: Preparer | None = None,
        rewriter: Rewriter | None = None,
        passage_tokens: int = 0,
    ) -> None:
        self._retriever = retriever
        self._completer = completer
        self._embedder = embedder
        self._preparer = preparer
        self._rewriter = rewriter
        self._passage_tokens = passage_tokens

    async def answer(self, request: AnswerRequest, reply: Reply[Answer], renderer: Renderer | None = None) -> None:
        """Answer one question; a stored answer is passed on, so that it is safe before it counts as completed.

        Args:
            renderer: of the request's shape; one is made unless it is given.
        """
        renderer = renderer or renderer_of(request)

        def emit(events: list[Event]) -> None:
            if request.shape is Shape.CHAT:  # a response's first events come before anybody answers
                reply.model, reply.degraded = renderer.author.model, renderer.author.degraded
            if request.stream:
                for name, data in events:
                    reply.event(sse_block(data, name=name))

        try:
            await self.run(request, renderer, reply.tenant_id, emit, may_degrade=True)
        except BaseException:
            await _free_turn(request, reply)
            raise
        if request.turn is not None:
            closing = CloseTurn(request=request, response=renderer.body(), next_sequence=reply.next_sequence)
            await reply.pass_on(CLOSE_TURN, closing)
            return
        emit(renderer.completed())
        if request.stream and request.shape is Shape.CHAT:
            reply.event(DONE_BLOCK)
        await reply.done(Answer(body=renderer.body()))

    async def run(
        self, request: AnswerRequest, renderer: Renderer, tenant_id: str, emit: Emit, *, may_degrade: bool = False
    ) -> None:
        """The answer's whole course, rendered; ends before the events that call it completed.

        Args:
            may_degrade: whether sentences of the passages are better than a model's answer later.
        """
        if self._preparer is not None:
            request = await self._preparer.prepared(tenant_id, request)
        emit(renderer.begin())
        passages, searching = await self._passages(request, renderer, tenant_id, emit)
        if request.retrieval is not None and not passages:
            # A model asked without passages would answer from elsewhere.
            emit(renderer.text(NOT_IN_DOCUMENTS))
            emit(renderer.end("stop", searching))
            return
        await self._complete(request, passages, renderer, emit, spent=searching, may_degrade=may_degrade)

    async def _complete(
        self,
        request: AnswerRequest,
        passages: Sequence[Passage],
        renderer: Renderer,
        emit: Emit,
        *,
        spent: Usage,
        may_degrade: bool,
    ) -> None:
        citations = CitationFilter(passages)
        finish_reason, usage = "stop", Usage()
        with metrics.stage("complete"):
            async for delta in self._deltas(request, passages, may_degrade=may_degrade):
                if delta.model is not None:
                    renderer.author = Author(delta.model, delta.degraded)
                _show(citations.feed(delta.text), renderer, emit)
                if delta.tool_calls:
                    emit(renderer.tool_calls(delta.tool_calls))
                finish_reason = delta.finish_reason or finish_reason
                usage = delta.usage or usage
        _show(citations.finish(), renderer, emit)
        emit(renderer.end(finish_reason, usage + spent))
        model = renderer.author.model
        metrics.TOKENS.labels(kind="input", model=model).inc(usage.input_tokens)
        metrics.TOKENS.labels(kind="output", model=model).inc(usage.output_tokens)
        if model != request.model:
            metrics.FALLBACK_ANSWERS.labels(model=model).inc()

    async def _deltas(
        self, request: AnswerRequest, passages: Sequence[Passage], *, may_degrade: bool
    ) -> AsyncIterator[Delta]:
        prompt = build_prompt(request.messages, passages, secrets.token_hex(8))
        try:
            async for delta in self._completer.stream(request.model, prompt, request.parameters | request.hints):
                yield delta
        except ModelsAwayError:
            text = extracted(request, passages) if may_degrade else None
            if text is None:
                raise
            yield Delta(text, finish_reason="stop", model=EXTRACTIVE_MODEL, degraded=True)

    async def _passages(
        self, request: AnswerRequest, renderer: Renderer, tenant_id: str, emit: Emit
    ) -> tuple[Sequence[Passage], Usage]:
        """What was found, and what the model took to put the question for it."""
        question, spent = question_of(request.messages), Usage()
        if request.retrieval is None or not question.strip():
            return (), spent
        emit(renderer.searching())
        # A question that leans on what was said before says too little of what it is about.
        gated = sum(message.role == "user" for message in request.messages) == 1
        if self._rewriter is not None:
            question, spent = await self._rewriter.standalone(request)
        # The extractive model takes sentences out of passages: with more around them it takes others.
        tokens = 0 if request.model == EXTRACTIVE_MODEL else self._passage_tokens
        answer = ForAnswer(gated=gated, passage_tokens=tokens)
        passages = await self._retriever.retrieve(tenant_id, [question], request.retrieval, answer)
        emit(renderer.found([question], passages))
        return passages, spent

    async def search(self, request: SearchRequest, reply: Reply[SearchReply]) -> None:
        """Search without answering."""
        passages = await self._retriever.retrieve(reply.tenant_id, request.queries, request.retrieval)
        await reply.done(SearchReply(results=tuple(_search_result(passage) for passage in passages)))

    async def embed(self, request: EmbedRequest, reply: Reply[EmbedReply]) -> None:
        """Embed texts."""
        await reply.done(await self.embedded(request))

    async def embedded(self, request: EmbedRequest) -> EmbedReply:
        """The vectors of the request's texts."""
        with metrics.stage("embed"):
            result = await self._embedder.embed(request.texts)
        vectors = tuple(base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in result.vectors)
        return EmbedReply(vectors=vectors, tokens=result.tokens)


def renderer_of(request: AnswerRequest) -> Renderer:
    """The renderer of the request's shape."""
    return ResponseRenderer(request) if request.shape is Shape.RESPONSE else ChatRenderer(request)


def _show(pieces: Iterable[str | Citation], renderer: Renderer, emit: Emit) -> None:
    for piece in pieces:
        emit(renderer.text(piece) if isinstance(piece, str) else renderer.cite(piece))


async def _free_turn(request: AnswerRequest, reply: Reply[Answer]) -> None:
    turn = request.turn
    if turn is not None and turn.conversation_id is not None:
        # Where the broker is away the turn's own time limit frees it; what went wrong first is what counts.
        with suppress(PlatformError):
            await reply.post(ABANDON_TURN, AbandonTurn(conversation_id=turn.conversation_id, token=turn.token))


def _search_result(passage: Passage) -> SearchResult:
    return SearchResult(
        vector_store_id=passage.vector_store_id,
        file_id=passage.file_id,
        filename=passage.filename,
        score=passage.score,
        attributes=passage.attributes or {},
        text=passage.text,
        page=passage.page,
        start=passage.start,
        end=passage.end,
    )
