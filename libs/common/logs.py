"""Logs: one JSON object a line on standard output, with context, without secrets.

Everything passes through `_LineFormatter`, whichever way it was logged: by structlog, or by a library through
the standard `logging` module. Ids of the work at hand come from context variables, so they follow an asyncio task.
"""

import logging
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TextIO

import orjson
import structlog
from opentelemetry import trace

from libs.common.errors import PlatformError

REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(r"authorization|api[_.-]?key|passw|secret|cookie|credential|token(?!iz)", re.IGNORECASE)
# Every alternative starts at a literal and is bounded, so that no input makes the search slow.
_SECRET_TEXT: Final = re.compile(
    r"\bbearer\s{1,4}[A-Za-z0-9._~+/=-]{8,}"
    r"|\b(?:authorization|cookie)[\"']?\s{0,2}[:=]\s{0,2}[\"']?(?:\w{1,16}\s)?[^\s\"',}]+"
    r"|dct_[A-Za-z0-9_-]{8,}"
    r"|\bsk-[A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^\s\"'<>]{0,256}@"
    r"|(?<=[?&;])(?:api[_-]?key|access_token|token|secret|password|signature)=[^&\s\"']+",
    re.IGNORECASE,
)
# One of these is in every text that holds a secret: most texts hold none, and are passed by 10 times faster.
_SECRET_HINTS: Final = ("=", "@", "sk-", "dct_", "bearer", "authorization", "cookie")
_MAX_TEXT_CHARS: Final = 8_192
_MAX_DEPTH: Final = 6
_MAX_FRAMES: Final = 12
_MAX_CAUSES: Final = 4
_INT64: Final = 2**63

# Libraries that bring their own handlers; without them their records reach ours.
_ROUTED: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "kombu", "alembic")
# At DEBUG or INFO these write URLs, headers and whole bodies, which are people's text.
_TALKATIVE: Final = ("openai", "httpx", "httpx2", "httpcore", "aiohttp", "urllib3", "qdrant_client", "asyncio")


def configure_logging(service_name: str, level: str = "INFO") -> None:
    """Send this process's logs, the libraries' included, to standard output as JSON lines.

    Args:
        service_name: the value of `service` in every line.
        level: the least severe level written, by name and in any case.

    Raises:
        ValueError: if there is no such level.
    """
    handler = _LineHandler(sys.stdout)
    handler.setFormatter(_LineFormatter(service_name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _ROUTED:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.disabled = False
        library.setLevel(logging.NOTSET)  # one level for the whole process
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    threading.excepthook = _log_thread_death
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger called `name`; usable at import time, before `configure_logging`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bind_context(**ids: str | None) -> None:
    """Add ids (request_id, tenant_id, job_id...) to every later line of this task or thread; None adds nothing."""
    structlog.contextvars.bind_contextvars(**{key: value for key, value in ids.items() if value is not None})


@contextmanager
def log_context(**ids: str | None) -> Generator[None]:
    """Add ids to every line written inside the block, and restore what was bound before."""
    with structlog.contextvars.bound_contextvars(**{key: value for key, value in ids.items() if value is not None}):
        yield


class _LineHandler(logging.StreamHandler[TextIO]):
    """Says where a record that could not be written came from; the default prints it, arguments and all, on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - named by logging
        place = f"{record.module}:{record.funcName}:{record.lineno}"
        line = {"level": "error", "event": "log record could not be written", "logger": record.name, "where": place}
        with suppress(OSError, ValueError):  # a broken or closed standard output: there is nowhere left to say it
            self.stream.write(orjson.dumps(line).decode() + self.terminator)
            self.flush()


class _LineFormatter(logging.Formatter):
    """The last step of every line: gather, redact, write."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        event, failure, fields = _parts(record)
        line = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": _clean(event),
            "logger": record.name,
            "service": self._service_name,
            **_trace_ids(),
        }
        context = {**structlog.contextvars.get_contextvars(), **fields}
        line.update((key, _clean_member(key, value)) for key, value in context.items() if key not in line)
        if failure is not None:
            line["exception"] = _describe_exception(failure)
        return orjson.dumps(line).decode()


def _parts(record: logging.LogRecord) -> tuple[object, BaseException | None, dict[str, object]]:
    """Event, exception and fields of a record; structlog's carry a dict for their message."""
    if isinstance(record.msg, dict):
        fields = dict(record.msg)
        return fields.pop("event", ""), _exception_of(fields.pop("exc_info", None)), fields
    failure = _exception_of(record.exc_info)
    message = record.getMessage()
    # Libraries repeat the exception's message below the first line of theirs.
    return message if failure is None else message.partition("\n")[0], failure, {}


def _trace_ids() -> dict[str, str]:
    span = trace.get_current_span().get_span_context()
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else {}


def _clean_member(key: str, value: object) -> object:
    found = _SECRET_KEY.search(key)
    if found is None or value is None:
        return _clean(value)
    # input_tokens=12 is a count; a number under any other secret's name may be the secret.
    if found[0].lower() == "token" and isinstance(value, int | float):
        return value
    return REDACTED


def _clean(value: object, depth: int = 0) -> object:
    """`value` as something JSON can hold, bounded, without secrets; of unknown objects only the type's name."""
    if isinstance(value, str):
        return _clean_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else str(value)
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_clean_text(str(key)): _clean_nested(str(key), item, depth) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


def _clean_nested(key: str, value: object, depth: int) -> object:
    if isinstance(value, Mapping | list | tuple | set | frozenset) and not _SECRET_KEY.search(key):
        return _clean(value, depth + 1)
    return _clean_member(key, value)


def _clean_text(text: str) -> str:
    if not text.isascii():
        # A lone surrogate has no UTF-8 form and would cost us the whole line.
        text = text.encode("utf-8", "replace").decode()
    lowered = text.lower()
    for hint in _SECRET_HINTS:
        if hint in lowered:
            text = _SECRET_TEXT.sub(REDACTED, text)
            break
    return text if len(text) <= _MAX_TEXT_CHARS else text[:_MAX_TEXT_CHARS] + "…"


def _exception_of(exc_info: object) -> BaseException | None:
    """The exception behind any of the forms that `exc_info` takes."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exception() if exc_info else None


def _describe_exception(error: BaseException) -> dict[str, object]:
    """Type, place and causes of an exception; its message only where we wrote it, for others may hold a user's text."""
    described: dict[str, object] = {"type": _type_name(error), "where": _frames(error.__traceback__)}
    if isinstance(error, PlatformError):
        described |= {"code": error.code.value, "message": _clean_text(error.message)}
    if causes := [_type_name(cause) for cause in _causes(error)]:
        described["causes"] = causes
    return described


def _frames(tb: TracebackType | None) -> list[str]:
    frames = deque(traceback.walk_tb(tb), maxlen=_MAX_FRAMES)
    return [
        f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}:{line_number}"
        for frame, line_number in frames
    ]


def _causes(error: BaseException) -> list[BaseException]:
    """What led to `error`, nearest first: the members of a group, else the chain of causes."""
    if isinstance(error, BaseExceptionGroup):
        return list(error.exceptions[:_MAX_CAUSES])
    causes: list[BaseException] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and len(causes) < _MAX_CAUSES:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return causes


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _log_thread_death(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "?"
        get_logger("process").critical("thread died", thread=name, exc_info=args.exc_value)
