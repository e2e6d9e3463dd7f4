"""What a chat request holds for an extractive answer: passages, the question and what the user said before.

Passages stand in system or developer messages as blocks, closed by the random fence they were opened with::

    <passage-3f9a2c1b number="1" file="handbook.pdf" page="4">
    text, any number of lines
    </passage-3f9a2c1b>

Nobody who wrote a document can know the fence, so text that looks like a block stays text, and a block in a message
of any other role is not read at all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from libs.common.rag.extractive.answers import Passage, Prompt

TRUSTED_ROLES: Final = frozenset({"system", "developer"})
_OPENING: Final = re.compile(r'^<passage-([0-9a-f]{4,64})\s+number="\d+"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation, its content flattened to text."""

    role: str
    text: str


def read_prompt(messages: Sequence[Message]) -> Prompt:
    """Take the conversation apart; the question is empty when there is no user message."""
    trusted = "\n".join(message.text for message in messages if message.role in TRUSTED_ROLES)
    said = [message.text for message in messages if message.role == "user"]
    return Prompt(read_passages(trusted), said[-1] if said else "", tuple(said[:-1]))


def read_passages(text: str) -> tuple[Passage, ...]:
    """The blocks of the first fence found in `text`, ordered by number; none without a fence."""
    opening = _OPENING.search(text)
    if opening is None:
        return ()
    fence = opening[1]
    block = re.compile(
        rf'^<passage-{fence}\s+number="(\d{{1,9}})"[^>\n]*>\n?(.*?)</passage-{fence}>', re.MULTILINE | re.DOTALL
    )
    found = (Passage(int(match[1]), match[2].strip()) for match in block.finditer(text))
    return tuple(sorted(found, key=lambda passage: passage.number))
