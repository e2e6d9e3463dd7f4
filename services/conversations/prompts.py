"""What a question would come to with its history, read without opening a turn."""

from sqlalchemy import Connection

from libs.common.contracts.chat import Answer, ChatMessage
from libs.common.contracts.compaction import COMPACT, OpenCompaction
from libs.common.contracts.input_tokens import CountRequest, TokenCount
from libs.common.contracts.token_estimates import estimate_text_tokens
from libs.common.records.database import Database
from libs.common.tasks.replies import Reply
from services.conversations import item_store, store
from services.conversations.contents import opened_item, opened_summary
from services.conversations.encryption import DataKeys
from services.conversations.history import (
    PastTurn,
    estimate_tokens,
    past_turns,
    recent_turns,
    summary_message,
)
from services.conversations.item_store import SealedItem
from services.conversations.settings import ConversationsSettings
from services.conversations.store import Conversation
from services.conversations.turns import MAX_ITEMS, Turns


class Prompts:
    """Counts and compacts what would be asked. Errors as those of `Turns.open`, but for locks."""

    def __init__(self, database: Database, data_keys: DataKeys, turns: Turns, settings: ConversationsSettings) -> None:
        self._database = database
        self._keys = data_keys
        self._turns = turns
        self._budget_tokens = settings.history_tokens

    async def count(self, request: CountRequest, reply: Reply[TokenCount]) -> None:
        """About how many tokens the prompt of a response would have."""
        history = await self._history(request, reply.tenant_id)
        messages = sum(map(estimate_tokens, (*history, *request.messages)))
        await reply.done(TokenCount(tokens=messages + estimate_text_tokens(request.attachments)))

    async def open_compaction(self, request: OpenCompaction, reply: Reply[Answer]) -> None:
        """Put a stored response and those before it in front of what is to be compacted, and pass it on to chat."""
        before = await self._turns.items_of_chain(reply.tenant_id, request.previous_response_id)
        compaction = request.compaction
        await reply.pass_on(COMPACT, compaction.model_copy(update={"items": (*before, *compaction.items)}))

    async def _history(self, request: CountRequest, tenant_id: str) -> tuple[ChatMessage, ...]:
        if request.conversation_id is not None:
            return await self._of_conversation(tenant_id, request.conversation_id)
        if request.previous_response_id is not None:
            items = await self._turns.items_of_chain(tenant_id, request.previous_response_id)
            return _messages(recent_turns(past_turns(enumerate(items)), self._budget_tokens))
        return ()

    async def _of_conversation(self, tenant_id: str, conversation_id: str) -> tuple[ChatMessage, ...]:
        def read(connection: Connection) -> tuple[Conversation, list[SealedItem]]:
            row = store.get(connection, tenant_id, conversation_id)
            first = row.summary_position
            return row, item_store.newest(connection, tenant_id, conversation_id, first=first, limit=MAX_ITEMS)

        row, items = await self._database.read(read)
        key = self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)
        summary = opened_summary(key, row)
        told = (summary_message(summary),) if summary else ()
        past = past_turns((item.position, opened_item(key, item)) for item in items)
        return told + _messages(recent_turns(past, self._budget_tokens - sum(map(estimate_tokens, told))))


def _messages(turns: list[PastTurn]) -> tuple[ChatMessage, ...]:
    return tuple(message for turn in turns for message in turn.messages)
