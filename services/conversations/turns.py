"""Turns: history before the answer, the answer into the conversation after it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from libs.common.contracts.base import Empty
from libs.common.contracts.chat import ANSWER, Answer, AnswerRequest, ChatMessage, JsonObject, Shape, Turn
from libs.common.contracts.completion_chunks import last_chunks
from libs.common.contracts.conversations import AbandonTurn, CloseTurn, OpenTurn
from libs.common.contracts.stored_completions import stored_messages
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.logs import get_logger
from libs.common.records.database import Database
from libs.common.tasks.replies import DONE_BLOCK, Reply, sse_block
from services.conversations import item_store, response_store, store
from services.conversations.contents import (
    kept_body,
    opened_item,
    opened_summary,
    response_body,
    response_input,
    sealed_items,
    sealed_response,
)
from services.conversations.encryption import DataKeys
from services.conversations.history import PastTurn, estimate_tokens, past_turns, recent_turns, summary_message
from services.conversations.item_store import SealedItem
from services.conversations.settings import ConversationsSettings
from services.conversations.store import Conversation
from services.conversations.summaries import Summaries

_log = get_logger(__name__)
# More than the budget of tokens lets through; they only bound what is read.
MAX_ITEMS: Final = 400
_MAX_CHAIN: Final = 100
# A background answer may wait behind people and be made again after a death.
_BACKGROUND_TURN_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A question with its history.

    Args:
        summarise_to: the position before which the conversation is too long to be told in full, if it is.
    """

    question: AnswerRequest
    summarise_to: int | None = None


