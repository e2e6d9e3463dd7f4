"""Questions that were asked exactly so before: looked up where the answer may be cached, and answered without a queue.

A request is counted before anything is looked up, so that the key's limit bounds look-ups too. Vector stores are
asked for their revisions each time: a change of any document leads to another key at once.
"""

import time
from typing import Final

from fastapi import Request, Response

from libs.common import keys
from libs.common.cache.answers import Asking, CachedAnswer, alike_digest, exact_digest
from libs.common.contracts.attached_files import attached_file_ids
from libs.common.contracts.chat import ANSWER, AnswerRequest, CacheLeave
from libs.common.records import vector_stores
from libs.common.tasks.publisher import Admission
from services.gateway.streams import (
    CACHE_HEADER,
    EVENT_STREAM,
    NO_BUFFERING,
    Interactive,
    author_headers,
    limit_headers,
)

_JSON: Final = "application/json"
# With its charset: by the bare name, idempotency takes a reply for a stream that is yet to be read.
_WHOLE_STREAM: Final = f"{EVENT_STREAM}; charset=utf-8"


async def answered(interactive: Interactive, question: AnswerRequest) -> Response:
    """Answer a question that keeps no state: as before where that is allowed, else by the chat service.

    Raises:
        PlatformError: the request was refused or failed; NOT_FOUND for a vector store.
        ClientLeftError: the client left.
    """
    gateway, principal = interactive.gateway, interactive.principal
    directives = _directives(interactive.request)
    may_cache = gateway.settings.may_cache(question.model, question.parameters)
    # A file may be deleted, and its content must not be answered from then on.
    if "no-store" in directives or not may_cache or attached_file_ids(question.messages):
        return await _asked(interactive, question)
    admission = await gateway.publisher.admit(principal.limits)
    leave = await _leave(interactive, question, may_read="no-cache" not in directives)
    if leave.may_read:
        content = await gateway.cache.get(keys.answer(principal.tenant_id, leave.exact))
        if content is not None:
            return _hit(question, CachedAnswer.decode(content), admission)
    response = await _asked(interactive, question.model_copy(update={"cache": leave}), admission)
    response.headers.setdefault(CACHE_HEADER, "miss")
    return response


async def _leave(interactive: Interactive, question: AnswerRequest, *, may_read: bool) -> CacheLeave:
    gateway, principal = interactive.gateway, interactive.principal
    settings, tenant_id = gateway.settings, principal.tenant_id
    revisions: dict[str, int] = {}
    if question.retrieval is not None:
        store_ids = question.retrieval.vector_store_ids
        revisions = await gateway.database.read(
            lambda connection: vector_stores.revisions(connection, tenant_id, store_ids)
        )
    embedding_model = f"{settings.embedding_model}.{settings.embedding_dimensions}"
    asking = Asking(tenant_id, principal.scopes, embedding_model, revisions)
    semantic = settings.has_semantic_cache(tenant_id)
    return CacheLeave(
        exact=exact_digest(gateway.cache, asking, question),
        revisions=revisions,
        alike=alike_digest(gateway.cache, asking, question) if semantic else None,
        may_read=may_read,
    )


async def _asked(interactive: Interactive, question: AnswerRequest, admission: Admission | None = None) -> Response:
    if question.stream:
        return await interactive.stream(ANSWER, question, call_id=question.id, admission=admission)
    return await interactive.body(ANSWER, question, call_id=question.id, admission=admission)


def _hit(question: AnswerRequest, answer: CachedAnswer, admission: Admission) -> Response:
    age_seconds = max(0, int(time.time() - answer.made_at))
    headers = {CACHE_HEADER: "hit", "age": str(age_seconds)} | limit_headers(admission)
    headers |= author_headers(question.model, degraded=False)
    if question.stream:
        return Response(answer.content(question), headers=NO_BUFFERING | headers, media_type=_WHOLE_STREAM)
    return Response(answer.content(question), headers=headers, media_type=_JSON)


def _directives(request: Request) -> set[str]:
    """What the request's Cache-Control headers say, without values."""
    sent = ",".join(request.headers.getlist("cache-control"))
    return {directive.partition("=")[0].strip().lower() for directive in sent.split(",")}
