"""Uploaded files as a model can be shown them: their content in the place of their ids."""

import base64
import mimetypes
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from libs.common.blobs import BlobStore
from libs.common.contracts.attached_files import attached_file_id, attached_file_ids
from libs.common.contracts.chat import ChatMessage, JsonObject
from libs.common.errors import ErrorCode, PermanentError, not_found
from libs.common.records import files
from libs.common.records.database import Database
from libs.common.records.files import File


class AttachedFiles:
    """Reads the tenant's files that messages name.

    What was said before the last answer is history: a file of it that is gone, or for which there is no room any more,
    is only named.

    Args:
        max_bytes: of all files of one prompt together.
    """

    def __init__(self, database: Database, blobs: BlobStore, max_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self._max_bytes = max_bytes

    async def shown(self, tenant_id: str, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """The messages with the content of their files.

        Raises:
            PermanentError: NOT_FOUND, for a missing file and a foreign one alike; BODY_TOO_LARGE.
        """
        wanted = list(dict.fromkeys(reversed(attached_file_ids(messages))))
        if not wanted:
            return tuple(messages)
        found = await self._database.read(lambda connection: _found(connection, tenant_id, wanted))
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        new = set(attached_file_ids(messages[answers[-1] + 1 if answers else 0 :]))
        contents = await self._contents(tenant_id, self._chosen(wanted, found, new))
        return tuple(_with_contents(message, found, contents) for message in messages)

    def _chosen(self, wanted: Sequence[str], found: Mapping[str, File], new: set[str]) -> list[File]:
        """The files to be shown, newest first, as far as there is room."""
        chosen, room_bytes = [], self._max_bytes
        for file_id in wanted:
            if file_id not in found and file_id in new:
                raise not_found("file", file_id)
            if file_id not in found:
                continue
            room_bytes -= found[file_id].bytes
            if room_bytes >= 0:
                chosen.append(found[file_id])
            elif file_id in new:
                message = f"The files of a question may have at most {self._max_bytes} bytes together."
                raise PermanentError(ErrorCode.BODY_TOO_LARGE, message, param="file_id")
        return chosen

    async def _contents(self, tenant_id: str, chosen: Sequence[File]) -> dict[str, str]:
        contents = {}
        for file in chosen:
            content = b"".join([chunk async for chunk in self._blobs.read(tenant_id, file.blob_id)])
            media_type = mimetypes.guess_type(file.filename)[0] or "application/octet-stream"
            contents[file.id] = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
        return contents


def _found(connection: Connection, tenant_id: str, file_ids: Sequence[str]) -> dict[str, File]:
    return {file.id: file for file in files.find_many(connection, tenant_id, file_ids)}


def _with_contents(message: ChatMessage, found: Mapping[str, File], contents: Mapping[str, str]) -> ChatMessage:
    if not isinstance(message.content, tuple):
        return message
    parts = tuple(_shown(part, found, contents) for part in message.content)
    return message.model_copy(update={"content": parts})


def _shown(part: JsonObject, found: Mapping[str, File], contents: Mapping[str, str]) -> JsonObject:
    file_id = attached_file_id(part)
    if file_id is None:
        return part
    name = found[file_id].filename if file_id in found else file_id
    if file_id not in contents:
        return {"type": "text", "text": f"[The file {name} was shown here.]"}
    named = {key: value for key, value in part[part["type"]].items() if key != "file_id"}
    if part["type"] == "image_url":
        return {"type": "image_url", "image_url": named | {"url": contents[file_id]}}
    return {"type": "file", "file": {"filename": name} | named | {"file_data": contents[file_id]}}
