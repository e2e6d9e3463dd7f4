"""HTML: headings, paragraphs, lists, tables and code as a reader sees them; scripts and navigation are dropped."""

from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.ingest.document import BlockKind, Document
from services.ingest.loaders.outline import Outline, squeeze
from services.ingest.sniffing import decode

_DROPPED: Final = frozenset({
    "script", "style", "noscript", "template", "svg", "math", "nav", "iframe", "object", "canvas", "head", "select",
    "button", "dialog",
})  # fmt: skip
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_BREAKING: Final = frozenset({
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "main", "ol", "p",
    "section", "summary", "ul", "caption",
})  # fmt: skip


def load(data: bytes) -> Document:
    """The document in an HTML page; its title is the page's."""
    outline = Outline()
    title = walk(decode(data), outline)
    return outline.document("text/html", title=title)


def walk(html: str, outline: Outline) -> str:
    """Adds the blocks of `html` to `outline` and returns the page's title, which leads unless a heading repeats it."""
    parser = LexborHTMLParser(html)
    name = parser.css_first("title", default=None)
    title = squeeze(name.text()) if name is not None else ""
    first = parser.css_first("h1", default=None)
    if title and (first is None or squeeze(first.text()) != title):
        outline.add(title)
    if parser.root is not None:
        _Walker(outline).walk(parser.root)
    return title


class _Walker:
    """Goes through the tree without recursion, since pages may nest as deep as they like."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._text: list[str] = []
        self._list_depth = 0
        self._table_depth = 0
        self._pre_depth = 0

    def walk(self, root: LexborNode) -> None:
        node: LexborNode | None = root
        depth = 0  # comparing nodes would compare their HTML
        while node is not None:
            below = self._enter(node)
            if below is not None:
                node, depth = below, depth + 1
                continue
            while depth and node is not None and node.next is None:
                node, depth = node.parent, depth - 1
                if node is not None:
                    self._leave(node.tag or "")
            node = node.next if depth and node is not None else None
        self._flush("paragraph")

    def _enter(self, node: LexborNode) -> LexborNode | None:
        """Takes in `node` and returns its first child, where it has any to go through."""
        if node.is_text_node:
            text = node.text_content or ""
            self._text.append(text if self._pre_depth else squeeze_inline(text))
            return None
        tag = node.tag or ""
        if tag in _DROPPED or node.is_comment_node:
            return None
        self._open(tag)
        if node.first_child is None:
            self._leave(tag)
        return node.first_child

    def _open(self, tag: str) -> None:
        if tag == "br":
            self._text.append("\n")
        elif tag in ("ul", "ol") and not self._table_depth:
            self._flush_unless_list()
            self._list_depth += 1
        elif tag == "li":
            self._text.append("\n" + "  " * max(0, self._list_depth - 1) + "- ")
        elif tag == "table":
            self._flush_unless_nested()
            self._table_depth += 1
        elif tag == "pre":
            self._flush_unless_nested()
            self._pre_depth += 1
        elif tag in _HEADINGS or tag in _BREAKING:
            self._flush_unless_nested()

    def _leave(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush_heading(_HEADINGS[tag])
        elif tag in ("ul", "ol") and not self._table_depth:
            self._list_depth = max(0, self._list_depth - 1)
            self._flush_unless_list("list")
        elif tag in ("td", "th"):
            self._text.append(" | ")
        elif tag == "tr":
            self._text.append("\n")
        elif tag == "table":
            self._table_depth = max(0, self._table_depth - 1)
            self._flush_unless_nested("table")
        elif tag == "pre":
            self._pre_depth = max(0, self._pre_depth - 1)
            self._flush_unless_nested("code")
        elif tag in _BREAKING:
            self._flush_unless_nested()

    def _flush_heading(self, level: int) -> None:
        if self._table_depth or self._list_depth:
            self._text.append("\n")
            return
        self._outline.heading("".join(self._text), level)
        self._text.clear()

    def _flush_unless_list(self, kind: BlockKind = "paragraph") -> None:
        if not self._list_depth:
            self._flush(kind)

    def _flush_unless_nested(self, kind: BlockKind = "paragraph") -> None:
        """Inside a list, table or code a block's edge is only a line's end."""
        if self._list_depth or self._table_depth or self._pre_depth:
            if self._text and not self._text[-1].endswith(("\n", "- ")):
                self._text.append("\n")
        else:
            self._flush(kind)

    def _flush(self, kind: BlockKind) -> None:
        text = "".join(self._text)
        self._text.clear()
        if kind != "code":
            lines = (tidy_line(line, keep_indent=kind == "list") for line in text.split("\n"))
            text = "\n".join(line for line in lines if line)
        self._outline.add(text, kind)


def squeeze_inline(text: str) -> str:
    """`text` with each run of white space as one space, at its ends too."""
    inner = " ".join(text.split())
    if not inner:
        return " " if text else ""
    return (" " if text[0].isspace() else "") + inner + (" " if text[-1].isspace() else "")


def tidy_line(line: str, *, keep_indent: bool) -> str:
    """One line without stray spaces, empty cells at its end or bullets of nothing."""
    indent = line[: len(line) - len(line.lstrip(" "))] if keep_indent else ""
    words = squeeze(line)
    while words.endswith("|"):
        words = words[:-1].rstrip()
    return "" if words in ("", "-") or not words.strip("| -") else indent + words
