"""Text cut into sentences, list items and table rows, without a trained model."""

import re
from collections.abc import Iterator
from typing import Final

_ABBREVIATED: Final = """
al approx apr assn aug ave bros ca capt cf co col corp dec dept dr ed eds eg e.g esp est feb ft gen gov hon i.e ie inc
jan jr jul jun lt ltd mr mrs ms mt nov nr oct para pres prof rep rev sen sep sept sgt sr st univ v viz vs
"""
_ABBREVIATIONS: Final = frozenset(_ABBREVIATED.split())
_BEFORE_NUMBERS: Final = frozenset({"art", "ch", "fig", "figs", "no", "nos", "op", "p", "pp", "sec", "vol", "vols"})
# A stop, with what closes quotes and brackets after it and footnote marks like [12]; CJK stops need no space behind.
_STOP: Final = re.compile(r"[.!?…]+[\"'”’»)\]]*(?:\[\d+\])*(?=\s|$)|[。！？｡]+[」』”’）]*")  # noqa: RUF001
_LIST_ITEM: Final = re.compile(r"\s*(?:[-*•‣▪–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\))\s+")  # noqa: RUF001
_TABLE_ROW: Final = re.compile(r"\s*\||.*\t|.*\S\s*\|\s*\S")
# A row of a table as it is read from a file of cells: every cell after the name of its column.
_RECORD: Final = re.compile(r"[^:;]{1,60}: [^;]+(?:; [^:;]{1,60}: [^;]+)+$")
_LAST_WORD: Final = re.compile(r"(\S+)\.$")
_INITIALS: Final = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_WRAPPED_LINE_CHARACTERS: Final = 45


def is_table_row(sentence: str) -> bool:
    """Whether `sentence` is a row with cells between bars."""
    return _TABLE_ROW.match(sentence) is not None


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` in order, runs of white space made one space, marks of list items left out."""
    found: list[str] = []
    for block in _blocks(text.splitlines()):
        mark = _LIST_ITEM.match(block)
        body = " ".join(block[mark.end() if mark else 0 :].split())
        found.extend([body] if _RECORD.match(body) else filter(None, _sentences(body)))
    return found


def _blocks(lines: list[str]) -> Iterator[str]:
    """Paragraphs with their wrapped lines joined; list items, table rows and headings by themselves."""
    block: list[str] = []
    for line in lines:
        if block and not _continues(block[-1], line):
            yield "\n".join(block)
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield "\n".join(block)


def _continues(previous: str, line: str) -> bool:
    """Whether `line` goes on with the sentence that the previous line left open at the margin."""
    if not line.strip() or _LIST_ITEM.match(line) or _is_row(line) or _is_row(previous):
        return False
    return len(previous.strip()) >= _WRAPPED_LINE_CHARACTERS or line.lstrip()[0].islower()


def _is_row(line: str) -> bool:
    return is_table_row(line) or _RECORD.match(line.strip()) is not None


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for stop in _STOP.finditer(text):
        if _ends_sentence(text, start, stop):
            yield text[start : stop.end()].strip()
            start = stop.end()
    yield text[start:].strip()


def _ends_sentence(text: str, start: int, stop: re.Match[str]) -> bool:
    following = text[stop.end() : stop.end() + 2].lstrip()[:1]
    if following.islower():
        return False
    word = _LAST_WORD.search(text, max(start, stop.end() - 40), stop.end()) if stop.group() == "." else None
    if word is None:
        return True
    name = word[1].casefold().lstrip("([\"'“‘")  # noqa: RUF001
    if name in _BEFORE_NUMBERS:
        return not following.isdigit()
    return name not in _ABBREVIATIONS and not _INITIALS.fullmatch(name)
