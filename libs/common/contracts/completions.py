"""Legacy completions: plain text in, plain text out, as a shape of the chat lane."""

import time
from typing import Annotated, Final, Self

from pydantic import Field, JsonValue, model_validator

from libs.common.contracts.base import Message, Queue, TaskSpec
from libs.common.contracts.chat import Answer, AnswerRequest, ChatMessage, Shape
from libs.common.contracts.requests import (
    Body,
    ModelName,
    Penalty,
    Probability,
    StreamOptions,
    Temperature,
    Tokens,
    new_id,
)

MAX_CHOICES: Final = 32
# The API's own default, short as it is.
_DEFAULT_TOKENS: Final = 16
_UPSTREAM: Final = (
    "temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "user",
)  # fmt: skip


class CompletionRequest(Message):
    """Texts to continue.

    Attributes:
        id: id of the resource being made (`cmpl-…`); also the request's id on the queue.
        created_at: Unix seconds.
        prompts: one for each choice to be made, in the order of the choices.
        echo: whether a choice's text begins with its prompt.
        suffix: what will stand behind the text that is made.
        parameters: sampling parameters by their upstream names, already validated.
    """

    id: str
    created_at: int
    model: str
    prompts: tuple[str, ...]
    echo: bool = False
    suffix: str | None = None
    stream: bool = False
    include_usage: bool = False
    parameters: dict[str, JsonValue] = {}

    def questions(self) -> list[AnswerRequest]:
        """The question that each choice answers."""
        return [self._question(prompt) for prompt in self.prompts]

    def _question(self, prompt: str) -> AnswerRequest:
        messages: tuple[ChatMessage, ...] = (ChatMessage(role="user", content=prompt),)
        if self.suffix:
            instruction = f"Write only the text that belongs between the user's text and this ending:\n{self.suffix}"
            messages = (ChatMessage(role="developer", content=instruction), *messages)
        return AnswerRequest(
            id=self.id,
            created_at=self.created_at,
            shape=Shape.COMPLETION,
            model=self.model,
            messages=messages,
            stream=self.stream,
            parameters=self.parameters,
        )


class CompletionBody(Body):
    """POST /v1/completions. Prompts of token ids are refused: they belong to a tokenizer that is not ours."""

    model: ModelName
    prompt: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CHOICES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    # Choosing among more than are wanted is not offered.
    best_of: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: bool | None = None
    suffix: Annotated[str, Field(max_length=65_536)] | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    stop: str | Annotated[tuple[str, ...], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    # Accepted; chat models give theirs in another form, so a choice's are null.
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self._choice_prompts()) > MAX_CHOICES:
            raise ValueError(f"prompts times 'n' are more than {MAX_CHOICES} choices")
        return self

    def to_completion(self) -> CompletionRequest:
        """The request for the chat service."""
        parameters: dict[str, JsonValue] = self.model_dump(mode="json", include=set(_UPSTREAM), exclude_none=True)
        return CompletionRequest(
            id=new_id("cmpl"),
            created_at=int(time.time()),
            model=self.model,
            prompts=self._choice_prompts(),
            echo=bool(self.echo),
            suffix=self.suffix,
            stream=bool(self.stream),
            include_usage=bool(self.stream_options and self.stream_options.include_usage),
            parameters={"max_tokens": _DEFAULT_TOKENS, **parameters},
        )

    def _choice_prompts(self) -> tuple[str, ...]:
        prompts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(prompt for prompt in prompts for _ in range(self.n or 1))


COMPLETE: Final = TaskSpec("chat.complete", Queue.CHAT, CompletionRequest, Answer)
