"""Judging texts by the moderations API of the upstream, where the settings say so."""

from collections.abc import Sequence

import openai
from openai import AsyncOpenAI
from openai.types import ModerationCreateResponse

from libs.common.contracts.moderation import CATEGORIES, Verdict
from libs.common.errors import ErrorCode, RetryableError
from services.chat.completion import TRANSPORT_ERRORS, connect_upstream, translated_error
from services.chat.moderation import RULES_MODEL, ModeratedCompleter, RuleModerator
from services.chat.ports import Completer, Moderator
from services.chat.settings import ChatSettings


class UpstreamModerator:
    """A `Moderator` over one of the upstream's models. What it cannot judge is refused, never let through.

    Args:
        model: that model's name.
    """

    def __init__(self, settings: ChatSettings, model: str) -> None:
        self.model = model
        self._settings = settings
        self._client: AsyncOpenAI | None = None

    async def moderate(self, texts: Sequence[str]) -> list[Verdict]:
        """See `Moderator`."""
        if self._client is None:
            self._client = connect_upstream(self._settings)
        try:
            reply = await self._client.moderations.create(model=self.model, input=list(texts))
        except (openai.APIError, *TRANSPORT_ERRORS) as error:
            # The cause is left out: it quotes the upstream.
            raise translated_error(error) from None
        return _verdicts(reply, len(texts))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


def moderator_of(settings: ChatSettings) -> RuleModerator | UpstreamModerator:
    """Who judges texts here."""
    name = settings.moderation_model
    return RuleModerator() if name == RULES_MODEL else UpstreamModerator(settings, name)


def moderated(completer: Completer, moderator: Moderator, settings: ChatSettings) -> Completer:
    """The completer, with as much moderation before and behind it as the settings ask for."""
    if settings.moderation == "off":
        return completer
    return ModeratedCompleter(completer, moderator, answers=settings.moderation == "input_output")


def _verdicts(reply: ModerationCreateResponse, count: int) -> list[Verdict]:
    try:
        results = [result.model_dump(by_alias=True) for result in reply.results]
        verdicts = [
            Verdict(
                flagged=result["flagged"],
                # Older models do not know every category.
                categories={name: bool(result["categories"].get(name)) for name in CATEGORIES},
                scores={name: result["category_scores"].get(name) or 0.0 for name in CATEGORIES},
            )
            for result in results
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        verdicts = []
    if len(verdicts) != count:
        raise RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's server sent a verdict that cannot be read.")
    return verdicts
