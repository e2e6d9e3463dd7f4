"""What a file becomes on its way to the vector store: blocks, one canonical text, chunks.

Pure data: nothing here knows files, queues or stores. Offsets everywhere are in characters of `Document.text`, so a
citation can point at the exact words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

BlockKind = Literal["paragraph", "heading", "table", "list", "code"]

_SEPARATOR: Final = "\n\n"


class LoadError(Exception):
    """A file that cannot become a document.

    Args:
        code: `unsupported_file` for a kind of file that is not read, `invalid_file` for a bad one of a kind that is.
        message: a sentence for the person who uploaded it: what is wrong and what to do.
    """

    def __init__(self, code: Literal["unsupported_file", "invalid_file"], message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document that belongs together; `page` counts from 1, `heading_path` runs from the outermost."""

    text: str
    kind: BlockKind = "paragraph"
    page: int | None = None
    heading_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file: `text` is the blocks' texts joined by a blank line, `offsets` where each block starts.

    `picture_pages` are those whose text, if there is any, is in pictures; they count from 1.
    """

    blocks: tuple[Block, ...]
    text: str
    offsets: tuple[int, ...]
    page_count: int | None
    title: str
    media_type: str
    picture_pages: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        blocks: Iterable[Block],
        *,
        media_type: str,
        title: str = "",
        page_count: int | None = None,
        picture_pages: tuple[int, ...] = (),
    ) -> "Document":
        """Joins `blocks` once; empty ones must have been left out."""
        kept = tuple(blocks)
        starts = accumulate((len(block.text) + len(_SEPARATOR) for block in kept[:-1]), initial=0)
        offsets = tuple(starts) if kept else ()
        text = _SEPARATOR.join(block.text for block in kept)
        return cls(kept, text, offsets, page_count, title, media_type, picture_pages)

    def with_pages(self, pages: Mapping[int, Sequence[Block]]) -> "Document":
        """The document with these blocks for these pages; a page given none keeps its own."""
        kept = [block for block in self.blocks if block.page is None or not pages.get(block.page)]
        added = [block for blocks in pages.values() for block in blocks]
        return Document.of(
            sorted([*kept, *added], key=lambda block: block.page or 0),
            media_type=self.media_type,
            title=self.title,
            page_count=self.page_count,
            picture_pages=self.picture_pages,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stored piece of a document: `text` is exactly `Document.text[start:end]`."""

    position: int
    text: str
    start: int
    end: int
    page: int | None
    heading_path: tuple[str, ...]
    token_count: int

    def embedding_text(self, title: str) -> str:
        """The text to embed: the document's title and the headings above, where the chunk does not hold them itself."""
        opening = self.text[:500]
        context = dict.fromkeys(part for part in (title, *self.heading_path) if part and part not in opening)
        return "\n".join((" > ".join(context), self.text)) if context else self.text
