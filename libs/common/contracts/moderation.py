"""Moderation: what the platform is asked of a text, and the categories it is judged by."""

from typing import Annotated, Final, Literal

from pydantic import Field

from libs.common.contracts.base import Message, Queue, TaskSpec
from libs.common.contracts.chat import JsonObject
from libs.common.contracts.requests import Body, ModelName

MAX_TEXTS: Final = 32

# OpenAI's categories; one with a slash is a part of the one before the slash.
CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

ModeratedText = Annotated[str, Field(max_length=100_000)]


class TextPart(Body):
    """A text among the parts of one input. Pictures are refused: nothing here could judge them."""

    type: Literal["text"]
    text: ModeratedText


class ModerationBody(Body):
    """POST /v1/moderations. A list of texts gets a result each, a list of parts one for all of them."""

    input: (
        ModeratedText
        | Annotated[tuple[ModeratedText, ...], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[tuple[TextPart, ...], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    # Accepted under any name: which model judges is this installation's choice, and named in the reply.
    model: ModelName | None = None

    def to_moderate(self) -> "ModerateRequest":
        """The request for the chat service."""
        if isinstance(self.input, str):
            return ModerateRequest(texts=(self.input,))
        texts = [item for item in self.input if isinstance(item, str)]
        parts = [item.text for item in self.input if isinstance(item, TextPart)]
        return ModerateRequest(texts=tuple(texts) if texts else ("\n".join(parts),))


class ModerateRequest(Message):
    """Texts to judge."""

    texts: tuple[str, ...]


class Verdict(Message):
    """What one text was judged as: scores from 0 to 1, and which categories count as found, for every category."""

    flagged: bool
    categories: dict[str, bool]
    scores: dict[str, float]

    def as_result(self) -> JsonObject:
        """OpenAI's moderation object."""
        return {
            "flagged": self.flagged,
            "categories": self.categories,
            "category_scores": self.scores,
            "category_applied_input_types": {category: ["text"] for category in CATEGORIES},
        }


class ModerateReply(Message):
    """A verdict for each text, and who gave it."""

    model: str
    verdicts: tuple[Verdict, ...]


MODERATE: Final = TaskSpec("chat.moderate", Queue.CHAT, ModerateRequest, ModerateReply)
