"""What to answer when no model can be asked: sentences of the passages, word for word."""

import re
from collections.abc import Sequence
from typing import Final

from libs.common.contracts.chat import AnswerRequest
from libs.common.rag.extractive.answers import Passage as Numbered
from libs.common.rag.extractive.answers import Prompt, cited_answer
from services.chat.ports import Passage
from services.chat.prompt import text_of, visible

EXTRACTIVE_MODEL: Final = "docent-extractive"
# A document's own footnote marks would be taken for citations.
_MARKER: Final = re.compile(r" ?\[\d{1,3}\]")


def extracted(request: AnswerRequest, passages: Sequence[Passage]) -> str | None:
    """Up to three sentences with the numbers of their passages.

    Returns:
        None where no sentence answers the question, or where the client asked for another form than text.
    """
    said = [text_of(message) for message in request.messages if message.role == "user"]
    if not said or not _wants_text(request):
        return None
    numbered = (Numbered(number, _clean(passage.text)) for number, passage in enumerate(passages, start=1))
    return cited_answer(Prompt(tuple(numbered), said[-1], tuple(said[:-1]))) or None


def _clean(text: str) -> str:
    return _MARKER.sub("", visible(text))


def _wants_text(request: AnswerRequest) -> bool:
    form = request.parameters.get("response_format")
    choice = request.parameters.get("tool_choice", "auto")
    return choice in ("auto", "none") and (not isinstance(form, dict) or form.get("type") == "text")