class Turns:
    """Opens, closes and abandons turns."""

    def __init__(
        self, database: Database, data_keys: DataKeys, summaries: Summaries, settings: ConversationsSettings
    ) -> None:
        self._database = database
        self._keys = data_keys
        self._summaries = summaries
        self._settings = settings

    async def open(self, request: OpenTurn, reply: Reply[Answer]) -> None:
        """Add the history to a question and pass it on to chat, which answers in our place.

        A question that was answered already, by an attempt whose reply was lost, gets its stored answer.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
            RetryableError: CONVERSATION_LOCKED while another turn is open.
        """
        question = request.answer
        answered = await self._database.read(
            lambda connection: self._stored_body(connection, reply.tenant_id, question)
        )
        if answered is not None:
            await _end(reply, answered, question, sequence=0)
            return
        try:
            opened = await self.with_history_of(request, reply.tenant_id)
            await reply.pass_on(ANSWER, opened.question)
        except BaseException:
            # Nobody will answer, so the conversation must not wait for the turn to expire.
            await self._free(request.conversation_id, question.id, reply.tenant_id)
            raise
        await self.summarise(request, opened, reply.tenant_id)

    async def summarise(self, request: OpenTurn, opened: Opened, tenant_id: str) -> None:
        """Have what was left out of a question's history summarised for later turns, or leave it to one of them."""
        if request.conversation_id is None or opened.summarise_to is None:
            return
        model = request.answer.model
        try:
            await self._summaries.begin(tenant_id, request.conversation_id, model=model, before=opened.summarise_to)
        except (PlatformError, SQLAlchemyError) as error:
            # The question is on its way, and must not fail for this.
            _log.warning("no summary was begun", error=type(error).__name__)

    async def _free(self, conversation_id: str | None, holder: str, tenant_id: str) -> None:
        if conversation_id is not None:
            await self._database.write(
                lambda connection: store.free_turn_of(connection, tenant_id, conversation_id, holder)
            )

    async def close(self, request: CloseTurn, reply: Reply[Answer]) -> None:
        """Commit the answer and end the turn; only then does the client hear that it is complete.

        Raises:
            PermanentError: NOT_FOUND when the conversation was deleted meanwhile.
            RetryableError: CONVERSATION_LOCKED when the turn was lost to another request; nothing was written.
        """
        body = await self._database.write(lambda connection: self.commit(connection, reply.tenant_id, request))
        await _end(reply, body, request.request, sequence=request.next_sequence)

    async def abandon(self, request: AbandonTurn, reply: Reply[Empty]) -> None:
        """End a turn whose answer failed."""
        await self._database.write(
            lambda connection: store.free_turn(connection, reply.tenant_id, request.conversation_id, request.token)
        )
        await reply.done(Empty())

    async def with_history_of(self, request: OpenTurn, tenant_id: str) -> Opened:
        """The question with its history in front, and with the turn's token where there is a conversation.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
            RetryableError: CONVERSATION_LOCKED while another turn is open.
        """
        if request.conversation_id is not None:
            return await self._in_conversation(request.answer, request.conversation_id, tenant_id)
        past = past_turns(enumerate(await self.items_of_chain(tenant_id, request.previous_response_id or "")))
        return Opened(_with_history(request.answer, (), recent_turns(past, self._settings.history_tokens)))

    async def _in_conversation(self, question: AnswerRequest, conversation_id: str, tenant_id: str) -> Opened:
        background = bool(question.echo.get("background"))
        seconds = _BACKGROUND_TURN_SECONDS if background else self._settings.turn_seconds

        def take(connection: Connection) -> tuple[Conversation, list[SealedItem]]:
            taken = store.take_turn(connection, tenant_id, conversation_id, question.id, seconds=seconds)
            first = taken.summary_position
            return taken, item_store.newest(connection, tenant_id, conversation_id, first=first, limit=MAX_ITEMS)

        taken, items = await self._database.write(take)
        key = self._keys.unwrap(tenant_id, conversation_id, taken.wrapped_key)
        summary = opened_summary(key, taken)
        told = (summary_message(summary),) if summary else ()
        past = past_turns((item.position, opened_item(key, item)) for item in items)
        budget_tokens = self._settings.history_tokens - sum(map(estimate_tokens, told))
        kept = recent_turns(past, budget_tokens)
        turn = (question.turn or Turn(conversation_id=conversation_id)).model_copy(update={"token": taken.turn_token})
        continued = _with_history(question.model_copy(update={"turn": turn}), told, kept)
        if len(kept) == len(past):
            return Opened(continued)
        # Half of the budget is left free, so that not every turn from now on needs another summary.
        return Opened(continued, summarise_to=recent_turns(past, budget_tokens // 2)[0].position)

    async def items_of_chain(self, tenant_id: str, response_id: str) -> list[JsonObject]:
        """What a stored response and those before it were asked and answered, oldest first.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
        """
        chain = await self._database.read(
            lambda connection: response_store.chain(connection, tenant_id, response_id, limit=_MAX_CHAIN)
        )
        items: list[JsonObject] = []
        for response in reversed(chain):
            items += response_input(self._keys, tenant_id, response)
            items += kept_body(self._keys, tenant_id, response, param="previous_response_id")["output"]
        return items

    def commit(self, connection: Connection, tenant_id: str, request: CloseTurn) -> JsonObject:
        """Write everything or nothing; the answer that is stored, which is an earlier one if the message is a copy."""
        question, body = request.request, request.response
        turn = question.turn or Turn()
        conversation_id = turn.conversation_id
        # The conversation before the response: its deletion takes the same order.
        held = conversation_id is None or store.free_turn(connection, tenant_id, conversation_id, turn.token)
        response = sealed_response(
            self._keys,
            tenant_id,
            body,
            input_items=_asked(question, turn),
            created_at=time.time(),  # finer than the question's, so that lists keep the order of one second's answers
            conversation_id=conversation_id,
        )
        if not response_store.insert(connection, tenant_id, response):
            earlier = response_store.get(connection, tenant_id, response.id, response.shape)
            return response_body(self._keys, tenant_id, earlier)
        if conversation_id is not None:
            row = store.get(connection, tenant_id, conversation_id)
            if not held:
                raise _turn_was_lost()
            key = self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)
            new = sealed_items(key, [*turn.input_items, *body["output"]])
            item_store.append(connection, tenant_id, conversation_id, new)
        return body

    def _stored_body(self, connection: Connection, tenant_id: str, question: AnswerRequest) -> JsonObject | None:
        response = response_store.find(connection, tenant_id, question.id, question.shape)
        return None if response is None else response_body(self._keys, tenant_id, response)


def _with_history(question: AnswerRequest, told: tuple[ChatMessage, ...], kept: Sequence[PastTurn]) -> AnswerRequest:
    history = (*told, *(message for turn in kept for message in turn.messages))
    return question.model_copy(update={"messages": after_instructions(question.messages, history)})


def after_instructions(messages: tuple[ChatMessage, ...], history: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """A question's messages with the history behind its leading instructions."""
    roles = [message.role for message in messages]
    leading = next((index for index, role in enumerate(roles) if role not in ("system", "developer")), len(messages))
    return (*messages[:leading], *history, *messages[leading:])


def final_event(body: JsonObject, sequence: int) -> bytes:
    """The event that ends the stream of a finished response."""
    name = f"response.{body['status']}"
    return sse_block({"type": name, "sequence_number": sequence, "response": body}, name=name)


async def _end(reply: Reply[Answer], body: JsonObject, question: AnswerRequest, *, sequence: int) -> None:
    if question.stream:
        reply.continue_at(sequence)
        for block in _last_blocks(body, question, sequence):
            reply.event(block)
    await reply.done(Answer(body=body))


def _last_blocks(body: JsonObject, question: AnswerRequest, sequence: int) -> list[bytes]:
    if question.shape is Shape.RESPONSE:
        return [final_event(body, sequence)]
    return [*map(sse_block, last_chunks(body, include_usage=question.include_usage)), DONE_BLOCK]


def _asked(question: AnswerRequest, turn: Turn) -> Sequence[JsonObject]:
    """What is kept of the question: the items of a response, the messages of a chat completion."""
    return turn.input_items if question.shape is Shape.RESPONSE else stored_messages(question.id, question.messages)


def _turn_was_lost() -> RetryableError:
    return RetryableError(
        ErrorCode.CONVERSATION_LOCKED,
        "The answer took so long that another turn of this conversation began. Try again.",
        param="conversation",
        retry_after_seconds=1,
    )
