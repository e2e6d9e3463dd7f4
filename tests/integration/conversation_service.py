"""The handlers of the conversations service over a real database, called as its worker calls them."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from sqlalchemy import Connection, insert, select

from libs.common import ledger
from libs.common.contracts.base import JobSpec, Message, TaskSpec
from libs.common.contracts.chat import ANSWER, AnswerRequest, ChatMessage, Shape, Turn
from libs.common.contracts.conversations import CloseTurn, CreateConversation, ListItems, OpenTurn
from libs.common.contracts.items import messages_of, normalise_items
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.tables import jobs, tenants
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.replies import Reply
from libs.common.tasks.wire import MessageSealer
from services.conversations.commands import Commands
from services.conversations.encryption import DataKeys
from services.conversations.forking import Forks
from services.conversations.item_commands import ItemCommands
from services.conversations.response_commands import ResponseCommands
from services.conversations.settings import ConversationsSettings
from services.conversations.summaries import Summaries
from services.conversations.turns import Turns
from services.conversations.wrapping import KeyringWrapper

A, B = "tenant_a", "tenant_b"
CANARY = "heron-by-the-mill-pond"

Handler = Callable[[Any, Reply[Any]], Awaitable[None]]
JobHandler = Callable[[Any, JobRun], Awaitable[None]]


class _NoDispatcher:
    """Whoever asks for jobs here asks the ledger."""

    def nudge(self) -> None:
        pass


def serving(database: Database, keyring: Keyring, **settings: Any) -> "Service":
    """The service with two tenants, A and B."""

    def add_tenants(connection: Connection) -> None:
        connection.execute(insert(tenants), [{"id": each, "name": each, "created_at": 0.0} for each in (A, B)])

    database.write_now(add_tenants)
    return Service(database, keyring, **settings)


class RecordedReply(Reply[Any]):
    """Keeps what a handler sends, in the place of a broker."""

    def __init__(self, tenant_id: str, request_id: str = "request_1", *, broken: bool = False) -> None:
        self._tenant_id, self._request_id, self._broken = tenant_id, request_id, broken
        self._first = 0
        self._blocks: list[bytes] = []
        self.ended = False
        self.final: Any = None
        self.passed: tuple[str, Any] | None = None

    @property
    def request_id(self) -> str:
        return self._request_id

    @property
    def tenant_id(self) -> str:
        return self._tenant_id

    def event(self, block: bytes) -> None:
        self._blocks.append(block)

    async def done(self, reply: Message) -> None:
        self.ended, self.final = True, reply

    async def pass_on(self, spec: TaskSpec[Any, Any], request: Message) -> None:
        if self._broken:
            raise RetryableError(ErrorCode.QUEUE_UNAVAILABLE, "The broker is away.")
        self.ended, self.passed = True, (spec.name, request)


class Service:
    """The service's handlers, called as the worker calls them."""

    def __init__(self, database: Database, keyring: Keyring, **settings: Any) -> None:
        self.database = database
        self.keyring = keyring
        chosen = ConversationsSettings(**settings)
        data_keys = self.data_keys = DataKeys(KeyringWrapper(keyring))
        self.messages = MessageSealer(keyring)
        self.summaries = Summaries(database, data_keys, self.messages, chosen)
        self.commands = Commands(database, data_keys)
        self.items = ItemCommands(database, data_keys)
        self.responses = ResponseCommands(database, data_keys)
        self.forks = Forks(database, data_keys)
        self.turns = Turns(database, data_keys, self.summaries, chosen)

    async def do(self, handler: Handler, request: Message, tenant_id: str = A) -> Any:
        reply = RecordedReply(tenant_id)
        await handler(request, reply)
        assert reply.ended
        return getattr(reply.final, "body", None)

    async def create(self, *texts: str, conversation_id: str = "conv_1", tenant_id: str = A, **metadata: str) -> Any:
        request = CreateConversation(
            conversation_id=conversation_id, created_at=1_700_000_000, items=items_of(*texts), metadata=metadata
        )
        return await self.do(self.commands.create, request, tenant_id)

    async def texts(self, conversation_id: str = "conv_1", tenant_id: str = A) -> list[str]:
        page = ListItems(conversation_id=conversation_id, limit=100, order="asc")
        body = await self.do(self.items.list, page, tenant_id)
        return [item["content"][0]["text"] for item in body["data"]]

    async def open(self, opening: OpenTurn, tenant_id: str = A) -> AnswerRequest:
        reply = RecordedReply(tenant_id, opening.answer.id)
        await self.turns.open(opening, reply)
        assert reply.passed is not None
        name, request = reply.passed
        assert name == ANSWER.name
        assert isinstance(request, AnswerRequest)
        return request

    async def close(self, question: AnswerRequest, text: str = "Because.", tenant_id: str = A) -> RecordedReply:
        reply = RecordedReply(tenant_id, question.id)
        closing = CloseTurn(request=question, response=answer_of(question, text), next_sequence=7)
        await self.turns.close(closing, reply)
        return reply

    async def perform(self, spec: JobSpec[Any], handler: JobHandler) -> str:
        """Do the oldest job of this kind that is due, as a worker would, errors included; its id."""
        due = select(jobs.c.id).where(jobs.c.name == spec.name, jobs.c.state == ledger.QUEUED)
        job_id: str = self.rows(due.order_by(jobs.c.created_at))[0].id
        claimed = await self.database.write(
            lambda connection: ledger.claim(connection, job_id, "worker", lease_seconds=60)
        )
        assert claimed is not None
        dispatcher = cast("Dispatcher", _NoDispatcher())
        job = JobRun(claimed, self.database, dispatcher, is_last_error=lambda _: False, next_step=lambda: None)
        body = self.messages.open_job_request(claimed.queue, claimed.id, claimed.sealed_request)
        await handler(spec.request.model_validate_json(body), job)
        return job_id

    def requests_of(self, spec: JobSpec[Any]) -> list[Any]:
        """What the queued jobs of this kind are asked to do."""
        query = select(jobs).where(jobs.c.name == spec.name, jobs.c.state == ledger.QUEUED).order_by(jobs.c.created_at)
        opened = [self.messages.open_job_request(row.queue, row.id, row.sealed_request) for row in self.rows(query)]
        return [spec.request.model_validate_json(body) for body in opened]

    def rows(self, statement: Any) -> list[Any]:
        return self.database.read_now(lambda connection: list(connection.execute(statement)))

    def change(self, statement: Any) -> None:
        self.database.write_now(lambda connection: connection.execute(statement))


