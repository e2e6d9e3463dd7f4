"""Uploaded files that a message shows to the model by their ids."""

from collections.abc import Iterable
from typing import Final

from libs.common.contracts.chat import ChatMessage, JsonObject

# The type of a part of a message, and where it says which file it is.
_PARTS: Final = {"file": "file", "image_url": "image_url"}


def attached_file_id(part: JsonObject) -> str | None:
    """The file that a part of a message stands for, unless it brings its content along."""
    named = part.get(_PARTS.get(part.get("type", ""), ""))
    if not isinstance(named, dict) or named.get("file_data") or named.get("url"):
        return None
    file_id = named.get("file_id")
    return file_id if isinstance(file_id, str) else None


def attached_file_ids(messages: Iterable[ChatMessage]) -> list[str]:
    """The files that messages show, in order, each as often as it is shown."""
    parts = (part for message in messages if isinstance(message.content, tuple) for part in message.content)
    return [file_id for part in parts if (file_id := attached_file_id(part))]
