"""Whether a sentence holds the kind of thing a question asks for: a number, a time or a name."""

import re
from typing import Final

_NUMBER: Final = (
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|million|billion|half|"
    r"dozen|once|twice)\b"
)
_TIME: Final = (
    r"\d|\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|august|september|"
    r"october|november|december|century|year|month|week|day|morning|noon|evening|midnight)s?\b"
)
# Capitalised within a sentence; the first word of one would be capitalised anyway.
_NAME: Final = r"(?<=[\w,;] )[A-Z][\w'-]+"

_TYPES: Final = (
    (r"\b(?:when|what time|(?:what|which) (?:year|date|day|month|century))\b", _TIME, re.IGNORECASE),
    (r"\bhow (?:many|much|long|old|far|often|tall|high|big|large|fast)\b", _NUMBER, re.IGNORECASE),
    (r"\b(?:what|which) (?:percentage|percent|number|amount|share)\b", _NUMBER, re.IGNORECASE),
    (r"\b(?:who|whom|whose|where|(?:what|which) (?:person|country|city))\b", _NAME, 0),
)
_PATTERNS: Final = tuple((re.compile(asks, re.IGNORECASE), re.compile(is_, flag)) for asks, is_, flag in _TYPES)


def holds_answer_type(question: str, sentence: str) -> bool:
    """Whether `sentence` has something of the type asked for that `question` does not already name."""
    for asks, pattern in _PATTERNS:
        if asks.search(question):
            known = question.casefold()
            return any(len(found) == 1 or found.casefold() not in known for found in pattern.findall(sentence))
    return False
