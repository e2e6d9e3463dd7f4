"""Answers in the cache as the chat service writes and finds them, over real records and a real Redis."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from libs.common import keys
from libs.common.cache.answers import Asking, CachedAnswer, Placeholders, alike_digest, exact_digest
from libs.common.cache.embeddings import CachedEmbedder
from libs.common.cache.store import Cache
from libs.common.contracts.chat import AnswerRequest, CacheLeave, ChatMessage, Retrieval
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.keyring import Keyring
from libs.common.rag.embedder import Embedder, EmbedResult
from libs.common.records import vector_stores
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.common.settings import CacheSettings
from libs.local.redis_servers import running_redis
from services.chat.answer_cache import SharedAnswers
from services.chat.settings import ChatSettings
from tests.unit.chat.examples import question

ANSWER = CachedAnswer(b'{"id":"ID"}', b"data: ID\n\n", Placeholders("ID", 10**18, "QUERY"), "how many cranes", 1.0)


class _Model(Embedder):
    """Gives every text the vector that stands for it; the same to all unless it was told more."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
        self.vectors: dict[str, list[float]] = {}
        self.away = False

    async def embed(self, texts: Sequence[str]) -> EmbedResult:
        if self.away:
            raise RetryableError(ErrorCode.LLM_UNAVAILABLE, "The embedding model could not be reached.")
        return EmbedResult([self.vectors.get(text, [0.6, 0.8]) for text in texts], len(texts))


class Setting:
    """Two tenants with a store each, and the answers of both."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self.database = database
        self.cache = cache
        self.model = _Model()
        self.answers = SharedAnswers(cache, database, CachedEmbedder(self.model, cache, 60), ChatSettings())

        def create(connection: Connection) -> None:
            for tenant in ("a", "b"):
                connection.execute(insert(tenants).values(id=tenant, name=tenant, created_at=epoch_now()))
                vector_stores.create(
                    connection, tenant, store_id=f"vs_{tenant}", name="", metadata={}, embedding_model="m"
                )

        database.write_now(create)

    def asked(self, text: str, tenant: str = "a", **leave: Any) -> AnswerRequest:
        """A question as the gateway lets it through right now."""
        revisions = self.database.read_now(lambda c: vector_stores.revisions(c, tenant, [f"vs_{tenant}"]))
        request = question(
            messages=(ChatMessage(role="user", content=text),), retrieval=Retrieval(vector_store_ids=(f"vs_{tenant}",))
        )
        asking = Asking(tenant, frozenset({"*"}), "model.2", revisions)
        allowed = CacheLeave(
            exact=exact_digest(self.cache, asking, request),
            revisions=revisions,
            alike=alike_digest(self.cache, asking, request),
        )
        return request.model_copy(update={"cache": allowed.model_copy(update=leave)})

    def change(self, tenant: str = "a") -> None:
        """A document of the tenant changes."""
        self.database.write_now(lambda c: vector_stores.bump_revision(c, tenant, [f"vs_{tenant}"]))

    async def kept(self, request: AnswerRequest, tenant: str = "a") -> CachedAnswer | None:
        """What the gateway would find for exactly this request."""
        assert request.cache is not None
        content = await self.cache.get(keys.answer(tenant, request.cache.exact))
        return content and CachedAnswer.decode(content)  # type: ignore[return-value]  # never empty


@pytest.fixture(scope="module")
def cache_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("cache"), persistent=False) as server:
        yield server.url


@pytest.fixture
async def setting(cache_url: str, database: Database) -> AsyncIterator[Setting]:
    # Digests are keyed, so a keyring of its own is a cache of its own.
    cache = Cache(CacheSettings(cache_url=cache_url, cache_timeout_seconds=2.0), Keyring.parse(Keyring.generate()))
    yield Setting(database, cache)
    await cache.aclose()


async def test_a_kept_answer_is_found_by_the_same_request_alone(setting: Setting) -> None:
    request = setting.asked("How many cranes?")
    await setting.answers.keep("a", request, ANSWER)
    assert await setting.kept(request) == ANSWER
    assert await setting.kept(setting.asked("How many cranes, please?")) is None


async def test_a_change_while_it_was_answered_keeps_the_answer_out(setting: Setting) -> None:
    request = setting.asked("How many cranes?")
    setting.change()
    await setting.answers.keep("a", request, ANSWER)
    assert await setting.kept(request) is None
    assert await setting.kept(setting.asked("How many cranes?")) is None


async def test_a_change_afterwards_makes_it_miss_at_once(setting: Setting) -> None:
    await setting.answers.keep("a", setting.asked("How many cranes?"), ANSWER)
    setting.change()
    changed = setting.asked("How many cranes?")
    assert await setting.kept(changed) is None
    assert await setting.answers.alike("a", changed) is None


async def test_an_answer_over_a_store_that_is_gone_is_not_kept(setting: Setting) -> None:
    request = setting.asked("How many cranes?")
    setting.database.write_now(lambda c: vector_stores.delete(c, "a", "vs_a"))
    await setting.answers.keep("a", request, ANSWER)
    assert await setting.kept(request) is None


async def test_a_question_in_other_words_finds_it_within_tenant_and_store_alone(setting: Setting) -> None:
    # One vector for everything: all that keeps questions apart here are the filters.
    await setting.answers.keep("a", setting.asked("How many cranes?"), ANSWER)
    assert await setting.answers.alike("a", setting.asked("What number of cranes?")) == ANSWER
    assert await setting.answers.alike("b", setting.asked("How many cranes?", "b")) is None
    # Not even with the digests of the other tenant.
    assert await setting.answers.alike("b", setting.asked("How many cranes?", "a")) is None
    assert await setting.answers.alike("a", setting.asked("How many of the 4 cranes?")) is None


async def test_only_a_near_question_counts(setting: Setting) -> None:
    setting.model.vectors = {"far": [1.0, 0.0], "near": [6.1, 8.0]}
    await setting.answers.keep("a", setting.asked("How many cranes?"), ANSWER)
    assert await setting.answers.alike("a", setting.asked("far")) is None
    assert await setting.answers.alike("a", setting.asked("near")) == ANSWER


async def test_without_the_tenant_s_wish_nothing_is_alike(setting: Setting) -> None:
    await setting.answers.keep("a", setting.asked("How many cranes?"), ANSWER)
    assert await setting.answers.alike("a", setting.asked("How many cranes?", alike=None)) is None
    assert await setting.answers.alike("a", setting.asked("How many cranes?", may_read=False)) is None


async def test_an_embedding_model_that_is_away_costs_only_the_likeness(setting: Setting) -> None:
    await setting.answers.keep("a", setting.asked("How many cranes?"), ANSWER)
    setting.model.away = True
    assert await setting.answers.alike("a", setting.asked("What number of cranes?")) is None
    request = setting.asked("And how many piers?")
    await setting.answers.keep("a", request, ANSWER)
    assert await setting.kept(request) == ANSWER


async def test_revisions_of_foreign_and_missing_stores_are_not_told(setting: Setting) -> None:
    with pytest.raises(PermanentError) as foreign:
        setting.database.read_now(lambda c: vector_stores.revisions(c, "a", ["vs_a", "vs_b"]))
    with pytest.raises(PermanentError) as missing:
        setting.database.read_now(lambda c: vector_stores.revisions(c, "a", ["vs_a", "vs_c"]))
    assert foreign.value.code is missing.value.code is ErrorCode.NOT_FOUND
    assert foreign.value.message.replace("vs_b", "vs_c") == missing.value.message
