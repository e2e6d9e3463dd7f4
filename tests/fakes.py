"""In-memory twins of the chat service's ports."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from libs.common.contracts.base import Message, TaskSpec
from libs.common.contracts.chat import Retrieval
from libs.common.errors import PlatformError
from libs.common.tasks.replies import Reply
from services.chat.ports import Delta, ForAnswer, Passage, Prompt

ReplyT = TypeVar("ReplyT", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)
OtherT = TypeVar("OtherT", bound=Message)


class FakeRetriever:
    """Finds the passages it was given, for everybody."""

    def __init__(self, passages: Sequence[Passage] = (), *, error: PlatformError | None = None) -> None:
        self.passages = list(passages)
        self.error = error
        self.asked: list[tuple[str, tuple[str, ...], Retrieval]] = []
        self.answers: list[ForAnswer | None] = []

    async def retrieve(
        self, tenant_id: str, queries: Sequence[str], retrieval: Retrieval, answer: ForAnswer | None = None
    ) -> list[Passage]:
        self.asked.append((tenant_id, tuple(queries), retrieval))
        self.answers.append(answer)
        if self.error is not None:
            raise self.error
        return self.passages[: retrieval.max_num_results]


class FakeCompleter:
    """Answers every prompt with the same pieces, then fails if it is told to."""

    def __init__(self, *deltas: Delta, error: BaseException | None = None) -> None:
        self.deltas = deltas
        self.error = error
        self.prompts: list[Prompt] = []

    async def stream(
        self,
        model: str,  # noqa: ARG002 - the port's
        prompt: Prompt,
        parameters: dict[str, Any],  # noqa: ARG002 - the port's
    ) -> AsyncIterator[Delta]:
        self.prompts.append(prompt)
        for delta in self.deltas:
            yield delta
        if self.error is not None:
            raise self.error


class RecordingReply(Reply[ReplyT]):
    """Keeps what a handler does with its reply.

    Attributes:
        blocks: the events sent, in order.
        result: what it ended with by `done`.
        passed_on: where it was passed on to, and with what.
        posted: what other services were told in passing.
    """

    def __init__(self, tenant_id: str = "tenant", *, post_error: PlatformError | None = None) -> None:
        self.blocks: list[bytes] = []
        self.result: ReplyT | None = None
        self.passed_on: tuple[str, Message] | None = None
        self.posted: list[tuple[str, Message]] = []
        self.ended = False
        self.from_cache = False
        self._tenant_id = tenant_id
        self._post_error = post_error

    @property
    def tenant_id(self) -> str:
        return self._tenant_id

    @property
    def next_sequence(self) -> int:
        return len(self.blocks)

    def event(self, block: bytes) -> None:
        assert not self.ended
        self.blocks.append(block)

    async def done(self, reply: ReplyT) -> None:
        assert not self.ended
        self.ended, self.result = True, reply

    async def pass_on(self, spec: TaskSpec[RequestT, OtherT], request: RequestT) -> None:
        assert not self.ended
        self.ended, self.passed_on = True, (spec.name, request)

    async def post(self, spec: TaskSpec[RequestT, OtherT], request: RequestT) -> None:
        if self._post_error is not None:
            raise self._post_error
        self.posted.append((spec.name, request))
