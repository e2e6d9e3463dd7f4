"""The text of a file in a vector store, as it was extracted and is searched."""

from libs.common.contracts.base import Message, Queue, TaskSpec


class ReadFile(Message):
    """Which file, in which vector store."""

    vector_store_id: str
    file_id: str


class FileText(Message):
    """The text in pieces, in order and without overlap; none while the file cannot be searched."""

    pieces: tuple[str, ...]


READ_FILE = TaskSpec("chat.read_file", Queue.CHAT, ReadFile, FileText)
