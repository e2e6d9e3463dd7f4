"""A whole conversation as one download, read page by page as the client takes it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import orjson

from libs.common.contracts.chat import JsonObject
from libs.common.contracts.conversations import LIST_ITEMS, Body, ListItems
from libs.common.errors import RetryableError
from libs.common.tasks.open_call import Call
from services.gateway.streams import Interactive

_PAGE_ITEMS: Final = 100
_INCLUDE: Final = ("file_search_call.results", "reasoning.encrypted_content")
# A page counts as a request: where the limit is reached, the download only takes longer.
_TRIES: Final = 5
_LONGEST_PAUSE_SECONDS: Final = 10.0
_SPEAKERS: Final = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "Developer"}


def first_page(conversation_id: str) -> ListItems:
    """Asks for the items with which an export begins."""
    return ListItems(conversation_id=conversation_id, limit=_PAGE_ITEMS, order="asc", include=_INCLUDE)


async def exported_json(interactive: Interactive, conversation: JsonObject, first: JsonObject) -> AsyncIterator[bytes]:
    """One JSON object: the conversation and all its items, oldest first."""
    head = orjson.dumps({"object": "conversation.export", "conversation": conversation})
    yield head[:-1] + b',"items":['
    comma = b""
    async for items in _pages(interactive, conversation["id"], first):
        for item in items:
            yield comma + orjson.dumps(item)
            comma = b","
    yield b"]}"


async def exported_markdown(
    interactive: Interactive, conversation: JsonObject, first: JsonObject
) -> AsyncIterator[bytes]:
    """A page to be read: a heading per item, its text below."""
    began = datetime.fromtimestamp(conversation["created_at"], UTC).isoformat()
    yield f"# Conversation {conversation['id']}\n\nBegun {began}\n".encode()
    async for items in _pages(interactive, conversation["id"], first):
        yield "".join(f"\n## {heading}\n\n{text}\n" for heading, text in map(_readable, items)).encode()


async def _pages(interactive: Interactive, conversation_id: str, page: JsonObject) -> AsyncIterator[list[JsonObject]]:
    yield page["data"]
    while page["has_more"]:
        message = first_page(conversation_id).model_copy(update={"after": page["last_id"]})
        page = (await _patiently(interactive, message)).body
        yield page["data"]


async def _patiently(interactive: Interactive, message: ListItems) -> Body:
    gateway = interactive.gateway
    for left in reversed(range(_TRIES)):
        deadline_seconds = gateway.settings.interactive_deadline_seconds
        call = Call(LIST_ITEMS, message, uuid.uuid4().hex, interactive.principal.limits, deadline_seconds)
        try:
            return await gateway.caller.call(call)
        except RetryableError as error:
            if not left:
                raise
            await asyncio.sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
    raise AssertionError  # the last try returns or raises


def _readable(item: JsonObject) -> tuple[str, str]:
    """Heading and text of an item."""
    kind = item["type"]
    if kind == "message":
        return _SPEAKERS[item["role"]], "\n\n".join(map(_part, item["content"]))
    if kind == "function_call":
        return f"Call of {item['name']}", f"```json\n{item['arguments']}\n```"
    if kind == "function_call_output":
        output = item["output"]
        return "Result of the call", output if isinstance(output, str) else "\n\n".join(map(_part, output))
    if kind == "file_search_call":
        return "Search", "\n".join(f"- {query}" for query in item["queries"])
    return "Reasoning", "\n\n".join(str(part.get("text", "")) for part in item["summary"])


def _part(part: JsonObject) -> str:
    text = part.get("text") or part.get("refusal")
    return str(text) if text else f"[{part['type'].removeprefix('input_')}]"
