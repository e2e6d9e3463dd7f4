"""Embeddings that are asked for again: each text once per tenant and model."""

import struct
from collections.abc import Mapping, Sequence

from libs.common import keys
from libs.common.cache.store import Cache
from libs.common.rag.collections import missing_model
from libs.common.rag.embedder import BATCH_TEXTS, Embedder, Vector
from libs.common.rag.joining import Joined


class CachedEmbedder:
    """An embedder of which only texts that are new to a tenant cost anything.

    Vectors are kept as little-endian float32, which is what models give. Tenants share nothing: how fast a text is
    embedded must not tell whether somebody else has it.
    """

    def __init__(self, embedder: Embedder, cache: Cache, keep_seconds: float, linger_seconds: float = 0.0) -> None:
        self._embedder = embedder
        self._cache = cache
        self._keep_seconds = keep_seconds
        self._new = Joined(self._embed, most=BATCH_TEXTS, at_once=embedder.concurrency, linger_seconds=linger_seconds)
        self._form = struct.Struct(f"<{embedder.dimension}f")
        self._model = f"{embedder.model}.{embedder.dimension}"

    async def embed(self, tenant_id: str, texts: Sequence[str]) -> list[Vector]:
        """The vectors of `texts`, in order. A text that is there twice is embedded once.

        Raises:
            PlatformError: as `Embedder.embed`, for what the cache does not have.
        """
        names = [keys.embedding(tenant_id, self._model, self._cache.digest(text.encode())) for text in texts]
        found = await self._cache.get_many(names) if names else []
        vectors = {name: list(self._form.unpack(value)) for name, value in zip(names, found, strict=True) if value}
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in vectors}
        if missing:
            made = await self._new.ask(list(missing.values()))
            for name, vector in zip(missing, made, strict=True):
                self._cache.put(name, self._form.pack(*vector), self._keep_seconds)
                vectors[name] = vector
        return [vectors[name] for name in names]

    async def _embed(self, texts: Sequence[str]) -> list[Vector]:
        return (await self._embedder.embed(texts)).vectors

    async def aclose(self) -> None:
        """Close the embedder's connections; the cache is its maker's to close."""
        await self._embedder.aclose()


class CachedEmbedders:
    """The embedding models of a deployment, by name.

    Args:
        linger_seconds: how long new texts wait for those of other callers, to go to the model together.
    """

    def __init__(
        self, embedders: Mapping[str, Embedder], cache: Cache, keep_seconds: float, *, linger_seconds: float = 0.0
    ) -> None:
        self._by_model = {
            name: CachedEmbedder(embedder, cache, keep_seconds, linger_seconds) for name, embedder in embedders.items()
        }

    def of(self, model: str) -> CachedEmbedder:
        """One model.

        Raises:
            RetryableError: RETRIEVAL_UNAVAILABLE, for one that is no longer in the settings.
        """
        try:
            return self._by_model[model]
        except KeyError:
            raise missing_model(model) from None

    async def embed(self, tenant_id: str, model: str, texts: Sequence[str]) -> list[Vector]:
        """The vectors of `texts` by one model; see `CachedEmbedder.embed`."""
        return await self.of(model).embed(tenant_id, texts)

    async def aclose(self) -> None:
        """Close the embedders' connections."""
        for embedder in self._by_model.values():
            await embedder.aclose()
