"""The collections of a deployment: two for each embedding model."""

from collections.abc import Mapping
from typing import Self

from qdrant_client import AsyncQdrantClient

from libs.common.contracts.ingest import Place
from libs.common.errors import ErrorCode, RetryableError
from libs.common.rag.vectors import ChunkCollection, qdrant_client_of
from libs.common.settings import RetrievalSettings

_GENERATIONS = (1, 2)


class Collections:
    """Where chunks are, by place.

    Args:
        dimensions: the length of the vectors of each embedding model.
    """

    def __init__(self, client: AsyncQdrantClient, dimensions: Mapping[str, int]) -> None:
        self._client = client
        self._all = {
            Place(model, generation): ChunkCollection(client, model=model, dimension=length, generation=generation)
            for model, length in dimensions.items()
            for generation in _GENERATIONS
        }

    @classmethod
    def connect(cls, settings: RetrievalSettings) -> Self:
        """Those that the settings name; nothing is sent yet."""
        api_key = settings.qdrant_api_key
        client = qdrant_client_of(settings.qdrant_url, api_key.get_secret_value() if api_key else None)
        return cls(client, settings.dimensions_by_model())

    def at(self, place: Place) -> ChunkCollection:
        """The collection of a place.

        Raises:
            RetryableError: RETRIEVAL_UNAVAILABLE, for a model that is no longer in the settings.
        """
        try:
            return self._all[place]
        except KeyError:
            raise missing_model(place.embedding_model) from None

    def all(self) -> Mapping[Place, ChunkCollection]:
        """Every collection, by its place; not each of them exists."""
        return self._all

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def missing_model(model: str) -> RetryableError:
    """A vector store is indexed with a model that the deployment does not offer (any more)."""
    message = (
        f"The embedding model '{model}' is not configured here. List it in EMBEDDING_MODELS, or reindex the store."
    )
    return RetryableError(ErrorCode.RETRIEVAL_UNAVAILABLE, message)
