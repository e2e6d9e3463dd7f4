"""From a file to a document, read by processes that may do no harm (`services.ingest.readers`)."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, BinaryIO, Final

import orjson
import structlog

from services.ingest import recognition
from services.ingest.document import Block, BlockKind, Document, LoadError
from services.ingest.readers import ParseLimits, Readers, Request

_MAX_FILENAME_CHARACTERS: Final = 255
# A page: the model takes 350 MB, and a process that has it loaded is worth keeping.
_PAGE_LIMITS: Final = ParseLimits(result_bytes=4 * 1024**2, growth_bytes=640 * 1024**2)

# Only a subverted process answers so.
_MALFORMED: Final = (ValueError, KeyError, TypeError)

_log = structlog.get_logger(__name__)

PageRead = Callable[[int, int], Awaitable[None]]


class Parser:
    """Reads files, for callers of one event loop; it may run in any thread.

    Args:
        max_children: files read at once.
        scanned_pages: so many pages of a file that are pictures have their text recognised; 0 for none.
    """

    def __init__(self, max_children: int, scanned_pages: int = 0) -> None:
        self._files = Readers(max_children)
        # Apart, so that texts need not wait behind hundreds of pictures, and one: a page takes a core for seconds.
        self._pictures = Readers(1)
        self._scanned_pages = scanned_pages if recognition.is_available() else 0

    def __enter__(self) -> "Parser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server_id(self) -> int | None:
        """The id of the process whose forks read files, while there is one."""
        return self._files.server_id

    def close(self) -> None:
        """Ends every process."""
        self._files.close()
        self._pictures.close()

    async def parse(
        self,
        file: BinaryIO,
        filename: str,
        limits: ParseLimits | None = None,
        *,
        owner: str = "",
        page_read: PageRead | None = None,
    ) -> Document:
        """The document in a local file; cancelling kills the process that reads it.

        Args:
            file: open for reading; what was written to it is flushed.
            owner: files of different owners are never read by the same process.
            page_read: told after each recognised page how many are done, and of how many.

        Raises:
            LoadError: the file cannot be read, or not within its limits.
            RetryableError: the processes that read files keep dying.
        """
        name = filename[-_MAX_FILENAME_CHARACTERS:].encode("utf-8", "replace").decode()
        reply = await self._files.ask(file, {"filename": name}, limits or ParseLimits(), owner)
        document = _document(reply)
        if document.picture_pages and self._scanned_pages:
            document = await self._recognised(document, file, owner, page_read)
        elif not document.blocks:
            raise LoadError(
                "unsupported_file",
                "The PDF holds no text: it looks scanned, and pictures of text are not read here. Upload a version "
                "with a text layer, which any OCR program adds, or ask the operator to switch recognition on.",
            )
        return document

    async def _recognised(self, document: Document, file: BinaryIO, owner: str, page_read: PageRead | None) -> Document:
        """The document with the text in its pictures; a page that breaks off does not lose the rest."""
        numbers = document.picture_pages
        if len(numbers) > self._scanned_pages:
            raise LoadError(
                "unsupported_file",
                f"The PDF has {len(numbers)} scanned pages, and of one file at most {self._scanned_pages} are read. "
                "Split it, or upload a version with a text layer.",
            )
        pages: dict[int, list[Block]] = {}
        broken: LoadError | None = None
        for done, number in enumerate(numbers, start=1):
            try:
                request: Request = {"page": number}
                pages[number] = _blocks(await self._pictures.ask(file, request, _PAGE_LIMITS, owner))
            except LoadError as error:
                broken = error
                _log.warning("page not recognised", page=number, code=error.code)
            if page_read is not None:
                await page_read(done, len(numbers))
        document = document.with_pages(pages)
        if not document.blocks:
            raise broken or LoadError(
                "invalid_file",
                "The PDF holds no text, and none was recognised in its pictures. Scan it anew at 200 to 300 dots per "
                "inch, upright, or upload a version with a text layer.",
            )
        return document


def _document(reply: bytes) -> Document:
    try:
        fields = _fields(reply)
        return Document.of(
            _read_blocks(fields["blocks"]),
            media_type=fields["media_type"],
            title=fields["title"],
            page_count=fields["page_count"],
            picture_pages=tuple(map(int, fields["picture_pages"])),
        )
    except _MALFORMED as error:
        raise LoadError("invalid_file", "The file is damaged: reading it gave no document.") from error


def _blocks(reply: bytes) -> list[Block]:
    try:
        return _read_blocks(_fields(reply)["blocks"])
    except _MALFORMED as error:
        raise LoadError("invalid_file", "The page is damaged: reading it gave no text.") from error


def _fields(reply: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(reply)
    if "code" in fields:
        raise LoadError(fields["code"], fields["message"])
    return fields


def _read_blocks(fields: list[tuple[str, BlockKind, int | None, list[str]]]) -> list[Block]:
    return [Block(text, kind, page, tuple(path)) for text, kind, page, path in fields]
