"""Every error a client can see, and whether trying again can help.

The tree::

    PlatformError            carries an ErrorCode, a sentence for a person, and the request's field
    ├── PermanentError       the same request will fail again: the caller must change something
    └── RetryableError       the same request may succeed later

Services raise these; the gateway maps them to HTTP in one place (services/gateway/errors.py). The code decides
status, type and retryability, so no two places can disagree.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What one error code means to a client: HTTP status, OpenAI error type, whether to retry.

    Args:
        outage: something that the platform depends on is away or failing, which is no fault of the request or the job.
    """

    status: int
    type: str
    retryable: bool
    outage: bool = False


_INVALID: Final = "invalid_request_error"
_CONFLICT: Final = "conflict_error"
_OVERLOADED: Final = "overloaded_error"
_UPSTREAM: Final = "upstream_error"
_STORAGE: Final = "storage_error"


class ErrorCode(Enum):
    """The one list of error codes; the value is what a client reads in `error.code`."""

    INVALID_JSON = "invalid_json"
    INVALID_UNICODE = "invalid_unicode"
    INVALID_VALUE = "invalid_value"
    MISSING_FIELD = "missing_required_parameter"
    UNKNOWN_FIELD = "unknown_parameter"
    INVALID_CURSOR = "invalid_cursor"
    EMPTY_FILE = "empty_file"
    INVALID_FILE = "invalid_file"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_IMAGE = "unsupported_content"
    CONTENT_POLICY_VIOLATION = "content_policy_violation"
    BATCH_NOT_CANCELLABLE = "batch_not_cancellable"
    JOB_NOT_CANCELLABLE = "job_not_cancellable"
    JOB_NOT_REQUEUEABLE = "job_not_requeueable"
    INVALID_URL = "invalid_url"
    UNKNOWN_URL = "unknown_url"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    FILE_TYPE_NOT_ALLOWED = "unsupported_file"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    HEADERS_TOO_LARGE = "headers_too_large"
    MISSING_API_KEY = "missing_api_key"
    INVALID_API_KEY = "invalid_api_key"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    CONVERSATION_LOCKED = "conversation_locked"
    IDEMPOTENCY_IN_PROGRESS = "idempotency_in_progress"
    REINDEX_IN_PROGRESS = "reindex_in_progress"
    PRECONDITION_FAILED = "precondition_failed"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    QUEUE_FULL = "queue_full"
    QUEUE_UNAVAILABLE = "queue_unavailable"
    TOO_MANY_STREAMS = "too_many_streams"
    SHUTTING_DOWN = "shutting_down"
    LLM_UNAVAILABLE = "llm_unavailable"
    LLM_TIMEOUT = "llm_timeout"
    LLM_BAD_RESPONSE = "llm_bad_response"
    LLM_AUTH = "llm_auth"
    DOWNLOAD_FAILED = "download_failed"
    RETRIEVAL_UNAVAILABLE = "retrieval_unavailable"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    DECRYPT_FAILED = "decrypt_failed"
    REQUEST_CANCELLED = "request_cancelled"
    SERVER_ERROR = "server_error"

    @property
    def kind(self) -> ErrorKind:
        """Status, type and retryability of this code."""
        return _KINDS[self]


