"""Which kind of file this is, judged by its content; names and claimed media types are never believed.

The name only chooses between kinds of text that look alike (Markdown, CSV, source code, plain).
"""

import contextlib
import json
import re
import zipfile
import zlib
from io import BytesIO
from pathlib import PurePosixPath
from typing import Final, Literal

from charset_normalizer import from_bytes

from services.ingest.document import LoadError

FileKind = Literal[
    "pdf", "html", "markdown", "text", "code", "csv", "json", "xml", "docx", "pptx", "xlsx", "odt", "epub", "eml", "rtf"
]

_HEAD_BYTES: Final = 64 * 1024
_CHARSET_SAMPLE_BYTES: Final = 256 * 1024
# Magic numbers of what is recognised but not read, with the word a person knows it by.
_UNREADABLE: Final = (
    (b"MZ", "a program"), (b"\x7fELF", "a program"), (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\x89PNG", "an image"), (b"\xff\xd8\xff", "an image"), (b"GIF8", "an image"), (b"BM", "an image"),
    (b"II*\x00", "an image"), (b"MM\x00*", "an image"), (b"RIFF", "a media file"), (b"OggS", "a media file"),
    (b"ID3", "a media file"), (b"fLaC", "a media file"), (b"\x1f\x8b", "a compressed archive"),
    (b"7z\xbc\xaf\x27\x1c", "a compressed archive"), (b"Rar!", "a compressed archive"),
    (b"\xfd7zXZ", "a compressed archive"),
    (b"BZh", "a compressed archive"), (b"\x28\xb5\x2f\xfd", "a compressed archive"), (b"SQLite format 3", "a database"),
)  # fmt: skip
_BINARY_AFTER_MAGIC: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x80-\xff]")
_STRAY_CONTROLS: Final = 8
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_BOMS: Final = (
    (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)  # fmt: skip
_DECLARED: Final = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
_HTML: Final = re.compile(r"<(?:!doctype\s+html|html|head|body|title|meta|script|div|table|p|h[1-6])\b", re.IGNORECASE)
_XHTML: Final = re.compile(r"<(?:!doctype\s+)?html\b", re.IGNORECASE)
_MAIL_HEADER: Final = re.compile(r"^[A-Za-z][A-Za-z0-9-]{0,60}:[ \t]?")
_MAIL_NAMES: Final = frozenset(
    {"from", "to", "subject", "date", "received", "mime-version", "message-id", "return-path"}
)
_BY_SUFFIX: Final[dict[str, FileKind]] = {
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown", ".csv": "csv", ".tsv": "csv", ".eml": "eml",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".xml": "xml", ".json": "json", ".jsonl": "json",
    ".ipynb": "json",
}  # fmt: skip
_CODE_SUFFIXES: Final = frozenset({
    ".py", ".js", ".ts", ".jsx", ".tsx", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb",
    ".php", ".sh", ".sql", ".kt", ".swift", ".scala", ".r", ".m", ".lua", ".pl", ".css", ".scss", ".yaml", ".yml",
    ".toml", ".ini", ".cfg", ".tf", ".proto", ".gradle", ".dockerfile", ".tex",
})  # fmt: skip


def sniff(data: bytes, filename: str) -> FileKind:
    """The kind of file that `data` is.

    Raises:
        LoadError: empty, encrypted, or of a kind that is not read.
    """
    if not data:
        raise LoadError("invalid_file", "The file is empty (0 bytes). Upload it again with its content.")
    head = data[:_HEAD_BYTES]
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(data)
    if head.lstrip().startswith(b"{\\rtf"):
        return "rtf"
    _refuse_binary(data)
    return _sniff_text(decode(head if len(head) == len(data) else head[: -len(head) % 4 or None]), filename, data)


def decode(data: bytes) -> str:
    """`data` as text: by byte order mark, as UTF-8, by declared charset, else by detection; never fails.

    Bytes that fit no charset become U+FFFD rather than refusing a whole document.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    guessed = _utf16_without_mark(data)
    if guessed:
        return data.decode(guessed, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A few broken bytes in otherwise good UTF-8, or a sample cut inside a character.
        bad = data.decode("utf-8", errors="replace").count("\ufffd")
        if error.start >= len(data) - 4 or bad * 100 < sum(byte > 0x7F for byte in data[:_CHARSET_SAMPLE_BYTES]):
            return data.decode("utf-8", errors="replace")
    return _decode_legacy(data)


def _decode_legacy(data: bytes) -> str:
    declared = _DECLARED.search(data[:2048])
    name = declared[1].decode("ascii").lower() if declared else ""
    if name and not name.startswith("utf"):  # it is no UTF, whatever it claims
        with contextlib.suppress(LookupError, UnicodeError):
            return data.decode(name, errors="replace")
    best = from_bytes(data[:_CHARSET_SAMPLE_BYTES]).best()
    return data.decode(best.encoding if best else "cp1252", errors="replace")


def _utf16_without_mark(data: bytes) -> str | None:
    """Latin text in UTF-16 has a zero in every second byte."""
    sample = data[:2048]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = max(1, len(sample) // 2)
    if odd * 10 > half * 7 and even * 20 < half:
        return "utf-16-le"
    if even * 10 > half * 7 and odd * 20 < half:
        return "utf-16-be"
    return None


def _refuse_binary(data: bytes) -> None:
    if data.startswith(_OLE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise LoadError(
                "invalid_file", "The file is protected by a password. Remove the protection and upload it again."
            )
        raise LoadError(
            "unsupported_file",
            "The file is in an old Office format. Save it as .docx, .pptx, .xlsx or PDF and upload it again.",
        )
    head = data[:512]
    for magic, name in _UNREADABLE:
        if head.startswith(magic) and _BINARY_AFTER_MAGIC.search(head):
            raise LoadError("unsupported_file", f"The file is {name}, which holds no text that can be read.")
    sample = data[:_HEAD_BYTES]
    marked = any(data.startswith(mark) for mark, _ in _BOMS) or _utf16_without_mark(data)
    controls = sum(byte < 32 and byte not in b"\t\n\r\x0b\x0c\x1b" for byte in sample)
    # A tenth of compressed or encrypted bytes are controls; a text may have picked up a few.
    most = min(len(sample) // 5, max(_STRAY_CONTROLS, len(sample) // 20))
    if not marked and controls > most:
        raise LoadError("unsupported_file", "The file holds binary data of an unknown kind, not text.")


def _sniff_zip(data: bytes) -> FileKind:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            paths = archive.namelist()
            mime = ""
            if "mimetype" in paths:
                with archive.open("mimetype") as entry:
                    mime = entry.read(100).decode("ascii", "replace")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise LoadError("invalid_file", "The file is damaged: its ZIP container cannot be read.") from error
    names = {path.split("/", 1)[0] for path in paths}
    by_folder: dict[str, FileKind] = {"word": "docx", "ppt": "pptx", "xl": "xlsx"}
    if "[Content_Types].xml" in names:
        for folder, kind in by_folder.items():
            if folder in names:
                return kind
    if mime.startswith("application/epub"):
        return "epub"
    if mime.startswith("application/vnd.oasis.opendocument.text"):
        return "odt"
    raise LoadError("unsupported_file", "The file is a ZIP archive. Unpack it and upload the documents in it.")


def _sniff_text(head: str, filename: str, data: bytes) -> FileKind:
    text = head.lstrip("\ufeff \t\r\n")
    suffix = PurePosixPath(filename.replace("\\", "/").lower()).suffix
    named = _BY_SUFFIX.get(suffix) or ("code" if suffix in _CODE_SUFFIXES else None)
    if text.startswith("<") and named not in ("markdown", "code"):
        return _sniff_markup(text, named)
    if _looks_like_mail(text):
        return "eml"
    if named is None and text[:1] in ("{", "[") and _is_json(data):
        return "json"
    return named or "text"


def _sniff_markup(text: str, named: FileKind | None) -> FileKind:
    if text.startswith("<?xml") and not _XHTML.search(text[:2000]):
        return "xml"
    return "html" if _HTML.search(text[:4000]) else named or "text"


def _looks_like_mail(text: str) -> bool:
    """Whether a block of headers comes first, at least two of them those of mail."""
    seen: set[str] = set()
    for line in text.splitlines()[:200]:
        if not line.strip():
            break
        if line[0] in " \t" and seen:
            continue
        if not _MAIL_HEADER.match(line):
            return False
        seen.add(line.split(":", 1)[0].lower())
    return len(seen & _MAIL_NAMES) >= 3


def _is_json(data: bytes) -> bool:
    try:
        json.loads(decode(data))
    except (ValueError, RecursionError):
        return False
    return True
