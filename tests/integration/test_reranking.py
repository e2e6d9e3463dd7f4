"""A reranker over HTTP: what it is asked, what becomes of its scores, and of questions while it is away or wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from time import sleep
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.common import metrics
from libs.local.ports import LOOPBACK, free_port
from services.chat.reranking import UpstreamReranker, reranker_of
from services.chat.settings import ChatSettings

pytestmark = pytest.mark.timeout(30)


def _reply(*scores: float) -> dict[str, Any]:
    return {"results": [{"index": index, "relevance_score": score} for index, score in enumerate(scores)][::-1]}


@contextmanager
def server(reply: object, *, status: int = 200, wait_seconds: float = 0.0) -> Iterator[tuple[str, list[Any]]]:
    """A reranker that gives one reply; its base URL, and the bodies it was sent."""
    asked: list[Any] = []

    async def rerank(request: Request) -> Response:
        asked.append((request.headers["authorization"], orjson.loads(await request.body())))
        await asyncio.sleep(wait_seconds)
        return Response(orjson.dumps(reply), status, media_type="application/json")

    port = free_port()
    app = Starlette(routes=[Route("/v1/rerank", rerank, methods=["POST"])])
    running = uvicorn.Server(uvicorn.Config(app, host=LOOPBACK, port=port, log_level="error"))
    thread = Thread(target=running.run)
    thread.start()
    while not running.started:
        sleep(0.01)
    yield f"http://{LOOPBACK}:{port}/v1", asked
    running.should_exit = True
    thread.join()


@asynccontextmanager
async def reranking(url: str, timeout_seconds: float = 5.0) -> AsyncIterator[UpstreamReranker]:
    settings = ChatSettings(
        rerank_base_url=url, rerank_model="judge", rerank_api_key="secret", rerank_timeout_seconds=timeout_seconds
    )
    reranker = reranker_of(settings)
    assert reranker is not None
    try:
        yield reranker
    finally:
        await reranker.aclose()


def _failures() -> float:
    return metrics.REGISTRY.get_sample_value("docent_rerank_failures_total") or 0.0


def test_there_is_none_by_default() -> None:
    assert reranker_of(ChatSettings()) is None


async def test_scores_come_in_the_order_of_the_texts_and_within_bounds() -> None:
    with server(_reply(-3.0, 0.25, 7.0)) as (url, asked):
        async with reranking(url) as reranker:
            assert await reranker.scores(["cranes?"], ["a", "b", "c"]) == [0.0, 0.25, 1.0]
    body = {"model": "judge", "query": "cranes?", "documents": ["a", "b", "c"], "top_n": 3}
    assert asked == [("Bearer secret", body)]


async def test_of_several_queries_the_one_that_fits_best_counts() -> None:
    with server(_reply(0.5, 0.25)) as (url, asked):
        async with reranking(url) as reranker:
            assert await reranker.scores(["cranes?", "tides?"], ["a", "b"]) == [0.5, 0.25]
    assert sorted(body["query"] for _, body in asked) == ["cranes?", "tides?"]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (_reply(0.5), 200),
        (_reply(0.5, 0.4, 0.3), 200),
        ({"results": [{"index": 0, "relevance_score": 1}] * 2}, 200),
        ({"results": [{"index": 0, "relevance_score": "much"}, {"index": 1, "relevance_score": 1}]}, 200),
        ({"scores": [1, 2]}, 200),
        ("rubbish", 200),
        ({"error": "no"}, 401),
        ({"error": "no"}, 500),
    ],
)
async def test_what_cannot_be_used_is_counted_and_gives_no_scores(reply: object, status: int) -> None:
    before = _failures()
    with server(reply, status=status) as (url, _):
        async with reranking(url) as reranker:
            assert await reranker.scores(["cranes?"], ["a", "b"]) is None
    assert _failures() == before + 1


async def test_a_slow_one_is_not_waited_for() -> None:
    with server(_reply(1.0), wait_seconds=3.0) as (url, _):
        async with reranking(url, timeout_seconds=0.1) as reranker:
            assert await reranker.scores(["cranes?"], ["a"]) is None


async def test_one_that_is_away_is_soon_left_alone() -> None:
    async with reranking(f"http://{LOOPBACK}:{free_port()}/v1") as reranker:
        before = _failures()
        for _ in range(8):
            assert await reranker.scores(["cranes?"], ["a"]) is None
        assert _failures() == before + 8
