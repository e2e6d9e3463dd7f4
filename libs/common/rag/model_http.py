"""The HTTP client under the `openai` SDK, for completions and embeddings alike."""

from typing import Final

import httpx2
from openai import DefaultAioHttpClient

# uvicorn, and so vLLM and most servers that one runs oneself, end connections that were idle for 5 s. With as long an
# expiry here, the SDK's own default, a burst that follows one by 5 s would go into connections that end under it.
_IDLE_SECONDS: Final = 2.0
_MAX_CONNECTIONS: Final = 1000
_MAX_IDLE_CONNECTIONS: Final = 100


def model_http_client() -> httpx2.AsyncClient:
    """A client that drops idle connections before a model server does; closed with the SDK's client it is given to."""
    limits = httpx2.Limits(
        max_connections=_MAX_CONNECTIONS,
        max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
        keepalive_expiry=_IDLE_SECONDS,
    )
    return DefaultAioHttpClient(limits=limits)