_KINDS: Final[dict[ErrorCode, ErrorKind]] = {
    ErrorCode.INVALID_JSON: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_UNICODE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_VALUE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.MISSING_FIELD: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.UNKNOWN_FIELD: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_CURSOR: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.EMPTY_FILE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_FILE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_IMAGE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.CONTENT_POLICY_VIOLATION: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.BATCH_NOT_CANCELLABLE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.JOB_NOT_CANCELLABLE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.JOB_NOT_REQUEUEABLE: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.INVALID_URL: ErrorKind(400, _INVALID, retryable=False),
    ErrorCode.UNKNOWN_URL: ErrorKind(404, _INVALID, retryable=False),
    ErrorCode.NOT_FOUND: ErrorKind(404, _INVALID, retryable=False),
    ErrorCode.MODEL_NOT_FOUND: ErrorKind(404, _INVALID, retryable=False),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorKind(405, _INVALID, retryable=False),
    ErrorCode.REQUEST_TIMEOUT: ErrorKind(408, "timeout_error", retryable=True),
    ErrorCode.BODY_TOO_LARGE: ErrorKind(413, _INVALID, retryable=False),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: ErrorKind(415, _INVALID, retryable=False),
    ErrorCode.FILE_TYPE_NOT_ALLOWED: ErrorKind(415, _INVALID, retryable=False),
    ErrorCode.IDEMPOTENCY_KEY_REUSED: ErrorKind(422, _INVALID, retryable=False),
    ErrorCode.HEADERS_TOO_LARGE: ErrorKind(431, _INVALID, retryable=False),
    ErrorCode.MISSING_API_KEY: ErrorKind(401, "authentication_error", retryable=False),
    ErrorCode.INVALID_API_KEY: ErrorKind(401, "authentication_error", retryable=False),
    ErrorCode.INSUFFICIENT_SCOPE: ErrorKind(403, "permission_error", retryable=False),
    ErrorCode.CONVERSATION_LOCKED: ErrorKind(409, _CONFLICT, retryable=True),
    ErrorCode.IDEMPOTENCY_IN_PROGRESS: ErrorKind(409, _CONFLICT, retryable=True),
    ErrorCode.REINDEX_IN_PROGRESS: ErrorKind(409, _CONFLICT, retryable=False),
    ErrorCode.PRECONDITION_FAILED: ErrorKind(412, _CONFLICT, retryable=False),
    ErrorCode.RATE_LIMIT_EXCEEDED: ErrorKind(429, "rate_limit_error", retryable=True),
    ErrorCode.INSUFFICIENT_QUOTA: ErrorKind(429, "insufficient_quota", retryable=False),
    ErrorCode.QUEUE_FULL: ErrorKind(503, _OVERLOADED, retryable=True),
    ErrorCode.QUEUE_UNAVAILABLE: ErrorKind(503, _OVERLOADED, retryable=True),
    ErrorCode.TOO_MANY_STREAMS: ErrorKind(503, _OVERLOADED, retryable=True),
    ErrorCode.SHUTTING_DOWN: ErrorKind(503, _OVERLOADED, retryable=True),
    ErrorCode.LLM_UNAVAILABLE: ErrorKind(503, _UPSTREAM, retryable=True, outage=True),
    ErrorCode.LLM_TIMEOUT: ErrorKind(504, _UPSTREAM, retryable=True, outage=True),
    ErrorCode.LLM_BAD_RESPONSE: ErrorKind(502, _UPSTREAM, retryable=True),
    ErrorCode.LLM_AUTH: ErrorKind(502, _UPSTREAM, retryable=False),
    ErrorCode.DOWNLOAD_FAILED: ErrorKind(502, _UPSTREAM, retryable=True),
    ErrorCode.RETRIEVAL_UNAVAILABLE: ErrorKind(503, _UPSTREAM, retryable=True, outage=True),
    ErrorCode.STORAGE_FULL: ErrorKind(507, _STORAGE, retryable=True, outage=True),
    ErrorCode.STORAGE_UNAVAILABLE: ErrorKind(503, _STORAGE, retryable=True, outage=True),
    ErrorCode.DEADLINE_EXCEEDED: ErrorKind(504, "timeout_error", retryable=True),
    ErrorCode.DECRYPT_FAILED: ErrorKind(500, "server_error", retryable=False),
    ErrorCode.REQUEST_CANCELLED: ErrorKind(409, _CONFLICT, retryable=False),
    ErrorCode.SERVER_ERROR: ErrorKind(500, "server_error", retryable=True),
}


class PlatformError(Exception):
    """An error with a code a client can act on.

    Args:
        code: which of the platform's errors this is.
        message: a sentence for a person: what happened, whose fault it is, what to do. Never a secret, path or stack.
        param: the request field at fault, in OpenAI's notation (`messages[0].role`), if there is one.
        retry_after_seconds: when a retry is worth while, if that is known.

    Attributes:
        answered_seconds_ago: how long ago the dependency that failed last answered anybody, if that is known.
    """

    answered_seconds_ago: float | None = None

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class ConfigurationError(ValueError):
    """The deployment is at fault; found at start. The text names the setting, says what to do, and shows no value."""


class PermanentError(PlatformError):
    """The same request will fail again."""


class RetryableError(PlatformError):
    """The same request may succeed later."""


def error_for(
    code: ErrorCode, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
) -> PlatformError:
    """The error of the class that `code` calls for; used where a code arrives from elsewhere, such as a queue."""
    kind = RetryableError if code.kind.retryable else PermanentError
    return kind(code, message, param=param, retry_after_seconds=retry_after_seconds)


def not_found(what: str, identifier: str, *, param: str | None = None) -> PermanentError:
    """The 404 of a missing object. A foreign tenant's object gets exactly the same."""
    return PermanentError(ErrorCode.NOT_FOUND, f"No {what} found with id '{identifier}'.", param=param)
