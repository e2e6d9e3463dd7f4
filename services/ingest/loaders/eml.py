"""Mail: the headers a person reads, the body, and attachments of every kind that is read by itself."""

from collections.abc import Callable
from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Final

from services.ingest.document import Document, LoadError
from services.ingest.loaders.html import walk
from services.ingest.loaders.outline import Outline, squeeze
from services.ingest.sniffing import decode

_HEADERS: Final = ("From", "To", "Cc", "Date", "Subject")
_MAX_PARTS: Final = 500


def load(data: bytes, load_attachment: Callable[[bytes, str], Document]) -> Document:
    """The text of a mail; its title is the subject.

    Args:
        load_attachment: the document in an attachment's bytes, by its name; raises LoadError for one that is not read.

    Raises:
        LoadError: the MIME structure cannot be read.
    """
    encoded = decode(data).encode("utf-8", "replace") if data.startswith((b"\xff\xfe", b"\xfe\xff")) else data
    message = message_from_bytes(encoded, policy=policy.default)
    outline = Outline()
    try:
        subject = squeeze(str(message.get("Subject", "")))
        lines = (f"{name}: {squeeze(str(message[name]))}" for name in _HEADERS if message.get(name))
        outline.add("\n".join(lines))
        _add_parts(outline, message)
        for part in [part for part in message.walk() if _is_file(part)][:_MAX_PARTS]:
            _add_file(outline, part, load_attachment)
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise LoadError("invalid_file", "The mail is damaged: its MIME structure cannot be read.") from error
    return outline.document("message/rfc822", title=subject)


def _add_parts(outline: Outline, message: EmailMessage) -> None:
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"][:_MAX_PARTS]
    plain = any(part.get_content_subtype() == "plain" and not part.is_attachment() for part in parts)
    for part in parts:
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes):
            continue
        text = _decode(content, part.get_content_charset())
        if part.get_content_subtype() == "html":
            if not plain or part.is_attachment():  # otherwise it repeats the plain form
                walk(text, outline)
        else:
            for paragraph in text.replace("\r\n", "\n").split("\n\n"):
                outline.add(paragraph)


def _is_file(part: EmailMessage) -> bool:
    """Whether it is a file, but no text or mail, the parts of which stand beside it; some mailers show files inline."""
    kind = part.get_content_maintype()
    named_document = kind == "application" and bool(part.get_filename())
    return named_document or (part.is_attachment() and kind not in ("text", "multipart", "message"))


def _add_file(outline: Outline, part: EmailMessage, load_attachment: Callable[[bytes, str], Document]) -> None:
    """An attachment under its name, which is all there is of one that is not read."""
    name, content = part.get_filename() or "", part.get_payload(decode=True)
    outline.heading(f"Attachment: {name}", 1)
    if isinstance(content, bytes):
        with suppress(LoadError):
            outline.include(load_attachment(content, name))


def _decode(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset) if charset else decode(content)
    except (LookupError, UnicodeError):
        return decode(content)
