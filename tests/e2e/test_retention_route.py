"""A tenant's retention over HTTP: what there is, what comes, and nobody else's."""

from typing import Any

import httpx
import pytest
from openai import OpenAI

from libs.local.running import Stack
from tests.e2e.test_cached_answers import client_of

PATH = "/conversations/retention"


def retention(client: OpenAI, **body: Any) -> Any:
    reply = client.post(PATH, body=body, cast_to=httpx.Response) if body else client.get(PATH, cast_to=httpx.Response)
    assert reply.json()["object"] == "conversation.retention"
    return reply.json()["expires_after"]


def expires_at(client: OpenAI, conversation_id: str) -> int | None:
    at: int | None = client.conversations.retrieve(conversation_id).to_dict()["expires_at"]  # type: ignore[assignment]
    return at


def test_it_holds_for_the_tenant_alone(stack: Stack, client: OpenAI) -> None:
    theirs = client.conversations.create()
    with client_of(stack, "tenant_forgetful") as forgetful:
        assert retention(forgetful) is None
        before = forgetful.conversations.create()
        own = forgetful.conversations.create(extra_body={"expires_after": {"anchor": "last_active_at", "seconds": 90}})
        assert expires_at(forgetful, before.id) is None
        set_to = retention(forgetful, expires_after={"anchor": "last_active_at", "days": 2})
        assert set_to == retention(forgetful) == {"anchor": "last_active_at", "seconds": 2 * 86_400}
        after = forgetful.conversations.create()
        for conversation in (before, after):
            at = expires_at(forgetful, conversation.id)
            assert at is not None
            assert abs(at - conversation.created_at - 2 * 86_400) <= 60
        at = expires_at(forgetful, own.id)
        assert at is not None
        assert abs(at - own.created_at - 90) <= 60
        assert retention(client) is None
        assert expires_at(client, theirs.id) is None
        assert retention(forgetful, expires_after=None) is None
        assert expires_at(forgetful, before.id) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"expires_after": {"anchor": "last_active_at"}},
        {"expires_after": {"anchor": "last_active_at", "seconds": 59}},
        {"expires_after": {"anchor": "created_at", "days": 1}},
        {"expires_after": None, "days": 3},
    ],
)
def test_what_says_nothing_clear_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    assert http.post(f"/v1{PATH}", json=body).status_code == 400
    assert http.get(f"/v1{PATH}").json()["expires_after"] is None
