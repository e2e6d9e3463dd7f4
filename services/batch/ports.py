"""What the pipeline needs of the outside: the blob store, and one batch's records as one attempt may change them."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.common.blobs import BlobInfo
from libs.common.records.batch_results import EndedItem, ResultFile
from libs.common.records.batches import NewItem
from services.batch.lines import Problem


class BatchEndedError(Exception):
    """The batch was ended by somebody else: what this attempt does is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Input:
    """A batch to be validated and where its file lies."""

    tenant_id: str
    batch_id: str
    endpoint: str
    blob_id: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Closing:
    """A batch to be closed, and how many lines go into each of its files."""

    tenant_id: str
    batch_id: str
    output_lines: int
    error_lines: int


class Blobs(Protocol):
    """Streams of file contents, as `libs.common.blobs.BlobStore` gives and takes them."""

    def read(self, tenant_id: str, blob_id: str) -> AsyncGenerator[bytes, None]: ...

    async def write(self, tenant_id: str, blob_id: str, chunks: AsyncIterator[bytes]) -> BlobInfo: ...


class Intake(Protocol):
    """A batch under validation. Every method raises BatchEndedError once it is so no longer."""

    async def begin(self) -> Input:
        """Forget the items of earlier attempts. Raises PermanentError, NOT_FOUND, if the input file is gone."""

    async def add(self, items: Sequence[NewItem]) -> None: ...

    async def accept(self, total: int) -> None: ...

    async def refuse(self, problems: Sequence[Problem]) -> None: ...


class Results(Protocol):
    """A batch whose items will not change any more. Every method raises BatchEndedError once it has ended."""

    async def begin(self) -> Closing: ...

    async def page(self, *, succeeded: bool, after: int) -> list[EndedItem]:
        """The next few items for the output file, or for the error file; empty at the end."""

    async def close(self, output: ResultFile | None, errors: ResultFile | None) -> None: ...
