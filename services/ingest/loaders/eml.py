"""Mail: the headers a person reads, the body, and attachments that are text."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Final

from services.ingest.document import Document, LoadError
from services.ingest.loaders.html import walk
from services.ingest.loaders.outline import Outline, squeeze
from services.ingest.sniffing import decode

_HEADERS: Final = ("From", "To", "Cc", "Date", "Subject")
_MAX_PARTS: Final = 500


def load(data: bytes) -> Document:
    """The text of a mail; its title is the subject.

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


def _decode(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset) if charset else decode(content)
    except (LookupError, UnicodeError):
        return decode(content)
