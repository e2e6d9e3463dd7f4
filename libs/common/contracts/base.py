"""The base of every queue message and the typed name of a task."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A model that travels by queue.

    Unknown fields are ignored and every added field has a default, so that old and new versions run side by side
    during a rolling update.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)


class Queue(StrEnum):
    """Every queue there is. The value is the Redis list's name."""

    CHAT = "chat"  # people wait: answers, search, embeddings
    CHAT_JOBS = "chat_jobs"  # background responses and batch items: same code, never before people
    CONVERSATIONS = "conversations"
    INGEST = "ingest"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class TaskSpec(Generic[RequestT, ReplyT]):
    """A named kind of work on the interactive lane: someone waits for its reply.

    Attributes:
        name: the Celery task name, `<service>.<verb>`.
        queue: where its messages go.
        request: model of the request.
        reply: model of the final reply.
    """

    name: str
    queue: Queue
    request: type[RequestT]
    reply: type[ReplyT]


@dataclass(frozen=True, slots=True)
class JobSpec(Generic[RequestT]):
    """A named kind of work on the job lane: its record is the truth and its message only a hint.

    Attributes:
        name: the Celery task name, `<service>.<verb>`.
        queue: where its messages go.
        request: model of the payload kept in the job's row.
    """

    name: str
    queue: Queue
    request: type[RequestT]


class Empty(Message):
    """A reply that carries nothing but its arrival."""
