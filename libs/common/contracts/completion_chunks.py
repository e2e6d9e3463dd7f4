"""The chunks that end a streamed chat completion, sent by whichever service knows that it is complete."""

from libs.common.contracts.chat import JsonObject


def last_chunks(body: JsonObject, *, include_usage: bool) -> list[JsonObject]:
    """Why the completion `body` ended, then its usage where that is asked for; only `[DONE]` comes after these."""
    finish_reason = body["choices"][0]["finish_reason"]
    choice = {"index": 0, "delta": {}, "finish_reason": finish_reason, "logprobs": None}
    chunks = [completion_chunk(body, [choice])]
    if include_usage:
        chunks.append(completion_chunk(body, []) | {"usage": body["usage"]})
    return chunks


def completion_chunk(head: JsonObject, choices: list[JsonObject]) -> JsonObject:
    """A chunk of the completion with this head: `id`, `created`, `model` and, if so, `degraded`; all else is unread."""
    named = {name: head[name] for name in ("id", "created", "model", "degraded") if name in head}
    return named | {"object": "chat.completion.chunk", "choices": choices}
