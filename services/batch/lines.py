"""The lines of a batch's input: cut out of a stream, and checked one by one as over HTTP."""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from libs.common.contracts import batch_lines
from libs.common.contracts.chat import AnswerRequest, BatchItem
from libs.common.contracts.chat_requests import ChatCompletionBody
from libs.common.contracts.requests import EmbeddingBody
from libs.common.contracts.response_requests import ResponseBody
from libs.common.contracts.validation import parse_json, validated
from libs.common.errors import ErrorCode, PermanentError

MAX_LINE_BYTES: Final = 4 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

BodyT = TypeVar("BodyT", ChatCompletionBody, ResponseBody)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file. `number` counts from 1; `content` is None where the line is too long to be kept."""

    number: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a batch's input, in the fields of OpenAI's batch errors; no line: with the file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """The models that bodies may name, as over HTTP, and the one of responses that name none."""

    allows_chat_model: Callable[[str], bool]
    embedding_model: str
    embedding_dimensions: int
    default_chat_model: str | None = None


async def split(chunks: AsyncIterator[bytes], max_bytes: int = MAX_LINE_BYTES) -> AsyncIterator[Line]:
    """The lines of a stream that are not blank; holds one line at most, however long the lines are."""
    number, buffer, too_long = 1, bytearray(), False
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            too_long = too_long or len(buffer) + end - start > max_bytes
            if line := _line(number, buffer + chunk[start:end], too_long=too_long):
                yield line
            number, start, too_long = number + 1, end + 1, False
            buffer.clear()
        buffer += chunk[start:]
        if len(buffer) > max_bytes:
            too_long = True
            buffer.clear()
    if line := _line(number, buffer, too_long=too_long):
        yield line


def _line(number: int, content: bytearray, *, too_long: bool) -> Line | None:
    if too_long:
        return Line(number, None)
    if number == 1 and content.startswith(_BYTE_ORDER_MARK):
        del content[: len(_BYTE_ORDER_MARK)]
    stripped = bytes(content.strip())
    return Line(number, stripped) if stripped else None


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class Checker:
    """Turns the lines of one file into items; remembers their custom ids by digest."""

    def __init__(self, batch_id: str, endpoint: str, offer: Offer) -> None:
        self._batch_id = batch_id
        self._endpoint = endpoint
        self._offer = offer
        self._seen: set[bytes] = set()
        self.count = 0

    def check(self, line: Line) -> BatchItem | Problem:
        """The item of a valid line, at the next position; else the line's first fault."""
        if line.content is None:
            limit_mib = MAX_LINE_BYTES >> 20
            return Problem("line_too_long", f"The line is longer than {limit_mib} MiB.", line.number)
        try:
            return self._item(line.content, line.number)
        except PermanentError as error:
            return Problem(error.code.value, error.message, line.number, error.param)

    def _item(self, content: bytes, number: int) -> BatchItem | Problem:
        request = validated(_Request, _object(content))
        if request.url != self._endpoint:
            message = "The line's url is not the batch's endpoint."
            return Problem("invalid_url", message, number, "url")
        digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            message = "An earlier line has the same custom_id."
            return Problem("duplicate_custom_id", message, number, "custom_id")
        item = BatchItem(
            position=self.count,
            custom_id=request.custom_id,
            request_id=batch_lines.request_id(self._batch_id, self.count),
        )
        item = item.model_copy(update=self._work(request.body))
        self._seen.add(digest)
        self.count += 1
        return item

    def _work(self, body: dict[str, Any]) -> dict[str, object]:
        try:
            if self._endpoint == "/v1/embeddings":
                return {"embed": self._embedding(body).to_embed()}
            # No turn: a batch's answers are kept in its files alone.
            return {"answer": self._question(body).model_copy(update={"turn": None})}
        except PermanentError as error:
            param = f"body.{error.param}" if error.param else "body"
            raise PermanentError(error.code, error.message, param=param) from None

    def _embedding(self, content: dict[str, Any]) -> EmbeddingBody:
        body = validated(EmbeddingBody, content)
        if body.model != self._offer.embedding_model:
            raise _no_such_model()
        if body.dimensions not in (None, self._offer.embedding_dimensions):
            raise _not_offered("dimensions", f"This model has {self._offer.embedding_dimensions} dimensions.")
        if body.encoding_format != "float":
            raise _not_offered("encoding_format", "Batches write embeddings as lists of numbers.")
        return body

    def _question(self, content: dict[str, Any]) -> AnswerRequest:
        if self._endpoint == "/v1/chat/completions":
            chat = self._unstreamed(ChatCompletionBody, content)
            self._check_model(chat.model)
            if chat.store:
                raise _not_offered("store", "A batch's answers are kept in its files alone.")
            return chat.to_answer(stream=False)
        response = self._unstreamed(ResponseBody, content)
        model = response.model or self._offer.default_chat_model
        if model is None:
            raise PermanentError(ErrorCode.MISSING_FIELD, "Missing required parameter: 'model'.", param="model")
        self._check_model(model)
        for field in ("background", "conversation", "previous_response_id"):
            if getattr(response, field):
                raise _not_offered(field, f"A request of a batch cannot have '{field}'.")
        return response.to_answer(model, stream=False)

    def _unstreamed(self, model: type[BodyT], content: dict[str, Any]) -> BodyT:
        body = validated(model, content)
        if body.stream:
            raise _not_offered("stream", "A request of a batch cannot be streamed.")
        return body

    def _check_model(self, name: str) -> None:
        if not self._offer.allows_chat_model(name):
            raise _no_such_model()


def _object(content: bytes) -> dict[str, Any]:
    parsed = parse_json(content)
    if not isinstance(parsed, dict):
        raise PermanentError(ErrorCode.INVALID_JSON, "The line is not a JSON object.")
    return parsed


def _not_offered(param: str, message: str) -> PermanentError:
    return PermanentError(ErrorCode.INVALID_VALUE, message, param=param)


def _no_such_model() -> PermanentError:
    return PermanentError(ErrorCode.MODEL_NOT_FOUND, "This model does not exist here.", param="model")
