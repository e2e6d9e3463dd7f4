"""Files, vector stores and what is attached to them, as the JSON objects of the OpenAI API."""

from typing import Any, Final

from libs.common.contracts.chat import SearchResult
from libs.common.records.files import File
from libs.common.records.vector_store_files import AttachedFile
from libs.common.records.vector_stores import FileCounts, VectorStore

JsonObject = dict[str, Any]

# How often a client should look whether a file is searchable by now.
POLL_HEADERS: Final = {"openai-poll-after-ms": "500"}


def file_object(file: File) -> JsonObject:
    """An uploaded file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": _seconds(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
    }


def store_object(store: VectorStore, counts: FileCounts) -> JsonObject:
    """A vector store with the counts of its files."""
    status = "expired" if store.expired else "in_progress" if counts.in_progress else "completed"
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "name": store.name,
        "usage_bytes": counts.usage_bytes,
        "file_counts": _counts(counts),
        "status": status,
        "expires_after": store.expires_after,
        "expires_at": _seconds(store.expires_at),
        "last_active_at": int(store.last_active_at),
        "metadata": store.metadata,
        "embedding_model": store.embedding_model,
        "instructions": store.instructions,
    }


def attached_object(attached: AttachedFile) -> JsonObject:
    """A file in a vector store."""
    error = {"code": attached.error_code, "message": attached.error_message} if attached.error_code else None
    # `auto` is no strategy that OpenAI's reply knows: "other" stands for one without a window size.
    static = attached.chunking.get("type") == "static"
    return {
        "id": attached.file_id,
        "object": "vector_store.file",
        "created_at": int(attached.created_at),
        "vector_store_id": attached.vector_store_id,
        "status": attached.status,
        "last_error": error,
        "usage_bytes": attached.usage_bytes,
        "attributes": attached.attributes,
        "chunking_strategy": attached.chunking if static else {"type": "other"},
    }


def file_batch_object(
    batch_id: str, store_id: str, created_at: float, counts: FileCounts, *, cancelled: bool
) -> JsonObject:
    """A batch of files that were attached together."""
    status = "cancelled" if cancelled else "in_progress" if counts.in_progress else "completed"
    return {
        "id": batch_id,
        "object": "vector_store.files_batch",
        "created_at": int(created_at),
        "vector_store_id": store_id,
        "status": status,
        "file_counts": _counts(counts),
    }


def search_object(result: SearchResult) -> JsonObject:
    """A passage found by a search."""
    return {
        "file_id": result.file_id,
        "filename": result.filename,
        "score": result.score,
        "attributes": result.attributes,
        "content": [{"type": "text", "text": result.text}],
    }


def _counts(counts: FileCounts) -> dict[str, int]:
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "total": counts.total,
    }


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
