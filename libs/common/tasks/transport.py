"""Kombu's Redis transport, made to survive items in a queue that are no messages.

Kombu lets an item that is not JSON, or not of a message's form, end the whole consumer: one LPUSH by anybody with
access to the broker would stop a service. Here such an item is refused, counted and logged like any other forgery.
"""

from typing import Any

import orjson
from kombu.transport import redis as kombu_redis

from libs.common import metrics
from libs.common.logs import get_logger

_log = get_logger(__name__)


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


def is_message(item: bytes) -> bool:
    """Whether kombu can read an item of a queue: a JSON object with the properties that it looks up."""
    try:
        names: set[str] = set(orjson.loads(item)["properties"])
        return names >= {"delivery_tag", "delivery_info"}
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
