"""Kombu's Redis transport, made to survive items in a queue that are no messages.

Kombu and Celery let an item that is not JSON, or not of a message's form on any level, end the whole consumer: one
LPUSH by anybody with access to the broker would stop a service. Here such an item is refused, counted and logged like
any other forgery.
"""

import base64
from typing import Any, Final, Literal

from kombu.transport import redis as kombu_redis
from pydantic import BaseModel, Field, TypeAdapter

from libs.common import metrics
from libs.common.logs import get_logger

_log = get_logger(__name__)
_MAX_NESTED: Final = 16


class Channel(kombu_redis.Channel):
    """A channel that looks at each item before it hands it on."""

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401 - kombu's signature
        client, parse = self.client, self.client.parse_response

        def parse_checked(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - redis-py's signature
            popped = parse(*arguments, **keywords)
            if popped and not is_message(popped[1]):
                metrics.REFUSED_MESSAGES.labels(reason="malformed").inc()
                _log.warning("refused an item that is no message", queue=popped[0].decode(errors="replace"))
                return None
            return popped

        client.parse_response = parse_checked
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]  # missing in its stubs
        finally:
            del client.parse_response


class Transport(kombu_redis.Transport):
    """The Redis transport over such channels."""

    Channel = Channel


class _Headers(BaseModel):
    task: str
    id: str
    eta: None = None
    expires: None = None


class _DeliveryInfo(BaseModel):
    exchange: str
    routing_key: str


class _Properties(BaseModel):
    body_encoding: Literal["base64"]
    delivery_tag: str
    delivery_info: _DeliveryInfo


class _Item(BaseModel):
    body: str
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


_BODY: Final = TypeAdapter(tuple[tuple[str], dict[str, None], dict[str, None]])


def is_message(item: bytes) -> bool:
    """Whether an item of a queue is of the one form that we send (`libs.common.tasks.wire.celery_message`)."""
    # Python's own JSON parser, which kombu uses, may run out of stack where ours does not.
    if item.count(b"{") + item.count(b"[") > _MAX_NESTED:
        return False
    try:
        found = _Item.model_validate_json(item)
        body = base64.b64decode(found.body, validate=True)
        _BODY.validate_json(body)
    except ValueError:  # pydantic's and binascii's errors are such
        return False
    return body.count(b"{") + body.count(b"[") <= _MAX_NESTED
