"""Multipart forms read as they arrive: a file of any size passes through without being held or spooled."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from libs.common.errors import ErrorCode, PermanentError

_MAX_PARTS: Final = 64
_MAX_FIELD_BYTES: Final = 64 * 1024
_PART_END: Final = b""


@dataclass(frozen=True, slots=True)
class Part:
    """The beginning of one part; `filename` is None for a plain field."""

    name: str
    filename: str | None


class Form:
    """The parts of a form, in the order in which they arrive; one that is not read before the next is skipped.

    Reading raises PermanentError: INVALID_VALUE for a broken form, BODY_TOO_LARGE over a limit.

    Args:
        content_type: the request's header.
        body: the request's bytes as they arrive.
        limit_bytes: of the whole body.

    Raises:
        PermanentError: UNSUPPORTED_MEDIA_TYPE if it is no multipart form.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes], limit_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            message = "The body must be a multipart form with Content-Type 'multipart/form-data'."
            raise PermanentError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
        self._body = body
        self._left_bytes = limit_bytes
        self._events: deque[Part | bytes] = deque()
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
                "on_part_end": lambda: self._events.append(_PART_END),
                "on_end": self._on_end,
            },
        )

    async def parts(self) -> AsyncIterator[Part]:
        """The beginning of each part."""
        while (event := await self._next()) is not None:
            if isinstance(event, Part):
                yield event

    async def chunks(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """The content of the part that has begun."""
        left_bytes = limit_bytes
        while isinstance(event := await self._next(), bytes) and event != _PART_END:
            left_bytes -= len(event)
            if left_bytes < 0:
                raise _too_large(limit_bytes)
            yield event

    async def text(self) -> str:
        """The content of the field that has begun."""
        content = b"".join([chunk async for chunk in self.chunks(_MAX_FIELD_BYTES)])
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise PermanentError(ErrorCode.INVALID_UNICODE, "A field of the form is not valid UTF-8.") from None

    async def _next(self) -> Part | bytes | None:
        """The next event; None at the end of the form."""
        while not self._events and not self._ended:
            data = await anext(self._body, None)
            if data is None:
                raise _broken()
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                message = "The form is larger than a file and its fields may be."
                raise PermanentError(ErrorCode.BODY_TOO_LARGE, message)
            try:
                self._parser.write(data)
            except FormParserError:
                raise _broken() from None
        return self._events.popleft() if self._events else None

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise PermanentError(ErrorCode.INVALID_VALUE, f"The form has more than {_MAX_PARTS} parts.")
        self._disposition = b""

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._events.append(Part(name, None if filename is None else filename.decode("utf-8", "replace")))

    def _on_end(self) -> None:
        self._ended = True


def _too_large(limit_bytes: int) -> PermanentError:
    return PermanentError(ErrorCode.BODY_TOO_LARGE, f"A part of the form is larger than {limit_bytes} bytes.")


def _broken() -> PermanentError:
    return PermanentError(ErrorCode.INVALID_VALUE, "The multipart form is broken or was cut off.")
