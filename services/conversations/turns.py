"""Turns: history before the answer, the answer into the conversation after it."""

from typing import Final

from sqlalchemy import Connection

from libs.common.contracts.base import Empty
from libs.common.contracts.chat import ANSWER, Answer, AnswerRequest, ChatMessage, JsonObject, Turn
from libs.common.contracts.conversations import AbandonTurn, CloseTurn, OpenTurn
from libs.common.contracts.items import messages_of
from libs.common.errors import ErrorCode, RetryableError
from libs.common.records.database import Database
from libs.common.records.paging import PageQuery
from libs.common.tasks.replies import Reply, sse_block
from services.conversations import response_store, store
from services.conversations.contents import opened_item, response_body, response_input, sealed_items, sealed_response
from services.conversations.encryption import DataKeys
from services.conversations.history import recent_turns
from services.conversations.settings import ConversationsSettings
from services.conversations.store import SealedItem

# More than the budget of tokens lets through; they only bound what is read.
_NEWEST_ITEMS: Final = PageQuery(limit=400, order="desc")
_MAX_CHAIN: Final = 100
# A background answer may wait behind people and be made again after a death.
_BACKGROUND_TURN_SECONDS: Final = 3600.0


class Turns:
    """Opens, closes and abandons turns."""

    def __init__(self, database: Database, data_keys: DataKeys, settings: ConversationsSettings) -> None:
        self._database = database
        self._keys = data_keys
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
            lambda connection: self._stored_body(connection, reply.tenant_id, question.id)
        )
        if answered is not None:
            await _end(reply, answered, stream=question.stream, sequence=0)
            return
        try:
            await reply.pass_on(ANSWER, await self.with_history_of(request, reply.tenant_id))
        except BaseException:
            # Nobody will answer, so the conversation must not wait for the turn to expire.
            await self._free(request.conversation_id, question.id, reply.tenant_id)
            raise

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
        await _end(reply, body, stream=request.request.stream, sequence=request.next_sequence)

    async def abandon(self, request: AbandonTurn, reply: Reply[Empty]) -> None:
        """End a turn whose answer failed."""
        await self._database.write(
            lambda connection: store.free_turn(connection, reply.tenant_id, request.conversation_id, request.token)
        )
        await reply.done(Empty())

    async def with_history_of(self, request: OpenTurn, tenant_id: str) -> AnswerRequest:
        """The question with its history in front, and with the turn's token where there is a conversation.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
            RetryableError: CONVERSATION_LOCKED while another turn is open.
        """
        if request.conversation_id is not None:
            return await self._in_conversation(request.answer, request.conversation_id, tenant_id)
        history = await self._history_of_chain(tenant_id, request.previous_response_id or "")
        return self._with_history(request.answer, history)

    async def _in_conversation(self, question: AnswerRequest, conversation_id: str, tenant_id: str) -> AnswerRequest:
        background = bool(question.echo.get("background"))
        seconds = _BACKGROUND_TURN_SECONDS if background else self._settings.turn_seconds

        def take(connection: Connection) -> tuple[int, bytes, list[SealedItem]]:
            token = store.take_turn(connection, tenant_id, conversation_id, question.id, seconds=seconds)
            wrapped: bytes = store.get(connection, tenant_id, conversation_id).wrapped_key
            return token, wrapped, store.page(connection, tenant_id, conversation_id, _NEWEST_ITEMS).items

        token, wrapped, newest_first = await self._database.write(take)
        key = self._keys.unwrap(tenant_id, conversation_id, wrapped)
        history = messages_of(opened_item(key, item) for item in reversed(newest_first))
        turn = (question.turn or Turn(conversation_id=conversation_id)).model_copy(update={"token": token})
        return self._with_history(question.model_copy(update={"turn": turn}), history)

    async def _history_of_chain(self, tenant_id: str, response_id: str) -> tuple[ChatMessage, ...]:
        chain = await self._database.read(
            lambda connection: response_store.chain(connection, tenant_id, response_id, limit=_MAX_CHAIN)
        )
        items: list[JsonObject] = []
        for response in reversed(chain):
            items += response_input(self._keys, tenant_id, response)
            items += response_body(self._keys, tenant_id, response)["output"]
        return messages_of(items)

    def _with_history(self, question: AnswerRequest, history: tuple[ChatMessage, ...]) -> AnswerRequest:
        kept = recent_turns(history, self._settings.history_tokens)
        return question.model_copy(update={"messages": after_instructions(question.messages, kept)})

    def commit(self, connection: Connection, tenant_id: str, request: CloseTurn) -> JsonObject:
        """Write everything or nothing; the answer that is stored, which is an earlier one if the message is a copy."""
        turn, body = request.request.turn or Turn(), request.response
        conversation_id = turn.conversation_id
        # The conversation before the response: its deletion takes the same order.
        held = conversation_id is None or store.free_turn(connection, tenant_id, conversation_id, turn.token)
        response = sealed_response(
            self._keys, tenant_id, body, input_items=turn.input_items, conversation_id=conversation_id
        )
        if not response_store.insert(connection, tenant_id, response, created_at=request.request.created_at):
            return response_body(self._keys, tenant_id, response_store.get(connection, tenant_id, response.id))
        if conversation_id is not None:
            row = store.get(connection, tenant_id, conversation_id)
            if not held:
                raise _turn_was_lost()
            key = self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)
            new = sealed_items(key, [*turn.input_items, *body["output"]])
            store.append(connection, tenant_id, conversation_id, new)
        return body

    def _stored_body(self, connection: Connection, tenant_id: str, response_id: str) -> JsonObject | None:
        response = response_store.find(connection, tenant_id, response_id)
        return None if response is None else response_body(self._keys, tenant_id, response)


def after_instructions(messages: tuple[ChatMessage, ...], history: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """A question's messages with the history behind its leading instructions."""
    roles = [message.role for message in messages]
    leading = next((index for index, role in enumerate(roles) if role not in ("system", "developer")), len(messages))
    return (*messages[:leading], *history, *messages[leading:])


def final_event(body: JsonObject, sequence: int) -> bytes:
    """The event that ends the stream of a finished response."""
    name = f"response.{body['status']}"
    return sse_block({"type": name, "sequence_number": sequence, "response": body}, name=name)


async def _end(reply: Reply[Answer], body: JsonObject, *, stream: bool, sequence: int) -> None:
    if stream:
        reply.continue_at(sequence)
        reply.event(final_event(body, sequence))
    await reply.done(Answer(body=body))


def _turn_was_lost() -> RetryableError:
    return RetryableError(
        ErrorCode.CONVERSATION_LOCKED,
        "The answer took so long that another turn of this conversation began. Try again.",
        param="conversation",
        retry_after_seconds=1,
    )
