import asyncio
import hashlib
import os
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from libs.common.blobs import BlobInfo, BlobStore
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.keyring import Keyring

SEALER = Keyring.parse(Keyring.generate()).segment_sealer("files")
MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, root: Path) -> BlobStore:
    return BlobStore.open("memory://" if request.param == "memory" else root.as_uri(), SEALER)


@pytest.fixture
def directory(root: Path) -> BlobStore:
    return BlobStore.open(root.as_uri(), SEALER)


async def stream(content: bytes, piece_bytes: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), piece_bytes):
        yield content[at : at + piece_bytes]
        await asyncio.sleep(0)


async def read(store: BlobStore, tenant_id: str, blob_id: str) -> bytes:
    return b"".join([chunk async for chunk in store.read(tenant_id, blob_id)])


def files_in(root: Path) -> list[Path]:
    return [path.relative_to(root) for path in root.rglob("*") if path.is_file()]


@contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """The system refuses to let files of this process grow further, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [0, 1, 65_536, 3 * MIB, 12 * MIB + 5])
async def test_a_blob_is_read_as_it_was_written(store: BlobStore, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    info = await store.write("t1", "file-abc", stream(content))
    assert info == BlobInfo(bytes=size_bytes, sha256=hashlib.sha256(content).hexdigest())
    assert await read(store, "t1", "file-abc") == content


async def test_writing_again_replaces_the_blob(store: BlobStore) -> None:
    await store.write("t1", "b1", stream(b"old" * 1000))
    await store.write("t1", "b1", stream(b"new"))
    assert await read(store, "t1", "b1") == b"new"


async def test_deleting_is_idempotent_and_touches_one_blob(store: BlobStore) -> None:
    for tenant_id, blob_id in (("t1", "b1"), ("t1", "b2"), ("t2", "b1")):
        await store.write(tenant_id, blob_id, stream(b"text"))
    await store.delete("t1", "b1")
    await store.delete("t1", "b1")
    assert not await store.exists("t1", "b1")
    assert await store.exists("t1", "b2")
    assert await store.exists("t2", "b1")


async def test_a_missing_blob_is_not_found(store: BlobStore, tmp_path: Path) -> None:
    await store.write("t1", "b1", stream(b"text"))
    for tenant_id, blob_id in (("t1", "b2"), ("t2", "b1")):
        with pytest.raises(PermanentError) as caught:
            await read(store, tenant_id, blob_id)
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert str(tmp_path) not in caught.value.message
        with pytest.raises(PermanentError):
            await read_into(store, tenant_id, blob_id)


async def read_into(store: BlobStore, tenant_id: str, blob_id: str) -> bytes:
    with tempfile.TemporaryFile() as file:
        await store.read_into(tenant_id, blob_id, file)
        file.seek(0)
        return file.read()


async def test_a_blob_is_read_into_a_local_file(store: BlobStore) -> None:
    content = os.urandom(200_000)
    await store.write("t1", "b1", stream(content))
    assert await read_into(store, "t1", "b1") == content


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a.b", "a b", "é", "a\n", "%2e"])
async def test_ids_that_could_leave_their_place_are_refused(store: BlobStore, bad: str) -> None:
    for tenant_id, blob_id in ((bad, "b1"), ("t1", bad)):
        with pytest.raises(ValueError, match="ids are letters"):
            await store.write(tenant_id, blob_id, stream(b"text"))
        with pytest.raises(ValueError, match="ids are letters"):
            await read(store, tenant_id, blob_id)
        with pytest.raises(ValueError, match="ids are letters"):
            await store.delete(tenant_id, blob_id)


async def test_nothing_of_the_plaintext_lies_in_the_directory(directory: BlobStore, root: Path) -> None:
    canary = b"canary-4f1c9 the quick brown fox"
    await directory.write("t1", "b1", stream(canary))
    await directory.write("t1", "b2", stream(canary * 250_000))
    assert sorted(files_in(root)) == [Path("t1/b1/b1"), Path("t1/b2/b2")]
    for path in files_in(root):
        assert b"canary" not in (root / path).read_bytes()


@pytest.mark.parametrize("size_bytes", [1000, 12 * MIB])
async def test_a_failing_source_leaves_nothing_and_its_error_is_unchanged(
    directory: BlobStore, root: Path, size_bytes: int
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        async for piece in stream(os.urandom(size_bytes)):
            yield piece
        raise OSError("the client went away")

    with pytest.raises(OSError, match=r"^the client went away$"):
        await directory.write("t1", "b1", failing())
    assert files_in(root) == []


async def test_a_failed_write_leaves_the_former_blob(store: BlobStore) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield os.urandom(6 * MIB)
        raise RuntimeError("stopped")

    await store.write("t1", "b1", stream(b"former"))
    with pytest.raises(RuntimeError, match="stopped"):
        await store.write("t1", "b1", failing())
    assert await read(store, "t1", "b1") == b"former"


async def test_a_cancelled_write_leaves_nothing_wherever_it_is_cancelled(directory: BlobStore, root: Path) -> None:
    content = os.urandom(6 * MIB)
    whole = 0
    for turns in range(0, 400, 10):
        write = asyncio.create_task(directory.write("t1", f"b{turns}", stream(content)))
        for _ in range(turns):
            await asyncio.sleep(0)
        write.cancel()
        try:
            await write
            whole += 1
        except asyncio.CancelledError:
            assert not await directory.exists("t1", f"b{turns}")
    assert len(files_in(root)) == whole


async def test_a_write_cancelled_in_its_last_step_leaves_nothing(directory: BlobStore, root: Path) -> None:
    for turns in range(200):
        drained = asyncio.Event()

        async def source(drained: asyncio.Event = drained) -> AsyncIterator[bytes]:
            yield b"text"
            drained.set()

        write = asyncio.create_task(directory.write("t1", "b1", source()))
        await drained.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        write.cancel()
        with suppress(asyncio.CancelledError):
            await write
            await directory.delete("t1", "b1")
        assert files_in(root) == []


async def test_a_blob_moved_cut_or_changed_does_not_open(directory: BlobStore, root: Path) -> None:
    await directory.write("t1", "b1", stream(os.urandom(300_000)))
    sealed = (root / "t1/b1/b1").read_bytes()
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    places = {"t2/b1/b1": sealed, "t1/b2/b2": sealed, "t1/b3/b3": sealed[:200_000], "t1/b4/b4": changed}
    for place, content in places.items():
        path = root / place
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        tenant_id, _, blob_id = place.split("/")
        with pytest.raises(PermanentError) as caught:
            await read_into(directory, tenant_id, blob_id)
        assert caught.value.code is ErrorCode.DECRYPT_FAILED


@pytest.mark.parametrize("size_bytes", [2 * MIB, 12 * MIB])
async def test_no_space_left_is_storage_full_and_leaves_nothing(
    directory: BlobStore, root: Path, size_bytes: int
) -> None:
    content = os.urandom(size_bytes)
    with largest_file(MIB), pytest.raises(RetryableError) as caught:
        await directory.write("t1", "b1", stream(content))
    assert caught.value.code is ErrorCode.STORAGE_FULL
    assert files_in(root) == []
    await directory.write("t1", "b1", stream(content))
    with largest_file(MIB), pytest.raises(RetryableError) as caught:
        await read_into(directory, "t1", "b1")
    assert caught.value.code is ErrorCode.STORAGE_FULL


@pytest.fixture
def broken(directory: BlobStore, root: Path) -> BlobStore:
    """A store whose directory has given way to a file."""
    shutil.rmtree(root)
    root.write_text("")
    return directory


async def test_a_broken_store_is_unavailable(broken: BlobStore, root: Path) -> None:
    for attempt in (
        lambda: broken.write("t1", "b1", stream(b"text")),
        lambda: read(broken, "t1", "b1"),
        lambda: broken.delete("t1", "b1"),
        lambda: broken.exists("t1", "b1"),
    ):
        with pytest.raises(PlatformError) as caught:
            await attempt()
        assert caught.value.code is ErrorCode.STORAGE_UNAVAILABLE
        assert str(root) not in caught.value.message


@pytest.mark.parametrize("url", ["", "ftp://user:secret@host/", "no url", "s3://", "az://"])
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL cannot be used") as caught:
        BlobStore.open(url, SEALER)
    assert "secret" not in str(caught.value)
