"""Running summaries: what no longer fits the history is put in short by the model, behind everybody's back.

    turn opened (conversations) -> chat.summarise -> conversations.keep_summary

The text goes to chat in a sealed job, and no turn waits for it: until the summary is there, the oldest turns are left
out. Deleting an item drops the summary that may tell of it, and refuses one that is just being made.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from libs.common.contracts.chat import JsonObject
from libs.common.contracts.conversations import SUMMARISE, Summary, Unsummarised
from libs.common.contracts.items import messages_of
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records.database import Database
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from services.conversations import item_store, job_requests, store
from services.conversations.contents import opened_item, opened_summary, sealed_summary
from services.conversations.encryption import DataKeys
from services.conversations.history import cut_to, estimate_tokens, text_of
from services.conversations.job_requests import SUMMARY_TASKS
from services.conversations.settings import ConversationsSettings

EXTRACTIVE_MODEL: Final = "docent-extractive"
_MAX_ITEMS: Final = 200
# A summary may take a part of the history's budget, and one part of this many.
_SUMMARY_SHARE: Final = 4


class Summaries:
    """Has the beginnings of long conversations summarised, and keeps what comes of it."""

    def __init__(
        self, database: Database, data_keys: DataKeys, messages: MessageSealer, settings: ConversationsSettings
    ) -> None:
        self._database = database
        self._keys = data_keys
        self._messages = messages
        self._settings = settings

    async def begin(self, tenant_id: str, conversation_id: str, *, model: str, before: int) -> None:
        """Have the items before a position summarised, or as many as one prompt may hold; none if that is off.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
        """
        if not self._wanted(model):
            return
        request = await self._database.read(
            lambda connection: self._request(connection, tenant_id, conversation_id, model, before)
        )

        def record(connection: Connection) -> None:
            if not job_requests.under_way(connection, tenant_id, conversation_id, SUMMARY_TASKS):
                submit(connection, self._messages, SUMMARISE, request, tenant_id=tenant_id, resource_id=conversation_id)

        if request.messages:
            await self._database.write(record)

    async def keep(self, request: Summary, job: JobRun) -> None:
        """Store a summary, unless its conversation was deleted or lost one of its items meanwhile."""
        tenant_id, conversation_id = job.tenant_id, request.conversation_id

        def last_step(connection: Connection) -> None:
            self._keep(connection, tenant_id, request)
            job_requests.forget(connection, tenant_id, conversation_id, SUMMARY_TASKS)

        await job.finish(last_step)

    def _keep(self, connection: Connection, tenant_id: str, request: Summary) -> None:
        conversation_id = request.conversation_id
        try:
            conversation = store.get(connection, tenant_id, conversation_id, lock=True)
        except PermanentError as error:
            if error.code is ErrorCode.NOT_FOUND:
                return
            raise
        there = item_store.count(connection, tenant_id, conversation_id, first=request.after, end=request.before)
        if there != request.items:
            return
        text = request.text[: self._settings.history_tokens * 4 // _SUMMARY_SHARE]
        key = self._keys.unwrap(tenant_id, conversation_id, conversation.wrapped_key)
        sealed = sealed_summary(key, conversation_id, text)
        store.keep_summary(
            connection, tenant_id, conversation_id, after=request.after, before=request.before, sealed=sealed
        )

    def _wanted(self, model: str) -> bool:
        chosen = self._settings.summaries
        return chosen == "on" or (chosen == "auto" and model != EXTRACTIVE_MODEL)

    def _request(
        self, connection: Connection, tenant_id: str, conversation_id: str, model: str, before: int
    ) -> Unsummarised:
        conversation = store.get(connection, tenant_id, conversation_id)
        after = conversation.summary_position
        items = item_store.between(connection, tenant_id, conversation_id, first=after, end=before, limit=_MAX_ITEMS)
        key = self._keys.unwrap(tenant_id, conversation_id, conversation.wrapped_key)
        opened = [opened_item(key, item) for item in items]
        count, messages = self._as_much_as_fits(opened)
        return Unsummarised(
            conversation_id=conversation_id,
            model=model,
            after=after,
            before=items[count - 1].position + 1 if count else after,
            items=count,
            earlier=opened_summary(key, conversation) or "",
            messages=messages,
        )

    def _as_much_as_fits(self, items: Sequence[JsonObject]) -> tuple[int, tuple[tuple[str, str], ...]]:
        """How many of the items one prompt may hold, at least one, and their texts."""
        budget_tokens = self._settings.history_tokens
        texts: list[tuple[str, str]] = []
        for count, item in enumerate(items):
            for message in messages_of([item]):
                budget_tokens -= estimate_tokens(message)
                if budget_tokens < 0 and texts:
                    return count, tuple(texts)
                if text := text_of(message):
                    texts.append((message.role, cut_to(text, self._settings.history_tokens)))
        return len(items), tuple(texts)
