"""The chat service's settings."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from libs.common.rag.relevance import CALIBRATED
from libs.common.settings import RetrievalSettings, WorkerSettings


class ChatSettings(RetrievalSettings, WorkerSettings):
    """What the chat service reads from the environment."""

    service_name: str = "chat"
    # A stream mostly waits for its upstream.
    worker_concurrency: int = 512
    openai_base_url: str = "http://127.0.0.1:8091/v1"
    openai_api_key: SecretStr = SecretStr("local")
    # Whether the upstream is told what clients say of priorities, caches and users: OpenAI knows it, others may refuse.
    upstream_hints: Literal["auto", "send", "drop"] = "auto"
    # What a question with its history may have, passages not counted, by estimate; 0 leaves it to the upstream.
    context_tokens: int = 0
    # Whether a question with a history is put anew by the model before it is searched for; a model call ahead of the
    # first token.
    rewrite_questions: bool = False
    # What was found must have this much to do with a question, or it is not in the documents; 0 asks for nothing.
    # By default what was found right for the packaged embedding model, and nothing for others: their scales differ.
    min_relevance: float | None = Field(None, ge=0)
    # How far a passage grows by what stands around it under the same heading, by estimate; 0: not at all. Not for the
    # extractive model.
    passage_tokens: int = Field(256, ge=0)
    # A server with the API `POST {base}/rerank` that puts what was found in its own order; none by default.
    rerank_base_url: str | None = None
    rerank_model: str = ""
    rerank_api_key: SecretStr = SecretStr("local")
    # How many of the best it is shown, and how long it may take before the order stands as it was.
    rerank_candidates: int = Field(50, ge=1, le=200)
    rerank_timeout_seconds: float = Field(2.0, gt=0)
    # Of uploaded files that one question shows to the model by their ids.
    max_attached_bytes: int = 8 << 20
    # The longest silence of the upstream that is still taken for thinking.
    model_read_timeout_seconds: float = 60.0
    model_connect_timeout_seconds: float = 5.0
    # Cosine similarity from which two questions count as the same one, for tenants that want that. High, because
    # "before" and "after", or a "not", move a sentence's embedding no further than other words for the same.
    semantic_cache_threshold: float = 0.99
    # Who answers instead of a model that is away: "asked=second,third;*=last". A model's own entry wins over `*`.
    chat_fallback_models: str = ""
    # Items of one batch shard that are answered side by side.
    shard_concurrency: int = 4
    # What the moderations API asks: the rules here, or a model of the upstream's by its name.
    moderation_model: str = "docent-rules"
    # What is judged by it without being asked: questions, or questions and answers.
    moderation: Literal["off", "input", "input_output"] = "off"

    @property
    def relevance_gates(self) -> dict[str, float]:
        """The least relevance by embedding model."""
        chosen = {} if self.min_relevance is None else {self.embedding_model: self.min_relevance}
        return {**CALIBRATED, **chosen}

    @property
    def sends_hints(self) -> bool:
        """Whether the upstream knows the options that change nothing of an answer."""
        host = urlsplit(self.openai_base_url).hostname or ""
        is_openai = host.endswith((".openai.com", ".openai.azure.com"))
        return is_openai if self.upstream_hints == "auto" else self.upstream_hints == "send"

    def fallback_models(self, model: str) -> tuple[str, ...]:
        """The models to ask in turn when `model` is away."""
        fallbacks = _parsed(self.chat_fallback_models)
        return tuple(name for name in fallbacks.get(model, fallbacks.get("*", ())) if name != model)

    @field_validator("chat_fallback_models")
    @classmethod
    def _readable(cls, text: str) -> str:
        _parsed(text)
        return text


def _parsed(text: str) -> dict[str, tuple[str, ...]]:
    """The fallbacks of each model.

    Raises:
        ValueError: an entry names no model or no fallback.
    """
    fallbacks = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        asked, _, listed = entry.partition("=")
        names = tuple(name for raw in listed.split(",") if (name := raw.strip()))
        if not asked.strip() or not names:
            raise ValueError("fallback models are written like 'asked=second,third;*=last'")
        fallbacks[asked.strip()] = names
    return fallbacks
