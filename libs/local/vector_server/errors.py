"""Failures in the words and statuses of Qdrant's REST API, and the engine's own failures turned into them."""

from collections.abc import Iterator
from contextlib import contextmanager


class QdrantError(Exception):
    """A failure the client is told of: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def wrong_input(reason: str) -> QdrantError:
    """The 400 of a request that can never succeed."""
    return QdrantError(400, f"Wrong input: {reason}")


def not_found(reason: str) -> QdrantError:
    """The 404 of something that is not there."""
    return QdrantError(404, f"Not found: {reason}")


def collection_not_found(name: str) -> QdrantError:
    """The 404 of a collection or alias nobody created."""
    return not_found(f"Collection `{name}` doesn't exist!")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Raise QdrantError for whatever the engine raises inside the block."""
    try:
        yield
    except QdrantError:
        raise
    except Exception as error:
        raise _from_engine(error) from error


def _from_engine(error: Exception) -> QdrantError:
    # The engine raises bare Exceptions, so the message is all there is to tell them apart by.
    message = str(error)
    if message.startswith("No point with id"):
        return not_found(message)
    if "Shard is not initialized" in message:
        return not_found("the collection was deleted meanwhile")
    if "Service runtime error" in message or type(error) not in (Exception, ValueError):
        return QdrantError(500, f"Service internal error: {message}")
    return wrong_input(message)