def items_of(*texts: str) -> tuple[dict[str, Any], ...]:
    return normalise_items([{"role": "user", "content": text} for text in texts])


def question_of(
    text: str,
    *,
    response_id: str = "resp_1",
    conversation_id: str | None = None,
    previous: str | None = None,
    stream: bool = False,
    stored: bool = True,
) -> AnswerRequest:
    items = items_of(text)
    return AnswerRequest(
        id=response_id,
        created_at=1_700_000_000,
        shape=Shape.RESPONSE,
        model="m",
        messages=(ChatMessage(role="developer", content="Be brief."), *messages_of(items)),
        stream=stream,
        turn=Turn(conversation_id=conversation_id, previous_response_id=previous, input_items=items)
        if stored
        else None,
    )


def opening_of(text: str, response_id: str = "resp_1", *, stream: bool = False) -> OpenTurn:
    question = question_of(text, response_id=response_id, conversation_id="conv_1", stream=stream)
    return OpenTurn(answer=question, conversation_id="conv_1")


def answer_of(question: AnswerRequest, text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": f"msg_of_{question.id}", "status": status, "role": "assistant"}
    return {
        "id": question.id,
        "object": "response",
        "status": status,
        "output": [{**message, "content": content}],
        "previous_response_id": question.turn.previous_response_id if question.turn else None,
    }


def prompt_of(question: AnswerRequest) -> list[object]:
    return [message.content for message in question.messages]


def without_time(body: dict[str, Any]) -> dict[str, Any]:
    """A conversation without what depends on the clock."""
    return {field: value for field, value in body.items() if field != "last_active_at"}


async def code_of(awaitable: Awaitable[Any]) -> tuple[ErrorCode, str]:
    with pytest.raises(PlatformError) as refused:
        await awaitable
    return refused.value.code, refused.value.message
