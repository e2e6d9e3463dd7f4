"""Queue messages: a sealed envelope and body inside a Celery v2 message that we build ourselves.

Building the message here costs some 25 us; Celery's `send_task` costs 520-720 us and blocks when Redis is away. A
contract test feeds these messages to a stock Celery worker, and celery and kombu are held to a minor version.
"""

import base64
import uuid
from typing import Final

import orjson
from pydantic import ValidationError

from libs.common import keys
from libs.common.contracts.base import Message
from libs.common.errors import ErrorCode, PermanentError, PlatformError
from libs.common.keyring import Keyring
from libs.common.sealing import Sealer

VERSION: Final = 1


class Envelope(Message):
    """What travels with every body.

    Attributes:
        id: request id on the interactive lane, job id on the job lane.
        attempt: which pushing of the same request this is, from 0; always 0 for jobs, whose attempts the ledger counts.
        issued_at, deadline: Unix seconds on the broker's clock; no deadline for jobs.
        reply_to: the channel of the waiting gateway process; None when nobody waits.
        keep_events: also keep the events for whoever resumes the stream.
    """

    version: int = VERSION
    id: str
    task: str
    tenant_id: str
    key_id: str = ""
    attempt: int = 0
    issued_at: float
    deadline: float | None = None
    reply_to: str | None = None
    keep_events: bool = False
    traceparent: str | None = None


class MessageSealer:
    """Seals and opens messages; holds only the keys of the queues its process may use."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._sealers: dict[str, Sealer] = {}

    def seal(self, queue: str, envelope: Envelope, body: bytes) -> bytes:
        """The Celery message for `queue`, ready to be pushed."""
        plain = envelope.model_dump_json().encode() + b"\n" + body
        sealed = self._sealer(queue).seal(plain, envelope.task, envelope.id)
        return celery_message(queue, envelope.task, envelope.id, base64.b64encode(sealed).decode())

    def open(self, queue: str, task: str, message_id: str, payload: str) -> tuple[Envelope, bytes]:
        """Envelope and body of a received message.

        Raises:
            PermanentError: DECRYPT_FAILED when it was not sealed by one of us for this queue, task and id.
        """
        try:
            plain = self._sealer(queue).open(base64.b64decode(payload, validate=True), task, message_id)
            header, _, body = plain.partition(b"\n")
            envelope = Envelope.model_validate_json(header)
        except (ValueError, ValidationError) as error:
            raise PermanentError(ErrorCode.DECRYPT_FAILED, "The message cannot be opened.") from error
        return envelope, body

    def seal_job_request(self, queue: str, job_id: str, body: bytes) -> bytes:
        """A job's request as kept in the ledger, bound to the job."""
        return self._sealer(queue).seal(body, "job", job_id)

    def open_job_request(self, queue: str, job_id: str, sealed: bytes) -> bytes:
        """The inverse of `seal_job_request`.

        Raises:
            PermanentError: DECRYPT_FAILED.
        """
        return self._sealer(queue).open(sealed, "job", job_id)

    def _sealer(self, queue: str) -> Sealer:
        sealer = self._sealers.get(queue)
        if sealer is None:
            sealer = self._sealers[queue] = self._keyring.sealer(keys.queue_purpose(queue))
        return sealer


def celery_message(queue: str, task: str, message_id: str, payload: str) -> bytes:
    """A Celery protocol v2 message with `payload` as its only argument, in kombu's Redis encoding."""
    arguments = orjson.dumps([[payload], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return orjson.dumps(
        {
            "body": base64.b64encode(arguments).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": task,
                "id": message_id,
                "root_id": message_id,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "eta": None,
                "expires": None,
                "timelimit": [None, None],
                "argsrepr": "",
                "kwargsrepr": "",
                "origin": "docent",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": message_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def payload_of(body: bytes | str) -> str:
    """The payload out of a received message's decoded body.

    Raises:
        PermanentError: DECRYPT_FAILED when the body is not of `celery_message`'s form.
    """
    try:
        payload = orjson.loads(body)[0][0]
    except (ValueError, LookupError, TypeError) as error:
        raise PermanentError(ErrorCode.DECRYPT_FAILED, "The message cannot be read.") from error
    if not isinstance(payload, str):
        raise PermanentError(ErrorCode.DECRYPT_FAILED, "The message cannot be read.")
    return payload


def error_body(error: PlatformError) -> dict[str, str | float | None]:
    """An error as it travels by queue; the inverse of `error_of`."""
    return {
        "code": error.code.value,
        "message": error.message,
        "param": error.param,
        "retry_after_seconds": error.retry_after_seconds,
    }
