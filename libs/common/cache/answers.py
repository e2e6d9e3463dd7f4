"""Cached answers: their keys, and one finished answer in the forms in which it can be given again.

The chat service renders an answer once more when it is done, with placeholders where every giving has values of its
own: ids, time, and the words in which it was searched for. Whoever gives it fills them in; no form is known here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from libs.common.cache.store import Cache
from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.ids import new_hex

# Part of every key: grows when prompts or renderings change, so that no answer of before is given.
_FORM: Final = 1
# What differs between two requests that ask for the same.
_APART: Final = {"id", "created_at", "stream", "turn", "cache", "hints"}
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Asking:
    """On whose behalf a question is asked, and what its passages are found by.

    Attributes:
        scopes: of the API key: what it may see.
        revisions: of every vector store searched.
    """

    tenant_id: str
    scopes: frozenset[str]
    embedding_model: str
    revisions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Placeholders:
    """What stands where a value is filled in. Random, so that no text holds one by chance or on purpose.

    Attributes:
        items: ids of output items, each with a prefix that the new one keeps.
    """

    id: str
    created_at: int
    query: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A finished answer with placeholders.

    Attributes:
        body: the JSON of the finished object.
        events: the whole stream, the text in few pieces.
        query: what was searched for.
        made_at: Unix seconds.
    """

    body: bytes
    events: bytes
    placeholders: Placeholders
    query: str
    made_at: float

    def content(self, request: AnswerRequest, *, query: str | None = None) -> bytes:
        """The answer to `request`, as a stream or as one object.

        Args:
            query: the question's words, where they are not those that the answer was made for.
        """
        text = self.events if request.stream else self.body
        put_in = {
            self.placeholders.id: request.id.encode(),
            str(self.placeholders.created_at): str(request.created_at).encode(),
            self.placeholders.query: orjson.dumps(self.query if query is None else query)[1:-1],
        }
        for item in self.placeholders.items:
            prefix = item.partition("_")[0]
            put_in[item] = f"{prefix}_{new_hex(prefix)}".encode()
        for placeholder, value in put_in.items():
            text = text.replace(placeholder.encode(), value)
        return text

    def encode(self) -> bytes:
        """As it is kept."""
        head = {
            "query": self.query,
            "made_at": self.made_at,
            "body_bytes": len(self.body),
            "placeholders": self.placeholders,
        }
        return orjson.dumps(head) + b"\n" + self.body + self.events

    @classmethod
    def decode(cls, content: bytes) -> "CachedAnswer":
        """From what `encode` gave."""
        line, _, rest = content.partition(b"\n")
        head = orjson.loads(line)
        end = head["body_bytes"]
        placeholders = Placeholders(**head["placeholders"] | {"items": tuple(head["placeholders"]["items"])})
        return cls(rest[:end], rest[end:], placeholders, head["query"], head["made_at"])


def exact_digest(cache: Cache, asking: Asking, request: AnswerRequest) -> str:
    """By which digest the answer to exactly this request is kept.

    Two requests share it only if tenant, scopes, model, prompt, parameters, retrieval with its embedding model, and
    the revision of every vector store are the same.
    """
    asked = request.model_dump(mode="json", exclude=_APART)
    return _digest(cache, asking, asked)


def alike_digest(cache: Cache, asking: Asking, request: AnswerRequest) -> str | None:
    """By which digest answers to this question in other words are found; None for all but a single question in words.

    All that must be the same for an exact hit must be the same here, the question's words aside; of those, the
    numbers, since embeddings hardly tell them apart.
    """
    *before, question = request.messages
    leading = all(message.role in ("system", "developer") for message in before)
    if not leading or question.role != "user" or not isinstance(question.content, str):
        return None
    asked = request.model_dump(mode="json", exclude=_APART)
    asked["messages"][-1]["content"] = sorted(_NUMBER.findall(question.content))
    return _digest(cache, asking, asked)


def _digest(cache: Cache, asking: Asking, asked: dict[str, Any]) -> str:
    scopes, revisions = sorted(asking.scopes), sorted(asking.revisions.items())
    content = [_FORM, asking.tenant_id, scopes, asking.embedding_model, revisions, asked]
    return cache.digest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
