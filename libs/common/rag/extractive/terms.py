"""The words of a text that carry meaning, in the form in which question and passage are compared."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

import Stemmer

# Han, kana and Hangul put no dependable spaces between words, so pairs of characters stand for words.
_CJK: Final = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD: Final = re.compile(rf"(?P<cjk>[{_CJK}]+)|\d+(?:[.,]\d+)*|[^\W\d_{_CJK}](?:[^\W_{_CJK}]|[\u0300-\u036f])*")
_ENGLISH: Final = """
a about above after again against all also am an and any are as at be because been before being below between both but
by can could did do does doing down during each ever few for from further had has have having he her here hers herself
him himself his how i if in into is it its itself just many me more most much my myself no nor not of off on once only
or other our ours ourselves out over own same she should so some such than that the their theirs them themselves then
there these they this those through to too under until up upon very was we were what when where which while who whom
whose why will with would you your yours yourself yourselves d don doesn didn isn aren wasn weren hasn haven hadn
wouldn couldn shouldn ll m re s t ve
please tell know explain describe give find get got need want
"""
STOP_WORDS: Final = frozenset(_ENGLISH.split())


def terms(text: str) -> list[str]:
    """Porter2 stems without stop words, and overlapping pairs of CJK characters, in order."""
    # A stemmer has internal state and must not be shared by threads; making one costs under a microsecond.
    stemmer = Stemmer.Stemmer("english")
    found: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match.group()
        if match["cjk"]:
            found.extend(_bigrams(word))
        elif word not in STOP_WORDS:
            found.append(stemmer.stemWord(word))
    return found


def _bigrams(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    for start in range(len(run) - 1):
        yield run[start : start + 2]
