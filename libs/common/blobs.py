"""Where file contents are kept: a directory, S3, Google Cloud Storage or Azure, always sealed, always streamed.

A blob lies at `{tenant_id}/{blob_id[:2]}/{blob_id}` and is bound to its tenant and id: moved to another place, it does
not open. Both ids are the platform's own; nothing that a user chose, such as a file name, is ever part of a path.
"""

import asyncio
import errno
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from libs.common.errors import ConfigurationError, ErrorCode, PermanentError, RetryableError
from libs.common.sealing import SegmentSealer

if TYPE_CHECKING:  # these names exist for type checkers only
    from obstore.store import ClientConfig

_ID: Final = re.compile(r"[A-Za-z0-9_-]+")
# The least part size that S3 accepts. A write holds at most this times one more than the parts in flight.
_PART_BYTES: Final = 5 * 1024 * 1024
_PARTS_IN_FLIGHT: Final = 2
# What is written and read at once, and not in parts.
_SMALL_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 1024 * 1024
# `timeout` counts a whole download, with the time its reader takes: only silence may end a slow one.
_CLIENT_OPTIONS: Final["ClientConfig"] = {
    "allow_http": True,  # only where the configured endpoint is http://, such as a store in the same cluster
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(hours=6),
}
_FULL_NUMBERS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Object stores name the cause only in their text: the system's error number, or the HTTP status.
_FULL_SIGNS: Final = (*(f"(os error {number})" for number in _FULL_NUMBERS), "507 Insufficient Storage")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What was written: the size and the SHA-256 (hex) of the plaintext."""

    bytes: int
    sha256: str


class BlobStore:
    """Sealed blobs by tenant and id.

    Every method raises RetryableError, STORAGE_FULL or STORAGE_UNAVAILABLE, when the store fails, and ValueError for an
    id that is not the platform's own.
    """

    def __init__(self, store: ObjectStore, sealer: SegmentSealer) -> None:
        self._store = store
        self._sealer = sealer

    @classmethod
    def open(cls, url: str, sealer: SegmentSealer) -> "BlobStore":
        """The store at `file:///directory` (made if missing), `s3://`, `gs://`, `azure://`, or `memory://` for tests.

        Credentials come from the environment or the platform's identity, as the object store's own tools read them.

        Raises:
            ConfigurationError: the URL is none of these, or something it needs is not configured.
        """
        try:
            if url.startswith("file:"):
                return cls(LocalStore.from_url(url, mkdir=True), sealer)
            return cls(from_url(url, client_options=_CLIENT_OPTIONS), sealer)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"BLOBS_URL: the URL cannot be used ({type(error).__name__}); see its form and the credentials."
            ) from None

    async def write(self, tenant_id: str, blob_id: str, chunks: AsyncIterator[bytes]) -> BlobInfo:
        """Seal and store a stream; the blob is there whole once this returns, and not at all if it raises.

        A blob that was there before stays until the new one takes its place. Errors of `chunks` are raised unchanged.
        """
        plaintext = _Measured()
        async with aclosing(self._sealer.seal_stream(plaintext.of(chunks), tenant_id, blob_id)) as frames:
            head = bytearray()
            async for frame in frames:
                head += frame
                if len(head) > _SMALL_BYTES:
                    await self._write_parts(tenant_id, blob_id, head, frames)
                    break
            else:
                # One request, where a writer would take three.
                await self._publish(obstore.put_async(self._store, _path(tenant_id, blob_id), head), tenant_id, blob_id)
        return BlobInfo(plaintext.bytes, plaintext.sha256.hexdigest())

    async def _write_parts(self, tenant_id: str, blob_id: str, head: bytearray, frames: AsyncIterator[bytes]) -> None:
        writer = obstore.open_writer_async(
            self._store, _path(tenant_id, blob_id), buffer_size=_PART_BYTES, max_concurrency=_PARTS_IN_FLIGHT
        )
        try:
            with _store_errors():
                await writer.write(head)
            async for frame in frames:
                with _store_errors():
                    await writer.write(frame)
        except BaseException as error:
            # Leaving the writer's context with an error is its way to give up an upload. The first error is the one to
            # tell; a writer that failed by itself may refuse to be left.
            with suppress(OSError, BaseError):
                await writer.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._publish(writer.close(), tenant_id, blob_id)

    async def read(self, tenant_id: str, blob_id: str) -> AsyncGenerator[bytes, None]:
        """The plaintext in chunks of at most 64 KiB; whole only if no error ends it.

        Raises:
            PermanentError: NOT_FOUND; DECRYPT_FAILED where the blob was cut, changed, moved or sealed with another key.
        """
        sealed = self._sealed(_path(tenant_id, blob_id))
        async with aclosing(sealed), aclosing(self._sealer.open_stream(sealed, tenant_id, blob_id)) as opened:
            async for chunk in opened:
                yield chunk

    async def read_into(self, tenant_id: str, blob_id: str, file: BinaryIO) -> None:
        """Write the plaintext into a local file; if this raises, what is there is not whole.

        Raises:
            PermanentError: as for `read`.
        """
        async with aclosing(self.read(tenant_id, blob_id)) as chunks:
            with _store_errors():
                async for chunk in chunks:
                    file.write(chunk)
                file.flush()

    async def delete(self, tenant_id: str, blob_id: str) -> None:
        """Remove a blob; one that is not there is no error."""
        with _store_errors(), suppress(FileNotFoundError):
            await obstore.delete_async(self._store, _path(tenant_id, blob_id))

    async def exists(self, tenant_id: str, blob_id: str) -> bool:
        """Whether the blob is there; says nothing of whether it opens."""
        with _store_errors():
            try:
                await obstore.head_async(self._store, _path(tenant_id, blob_id))
            except FileNotFoundError:
                return False
        return True

    async def _publish(self, last_step: Awaitable[object], tenant_id: str, blob_id: str) -> None:
        """The last step of a write, after which the blob is visible."""
        closing = asyncio.ensure_future(last_step)
        try:
            with _store_errors():
                await asyncio.shield(closing)
        except asyncio.CancelledError:
            # The store may be past the point of giving up, so the step is let finish and then undone.
            with suppress(OSError, BaseError, RetryableError):
                await closing
                await self.delete(tenant_id, blob_id)
            raise

    async def _sealed(self, path: str) -> AsyncGenerator[bytes, None]:
        with _store_errors():
            try:
                found = await obstore.get_async(self._store, path)
            except FileNotFoundError as error:
                raise PermanentError(ErrorCode.NOT_FOUND, "The stored content was not found.") from error
            if found.meta["size"] <= _SMALL_BYTES:
                yield bytes(await found.bytes_async())
                return
            async for chunk in found.stream(min_chunk_size=_READ_BYTES):
                yield bytes(chunk)


class _Measured:
    """Counts and hashes a stream on its way."""

    def __init__(self) -> None:
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    async def of(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.bytes += len(chunk)
            self.sha256.update(chunk)
            yield chunk


def _path(tenant_id: str, blob_id: str) -> str:
    if not (_ID.fullmatch(tenant_id) and _ID.fullmatch(blob_id)):
        raise ValueError("Tenant and blob ids are letters, digits, hyphens and underscores.")
    return f"{tenant_id}/{blob_id[:2]}/{blob_id}"


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn a store's errors into the platform's, which hold no path or URL; the store's own stays as the cause."""
    try:
        yield
    except (OSError, BaseError) as error:
        if _is_full(error):
            raise RetryableError(ErrorCode.STORAGE_FULL, "There is no space left to store files.") from error
        raise RetryableError(ErrorCode.STORAGE_UNAVAILABLE, "The file storage cannot be reached.") from error


def _is_full(error: OSError | BaseError) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL_NUMBERS or any(sign in str(error) for sign in _FULL_SIGNS)
