"""The moderator over an upstream's moderations API, on the loopback."""

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

from libs.common.contracts.moderation import CATEGORIES
from libs.common.errors import ErrorCode, PlatformError
from libs.local.ports import LOOPBACK, free_port
from services.chat.moderation import ModeratedCompleter, RuleModerator
from services.chat.settings import ChatSettings
from services.chat.upstream_moderation import UpstreamModerator, moderated, moderator_of
from tests.fakes import FakeCompleter

pytestmark = pytest.mark.timeout(30)

_FULL = {name: name == "violence" for name in CATEGORIES}
_RESULT = {
    "flagged": True,
    "categories": _FULL,
    "category_scores": {name: 0.9 if found else 0.1 for name, found in _FULL.items()},
    "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
}
_OLD = {name: found for name, found in _FULL.items() if not name.startswith("illicit")}
_OLD_RESULT = {"flagged": False, "categories": _OLD, "category_scores": dict.fromkeys(_OLD, 0.2)}


@contextmanager
def upstream(reply: object, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives one reply; its base URL, and the bodies it was sent."""
    asked: list[dict[str, Any]] = []

    async def moderate(request: Request) -> Response:
        asked.append(orjson.loads(await request.body()))
        return Response(orjson.dumps(reply), status, media_type="application/json")

    port = free_port()
    app = Starlette(routes=[Route("/v1/moderations", moderate, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host=LOOPBACK, port=port, log_level="error"))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        sleep(0.01)
    yield f"http://{LOOPBACK}:{port}/v1", asked
    server.should_exit = True
    thread.join()


@asynccontextmanager
async def moderating(url: str) -> AsyncIterator[UpstreamModerator]:
    moderator = moderator_of(ChatSettings(openai_base_url=url, moderation_model="omni-moderation-latest"))
    assert isinstance(moderator, UpstreamModerator)
    try:
        yield moderator
    finally:
        await moderator.aclose()


def reply_of(*results: object) -> dict[str, object]:
    return {"id": "modr-1", "model": "omni-moderation-2024-09-26", "results": list(results)}


async def test_verdicts_are_the_upstreams() -> None:
    with upstream(reply_of(_RESULT, _OLD_RESULT)) as (url, asked):
        async with moderating(url) as moderator:
            flagged, clean = await moderator.moderate(["one", "two"])
    assert asked == [{"model": "omni-moderation-latest", "input": ["one", "two"]}]
    assert flagged.flagged
    assert flagged.categories == _FULL
    assert flagged.scores["violence"] == 0.9
    assert not clean.flagged
    assert tuple(clean.scores) == CATEGORIES
    assert clean.scores["illicit"] == 0


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (reply_of(_RESULT, _RESULT), 200, ErrorCode.LLM_BAD_RESPONSE),
        (reply_of(), 200, ErrorCode.LLM_BAD_RESPONSE),
        ({"results": [{"flagged": True}]}, 200, ErrorCode.LLM_BAD_RESPONSE),
        ({}, 200, ErrorCode.LLM_BAD_RESPONSE),
        ({}, 401, ErrorCode.LLM_AUTH),
        ({}, 404, ErrorCode.MODEL_NOT_FOUND),
        ({}, 500, ErrorCode.LLM_UNAVAILABLE),
    ],
)
async def test_what_cannot_be_judged_is_never_let_through(reply: object, status: int, code: ErrorCode) -> None:
    with upstream(reply, status) as (url, _asked):
        async with moderating(url) as moderator:
            completer = ModeratedCompleter(FakeCompleter(), moderator, answers=False)
            with pytest.raises(PlatformError) as raised:
                async for _ in completer.stream("model", [{"role": "user", "content": "x"}], {}):
                    pass
    assert raised.value.code is code


def test_the_settings_say_who_judges_what() -> None:
    assert isinstance(moderator_of(ChatSettings()), RuleModerator)
    completer = FakeCompleter()
    assert moderated(completer, RuleModerator(), ChatSettings()) is completer
    assert isinstance(moderated(completer, RuleModerator(), ChatSettings(moderation="input")), ModeratedCompleter)
