"""What callers know of the chat service: answers, search and embeddings."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import JsonValue

from libs.common.contracts.base import JobSpec, Message, Queue, TaskSpec
from libs.common.contracts.filters import Filter

# A JSON object of the OpenAI API that passes through us unread or is built by us for the client.
JsonObject = dict[str, Any]


class Shape(StrEnum):
    """Which OpenAI resource the answer is rendered as. The value is the object's `object` field."""

    CHAT = "chat.completion"
    RESPONSE = "response"
    COMPLETION = "text_completion"


class ChatMessage(Message):
    """One message of the prompt. `content` is text or OpenAI content parts; `extra` holds tool calls and the like."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[JsonObject, ...] | None = None
    extra: JsonObject = {}


class Retrieval(Message):
    """What to search before answering, and how."""

    vector_store_ids: tuple[str, ...]
    filters: Filter | None = None
    max_num_results: int = 10
    score_threshold: float = 0.0
    embedding_weight: float = 1.0
    text_weight: float = 1.0
    rerank: bool = True


class Turn(Message):
    """Where a finished answer is to be kept. `token` fences the conversation's turn (0: no conversation)."""

    conversation_id: str | None = None
    previous_response_id: str | None = None
    token: int = 0
    input_items: tuple[JsonObject, ...] = ()


class CacheLeave(Message):
    """Leave to cache an answer, for as long as its vector stores are as they were.

    Attributes:
        exact: the digest by which exactly this request will find it.
        revisions: of every vector store searched, read before the request was pushed.
        alike: the digest by which questions in other words find it; None unless the tenant wants that.
        may_read: whether this request may be given the answer to such a question.
    """

    exact: str
    revisions: dict[str, int] = {}
    alike: str | None = None
    may_read: bool = True


class AnswerRequest(Message):
    """A question with its whole prompt, ready to be answered.

    Attributes:
        id: id of the resource being made (`chatcmpl-…`, `resp_…`); also the request's id on the queue.
        created_at: Unix seconds.
        messages: the prompt in order, history included, the question last.
        parameters: sampling parameters by their upstream names, already validated.
        hints: more of these, which change nothing of the answer, for upstreams that know them.
        calls_functions: whether tool calls are also shown as the `function_call` that they were before.
        echo: fields of the finished object that only repeat the request (metadata, tools, temperature …).
        turn: set when the answer must be stored before the client sees it as completed.
        cache: set when the answer may be given again to whoever asks the same.
    """

    id: str
    created_at: int
    shape: Shape
    model: str
    messages: tuple[ChatMessage, ...]
    stream: bool = False
    include_usage: bool = False
    include_results: bool = False
    retrieval: Retrieval | None = None
    parameters: dict[str, JsonValue] = {}
    hints: dict[str, JsonValue] = {}
    calls_functions: bool = False
    echo: JsonObject = {}
    turn: Turn | None = None
    cache: CacheLeave | None = None


class Answer(Message):
    """A finished answer: the complete OpenAI object."""

    body: JsonObject


class SearchRequest(Message):
    """A search in one vector store; several queries are merged into one ranking."""

    queries: tuple[str, ...]
    retrieval: Retrieval


class SearchResult(Message):
    """One passage found. `score` is in [0, 1]; `start` and `end` are character offsets in the file's text."""

    vector_store_id: str
    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | float | bool] = {}
    text: str
    page: int | None = None
    start: int = 0
    end: int = 0


class SearchReply(Message):
    """The passages found, best first."""

    results: tuple[SearchResult, ...]


class EmbedRequest(Message):
    """Texts to embed by the named model."""

    model: str
    texts: tuple[str, ...]


class EmbedReply(Message):
    """One vector per text: base64 of little-endian float32, and the tokens the upstream counted."""

    vectors: tuple[str, ...]
    tokens: int


class BatchItem(Message):
    """One line of a batch: `position` is its line number from 0, `body` the request as the client wrote it."""

    position: int
    custom_id: str
    request_id: str
    answer: AnswerRequest | None = None
    embed: EmbedRequest | None = None


class ShardRequest(Message):
    """The batch items with positions in [first, last], to be read from the batch's record and answered."""

    batch_id: str
    first: int
    last: int


ANSWER = TaskSpec("chat.answer", Queue.CHAT, AnswerRequest, Answer)
SEARCH = TaskSpec("chat.retrieve", Queue.CHAT, SearchRequest, SearchReply)
EMBED = TaskSpec("chat.embed", Queue.CHAT, EmbedRequest, EmbedReply)
ANSWER_SHARD = JobSpec("chat.answer_shard", Queue.CHAT_JOBS, ShardRequest)
