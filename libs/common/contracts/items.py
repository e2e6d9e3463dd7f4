"""Conversation items: from what clients send to full items, and from items to prompt messages."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from libs.common.contracts.chat import ChatMessage, JsonObject
from libs.common.contracts.ids import new_hex
from libs.common.errors import ErrorCode, PermanentError

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ROLES: Final = ("user", "assistant", "system", "developer")
_STATUSES: Final = ("completed", "incomplete", "in_progress")
# A part's type, and the fields of which it must have one; a model could not be shown what is named otherwise.
_INPUT_PARTS: Final = {
    "input_text": ("text",),
    "input_image": ("image_url", "file_id"),
    "input_file": ("file_id", "file_data"),
}
_OUTPUT_PARTS: Final = {"output_text": ("text",), "refusal": ("refusal",)}
# What a part or an item may have besides: text, lists of these, and how closely to look at an image or a file.
_TEXTS: Final = ("image_url", "file_id", "file_data", "file_url", "filename", "namespace", "encrypted_content")
_LISTS: Final[Mapping[str, type[str] | type[dict[str, object]]]] = {
    "summary": dict,
    "queries": str,
    "results": dict,
    "annotations": dict,
    "logprobs": dict,
}
_DETAILS: Final = {"input_image": ("low", "high", "auto", "original"), "input_file": ("low", "high", "auto")}
_PREFIXES: Final = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "file_search_call": "fs",
    "compaction": "cmp",
}
_REQUIRED: Final[Mapping[str, Mapping[str, type[str] | type[list[object]]]]] = {
    "function_call": {"call_id": str, "name": str, "arguments": str},
    "function_call_output": {"call_id": str},
    "reasoning": {"summary": list},
    "file_search_call": {"queries": list},
    "compaction": {"encrypted_content": str},
}


# The field of a message that holds a sealed compaction, which only the chat service can open.
COMPACTED: Final = "compaction"


def new_item_id(prefix: str) -> str:
    """A fresh item id."""
    return f"{prefix}_{new_hex(prefix)}"


def normalise_items(
    raw: str | Sequence[JsonObject], *, new_id: Callable[[str], str] = new_item_id, param: str = "input"
) -> tuple[JsonObject, ...]:
    """Full items, as OpenAI returns them, from a string, easy messages or items.

    Args:
        new_id: makes the id of an item that has none, from its type's prefix.
        param: the request field, for errors.

    Raises:
        PermanentError: INVALID_VALUE or MISSING_FIELD, naming the item and field at fault.
    """
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    items: dict[str, JsonObject] = {}
    for index, given in enumerate(raw):
        item = _item(given, new_id, f"{param}[{index}]")
        if item["id"] in items:
            raise _invalid("Two items have the same id.", f"{param}[{index}].id")
        items[item["id"]] = item
    return tuple(items.values())


def messages_of(items: Iterable[JsonObject]) -> tuple[ChatMessage, ...]:
    """The items as prompt messages; items that are no part of a prompt, such as searches, are left out.

    Function calls in a row become one message, as upstreams demand of calls made at once.
    """
    messages: list[ChatMessage] = []
    for item in items:
        message = _message(item)
        if message is None:
            continue
        if "tool_calls" in message.extra and messages and "tool_calls" in messages[-1].extra:
            calls = [*messages.pop().extra["tool_calls"], *message.extra["tool_calls"]]
            message = ChatMessage(role="assistant", extra={"tool_calls": calls})
        messages.append(message)
    return tuple(messages)


def _item(item: JsonObject, new_id: Callable[[str], str], where: str) -> JsonObject:
    kind = item.get("type") or "message"
    if not isinstance(kind, str) or kind not in _PREFIXES:
        raise _invalid(f"The type must be one of {', '.join(_PREFIXES)}.", f"{where}.type")
    head = {
        "type": kind,
        "id": _given_id(item, where) or new_id(_PREFIXES[kind]),
        "status": _one_of(_STATUSES, item.get("status") or "completed", f"{where}.status"),
    }
    if kind == "message":
        role = _one_of(_ROLES, _required(item, "role", where), f"{where}.role")
        parts = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
        return {**head, "role": role, "content": _parts(_required(item, "content", where), parts, f"{where}.content")}
    for field, expected in _REQUIRED[kind].items():
        if not isinstance(_required(item, field, where), expected):
            raise _invalid("This has the wrong type.", f"{where}.{field}")
    _check_optional(item, where)
    if kind == "function_call_output" and not isinstance(_required(item, "output", where), str):
        return {**item, **head, "output": _parts(item["output"], _INPUT_PARTS, f"{where}.output")}
    return {**item, **head}


def _given_id(item: JsonObject, where: str) -> str | None:
    given = item.get("id")
    if given is None or (isinstance(given, str) and _ID.fullmatch(given)):
        return given
    raise _invalid("An id is 1 to 64 letters, digits, hyphens and underscores.", f"{where}.id")


def _parts(content: object, kinds: Mapping[str, Sequence[str]], where: str) -> list[JsonObject]:
    if isinstance(content, str):
        content = [{"type": next(iter(kinds)), "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise _invalid("The content must be text or a list of parts.", where)
    return [_part(part, kinds, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: object, kinds: Mapping[str, Sequence[str]], where: str) -> JsonObject:
    if not isinstance(part, dict):
        raise _invalid("A part must be an object.", where)
    kind = _one_of(tuple(kinds), _required(part, "type", where), f"{where}.type")
    given = [part[field] for field in kinds[kind] if part.get(field) is not None]
    if not given:
        raise _missing(f"{where}.{kinds[kind][0]}")
    if not all(isinstance(value, str) for value in given):
        raise _invalid("This must be text.", f"{where}.{kinds[kind][0]}")
    _check_optional(part, where)
    if kind in _DETAILS and part.get("detail") is not None:
        _one_of(_DETAILS[kind], part["detail"], f"{where}.detail")
    if kind == "output_text":
        return {**part, "annotations": part.get("annotations") or []}
    return {**part, "detail": part.get("detail") or "auto"} if kind == "input_image" else dict(part)


def _check_optional(content: JsonObject, where: str) -> None:
    for field in _TEXTS:
        if not isinstance(content.get(field), str | None):
            raise _invalid("This must be text.", f"{where}.{field}")
    for field, expected in _LISTS.items():
        values = content.get(field)
        if values is None:
            continue
        if not isinstance(values, list | tuple) or not all(isinstance(value, expected) for value in values):
            raise _invalid("This must be a list, and everything in it of the right type.", f"{where}.{field}")


def _message(item: JsonObject) -> ChatMessage | None:
    kind = item["type"]
    if kind == "message":
        return ChatMessage(role=item["role"], content=_content(item["content"]))
    if kind == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return ChatMessage(role="assistant", extra={"tool_calls": [call]})
    if kind == "compaction":
        return ChatMessage(role="user", extra={COMPACTED: item["encrypted_content"]})
    if kind == "function_call_output":
        output = item["output"]
        content = output if isinstance(output, str) else _content(output)
        return ChatMessage(role="tool", content=content, extra={"tool_call_id": item["call_id"]})
    return None


def _content(parts: Sequence[JsonObject]) -> str | tuple[JsonObject, ...]:
    texts = [text for part in parts if isinstance(text := part.get("text", part.get("refusal")), str)]
    if len(texts) == len(parts):
        return "\n".join(texts)
    return tuple(_chat_part(part) for part in parts)


def _chat_part(part: JsonObject) -> JsonObject:
    """A part by the chat completions API's names, as upstreams know them."""
    if part["type"] == "input_image":
        given = {"url": part.get("image_url"), "file_id": part.get("file_id"), "detail": part["detail"]}
        return {"type": "image_url", "image_url": {key: value for key, value in given.items() if value is not None}}
    if part["type"] == "input_file":
        file = {key: part[key] for key in ("file_id", "file_data", "filename") if part.get(key) is not None}
        return {"type": "file", "file": file}
    return {"type": "text", "text": part["text"]}


def _required(content: JsonObject, field: str, where: str) -> object:
    if content.get(field) is None:
        raise _missing(f"{where}.{field}")
    found: object = content[field]
    return found


def _one_of(allowed: Sequence[str], value: object, where: str) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    raise _invalid(f"This must be one of {', '.join(allowed)}.", where)


def _invalid(message: str, param: str) -> PermanentError:
    return PermanentError(ErrorCode.INVALID_VALUE, message, param=param)


def _missing(param: str) -> PermanentError:
    return PermanentError(ErrorCode.MISSING_FIELD, f"Missing required parameter: '{param}'.", param=param)
