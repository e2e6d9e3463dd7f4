"""The pipeline over in-memory ports: what is stored, what is cleared, and what each ending leaves behind."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pytest

from libs.common.contracts.ingest import IngestFile, Place, PurgeFile
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.records.file_versions import AttributesChangedError, PlaceChangedError
from services.ingest.chunking import AUTO
from services.ingest.document import Block, Document, LoadError
from services.ingest.pipeline import BATCH_CHUNKS, Pipeline, strategy_of
from services.ingest.ports import Attachment, Attributes, EmbeddedChunk, Job, Target, Twin

_REQUEST = IngestFile(vector_store_id="vs_1", file_id="file-1", version=1)
_HERE, _THERE = Place("old-model"), Place("new-model")
_NEW = Attachment(
    "harbour.md", "blob_1", {"year": 2024.0}, {"type": "auto"}, live_version=0, wanted_version=1, place=_HERE
)
_WINDOWS = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}


class FakeJob:
    """A job that is never lost."""

    id = "job_1"
    tenant_id = "tenant_a"

    def __init__(self) -> None:
        self.reported: list[tuple[int, int]] = []
        self.finished = False

    async def progress(self, done: int, total: int) -> None:
        self.reported.append((done, total))

    async def write(self, step: Callable[[Any], None]) -> None:
        step(None)

    async def finish(self, last_step: Callable[[Any], None] | None = None) -> None:
        if last_step is not None:
            last_step(None)
        self.finished = True


class JobGoneError(Exception):
    """Another worker has the job."""


class LostJob(FakeJob):
    """A job that another worker takes as soon as `lost` is set."""

    lost = False

    async def progress(self, done: int, total: int) -> None:
        if self.lost:
            raise JobGoneError
        await super().progress(done, total)


@dataclass
class World:
    """Every port in memory. `during` runs once while the first batch is embedded: what happens meanwhile."""

    attached: Attachment | None = _NEW
    text: str = "The harbour opens at six."
    failure: Exception | None = None
    during: Callable[[], None] | None = None
    chunks: dict[tuple[int, int], tuple[str, Attributes]] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=lambda: {"blob_1"})
    stores_deleted: list[str] = field(default_factory=list)
    files: list[BinaryIO] = field(default_factory=list)
    usage_bytes: int = 0
    twins: dict[str, Attachment] = field(default_factory=dict)
    copyable: set[str] = field(default_factory=set)
    damaged: bool = False
    cleared: list[Place | None] = field(default_factory=list)

    def pipeline(self) -> Pipeline:
        return Pipeline(self, self, self, self, self)

    async def attachment(self, _tenant_id: str, _vector_store_id: str, file_id: str) -> Attachment | None:
        return self.attached if file_id == _REQUEST.file_id else self.twins.get(file_id)

    async def go_live(self, job: Job, target: Target, usage_bytes: int, stored: Attachment) -> bool:
        wanted = self.attached is not None and self.attached.wanted_version == target.version
        if self.attached is not None and wanted and self.attached.place != stored.place:
            raise PlaceChangedError
        if self.attached is not None and wanted and self.attached.attributes != stored.attributes:
            raise AttributesChangedError
        await job.finish()
        if self.attached is not None and wanted:
            self.attached = replace(self.attached, live_version=target.version, wanted_version=None)
            self.usage_bytes = usage_bytes
        return wanted

    async def confirm_attributes(self, job: Job, _target: Target, _attributes: Attributes) -> None:
        await job.finish()

    async def read_into(self, _tenant_id: str, blob_id: str, file: BinaryIO) -> None:
        if blob_id not in self.blobs:
            raise PermanentError(ErrorCode.NOT_FOUND, "The stored content was not found.")
        file.write(self.text.encode())
        self.files.append(file)

    async def delete(self, _tenant_id: str, blob_id: str) -> None:
        self.blobs.discard(blob_id)

    async def parse(
        self, file: BinaryIO, _filename: str, *, owner: str, page_read: Callable[[int, int], Awaitable[None]]
    ) -> Document:
        assert owner == FakeJob.tenant_id
        if self.failure:
            raise self.failure
        file.seek(0)
        text = file.read().decode()
        if text.startswith("Scanned"):
            await page_read(1, 2)
        blocks = [Block(part) for part in text.split("\n\n") if part]
        return Document.of(blocks, media_type="text/plain", title="Ports")

    async def embed(self, _tenant_id: str, _model: str, texts: Sequence[str]) -> list[list[float]]:
        if self.during:
            self.during()
            self.during = None
        return [[float(len(text)), 1.0] for text in texts]

    async def store(
        self, _place: Place, target: Target, _filename: str, attributes: Attributes, chunks: Sequence[EmbeddedChunk]
    ) -> None:
        for embedded in chunks:
            self.chunks[target.version, embedded.chunk.position] = (embedded.text, attributes)

    async def count(self, _place: Place, _tenant_id: str, _store_id: str, _target: Target | None = None) -> int:
        return len(self.chunks)

    async def copy(self, _place: Place, source: Target, target: Target, attributes: Attributes) -> int:
        if self.damaged:
            raise PermanentError(ErrorCode.DECRYPT_FAILED, "The content is damaged.")
        for position in range(2 if source.file_id in self.copyable else 0):
            self.chunks[target.version, position] = (f"copied {position}", attributes)
        if self.during:
            self.during()
        return 2 if source.file_id in self.copyable else 0

    async def set_attributes(self, _target: Target, attributes: Attributes) -> None:
        self.chunks = {place: (text, attributes) for place, (text, _) in self.chunks.items()}

    async def delete_file(
        self, _tenant_id: str, _vector_store_id: str, _file_id: str, *, keep_version: int | None = None
    ) -> None:
        self.chunks = {place: content for place, content in self.chunks.items() if place[0] == keep_version}

    async def delete_older(
        self, target: Target, *, from_position: int, keep_version: int | None = None, place: Place | None = None
    ) -> None:
        self.cleared.append(place)
        self.chunks = {
            (version, position): content
            for (version, position), content in self.chunks.items()
            if version in (keep_version, *range(target.version + 1, 100))
            or (version == target.version and position < from_position)
        }

    async def delete_newer(self, target: Target) -> None:
        self.chunks = {place: content for place, content in self.chunks.items() if place[0] <= target.version}

    async def delete_store(self, _tenant_id: str, vector_store_id: str, *, keep: Place | None = None) -> None:
        assert keep is None
        self.stores_deleted.append(vector_store_id)


def _versions(world: World) -> set[int]:
    return {version for version, _ in world.chunks}


async def test_a_file_becomes_live_chunks_under_its_title() -> None:
    world, job = World(), FakeJob()
    await world.pipeline().ingest(_REQUEST, job)
    assert world.chunks == {(1, 0): ("Ports\nThe harbour opens at six.", {"year": 2024.0})}
    assert world.attached == replace(_NEW, live_version=1, wanted_version=None)
    assert world.usage_bytes == len(world.text) + 2 * 4
    assert job.finished
    assert job.reported == [(0, 1), (1, 1)]


async def test_progress_is_told_in_pages_while_pictures_are_read() -> None:
    world, job = World(text="Scanned pages."), FakeJob()
    await world.pipeline().ingest(_REQUEST, job)
    assert job.reported == [(1, 2), (0, 1), (1, 1)]


async def test_progress_is_told_in_chunks_and_no_temporary_file_stays() -> None:
    paragraphs = [" ".join([f"Ship {number} lies in the northern dock."] * 12) for number in range(BATCH_CHUNKS + 6)]
    world, job = World(text="\n\n".join(paragraphs)), FakeJob()
    await world.pipeline().ingest(_REQUEST, job)
    total = len(world.chunks)
    assert total > BATCH_CHUNKS
    assert job.reported == [(0, total), (BATCH_CHUNKS, total), (total, total)]
    assert [file.closed for file in world.files] == [True]


@pytest.mark.parametrize(
    ("code", "expected"),
    [("unsupported_file", ErrorCode.FILE_TYPE_NOT_ALLOWED), ("invalid_file", ErrorCode.INVALID_FILE)],
)
async def test_a_file_that_cannot_be_read_says_why(code: Any, expected: ErrorCode) -> None:
    world = World(failure=LoadError(code, "The file is a program."))
    with pytest.raises(PermanentError, match="is a program") as caught:
        await world.pipeline().ingest(_REQUEST, FakeJob())
    assert caught.value.code is expected
    assert [file.closed for file in world.files] == [True]


async def test_a_document_without_words_is_an_invalid_file() -> None:
    with pytest.raises(PermanentError, match="no text") as caught:
        await World(text="   ").pipeline().ingest(_REQUEST, FakeJob())
    assert caught.value.code is ErrorCode.INVALID_FILE


async def test_a_failing_port_is_raised_and_the_next_try_completes() -> None:
    world = World(failure=RetryableError(ErrorCode.SERVER_ERROR, "The process that reads files stopped."))
    with pytest.raises(RetryableError):
        await world.pipeline().ingest(_REQUEST, FakeJob())
    world.failure = None
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert _versions(world) == {1}


async def test_a_new_version_takes_the_old_ones_place() -> None:
    world = World(attached=replace(_NEW, live_version=1, wanted_version=2))
    world.chunks = {(1, 0): ("old", {}), (2, 99): ("left by an attempt that died", {})}
    await world.pipeline().ingest(_REQUEST.model_copy(update={"version": 2}), FakeJob())
    assert set(world.chunks) == {(2, 0)}


async def test_until_it_is_live_the_old_version_stays() -> None:
    world = World(attached=replace(_NEW, live_version=1, wanted_version=2))
    world.chunks = {(1, 0): ("old", {})}
    seen: list[set[int]] = []
    world.during = lambda: seen.append(_versions(world))
    await world.pipeline().ingest(_REQUEST.model_copy(update={"version": 2}), FakeJob())
    assert seen == [{1}]


@pytest.mark.parametrize("meanwhile", [None, replace(_NEW, wanted_version=None)])
async def test_detached_or_cancelled_while_it_ran_leaves_nothing(meanwhile: Attachment | None) -> None:
    world, job = World(), FakeJob()
    world.during = lambda: setattr(world, "attached", meanwhile)
    await world.pipeline().ingest(_REQUEST, job)
    assert world.chunks == {}
    assert world.usage_bytes == 0


async def test_overtaken_by_a_newer_version_it_touches_nothing_of_that() -> None:
    world = World(attached=replace(_NEW, wanted_version=2))
    world.chunks = {(2, 0): ("of the newer version", {})}
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert _versions(world) == {2}
    assert world.files == []


async def test_overtaken_while_it_runs_it_leaves_the_newer_version_alone() -> None:
    world = World()

    def overtaken() -> None:
        world.attached = replace(_NEW, live_version=2, wanted_version=None)
        world.chunks[2, 0] = ("of the newer version", {})

    world.during = overtaken
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert _versions(world) == {2}


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        (None, set()),
        (replace(_NEW, live_version=2, wanted_version=None), set()),
        (replace(_NEW, wanted_version=2), set()),
        (replace(_NEW, live_version=1, wanted_version=None), {1}),
        (_NEW, {1}),  # another worker makes the same: these are its chunks as well
    ],
)
async def test_a_writer_that_lost_its_job_leaves_nothing_of_its_own(
    meanwhile: Attachment | None, left: set[int]
) -> None:
    world, job = World(), LostJob()

    def lost() -> None:
        world.attached = meanwhile
        job.lost = True

    world.during = lost
    with pytest.raises(JobGoneError):
        await world.pipeline().ingest(_REQUEST, job)
    assert _versions(world) == left


async def test_a_late_writer_leaves_the_attributes_of_the_one_that_was_faster() -> None:
    world, job = World(), LostJob()

    def lost() -> None:
        world.attached = replace(_NEW, live_version=1, wanted_version=None, attributes={"year": 2025.0})
        job.lost = True

    world.during = lost
    with pytest.raises(JobGoneError):
        await world.pipeline().ingest(_REQUEST, job)
    assert [attributes for _, attributes in world.chunks.values()] == [{"year": 2025.0}]


async def test_a_file_deleted_before_its_bytes_were_read_is_no_failure() -> None:
    world = World(blobs=set())
    looked_up = 0

    async def attachment(_tenant_id: str, _vector_store_id: str, file_id: str) -> Attachment | None:
        nonlocal looked_up
        assert file_id == _REQUEST.file_id
        looked_up += 1
        return _NEW if looked_up == 1 else None

    world.attachment = attachment  # type: ignore[method-assign]  # the record goes between two looks at it
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert world.chunks == {}


async def test_attributes_changed_while_it_ran_are_those_that_go_live() -> None:
    world = World()
    world.during = lambda: setattr(world, "attached", replace(_NEW, attributes={"year": 2025.0}))
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert [attributes for _, attributes in world.chunks.values()] == [{"year": 2025.0}]
    assert world.attached is not None
    assert world.attached.live_version == 1


async def test_a_live_version_only_has_its_attributes_brought_up_to_date() -> None:
    world, job = World(attached=replace(_NEW, live_version=1, wanted_version=None)), FakeJob()
    world.chunks = {(1, 0): ("text", {"year": 1999.0})}
    await world.pipeline().ingest(_REQUEST, job)
    assert world.chunks == {(1, 0): ("text", {"year": 2024.0})}
    assert world.files == []
    assert job.finished


@pytest.mark.parametrize(
    ("attached", "left"),
    [
        (None, set()),
        (replace(_NEW, live_version=2, wanted_version=None), {2}),
        (_NEW, {1}),  # attached again: its own job clears what is not newer
    ],
)
async def test_a_purge_spares_a_file_that_was_attached_again(attached: Attachment | None, left: set[int]) -> None:
    world = World(attached=attached, chunks={(1, 0): ("one", {}), (2, 0): ("two", {})})
    await world.pipeline().purge_file(PurgeFile(vector_store_id="vs_1", file_id="file-1"), FakeJob())
    assert _versions(world) == left


def test_chunking_strategies_are_read_as_the_api_writes_them() -> None:
    assert strategy_of({"type": "auto"}) == AUTO
    windows = strategy_of(_WINDOWS)
    assert (windows.max_tokens, windows.overlap_tokens, windows.words) == (100, 20, None)


@pytest.mark.parametrize("untouched", [True, False])
async def test_only_where_nothing_can_be_stored_nothing_is_cleared_first(untouched: bool) -> None:
    world = World(attached=replace(_NEW, untouched=untouched))
    world.chunks = {(1, 99): ("left by an attempt that died", {})}
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert ((1, 99) in world.chunks) is untouched


_TWIN = Twin("file-2", 3, 77)
_ORIGINAL = replace(_NEW, live_version=3, wanted_version=None)


async def test_chunks_of_the_same_content_are_taken_over_instead_of_made() -> None:
    world = World(replace(_NEW, twin=_TWIN), twins={"file-2": _ORIGINAL}, copyable={"file-2"})
    world.chunks = {(1, 2): ("left by an attempt that died", {})}
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert world.chunks == {(1, n): (f"copied {n}", {"year": 2024.0}) for n in range(2)}
    assert (world.usage_bytes, world.files) == (77, [])


@pytest.mark.parametrize("way", ["never stored", "damaged", "detached meanwhile", "another version meanwhile"])
async def test_what_cannot_be_taken_over_is_made(way: str) -> None:
    world = World(replace(_NEW, twin=_TWIN), twins={"file-2": _ORIGINAL}, damaged=way == "damaged")
    if "meanwhile" in way:
        world.copyable = {"file-2"}
        later = {"file-2": replace(_ORIGINAL, live_version=4)} if "version" in way else {}
        world.during = lambda: setattr(world, "twins", later)
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert world.chunks == {(1, 0): ("Ports\nThe harbour opens at six.", {"year": 2024.0})}


async def test_what_was_stored_where_the_vector_store_no_longer_is_leaves_that_place() -> None:
    world = World()
    world.during = lambda: setattr(world, "attached", replace(_NEW, place=_THERE))
    with pytest.raises(PlaceChangedError):
        await world.pipeline().ingest(_REQUEST, FakeJob())
    assert (world.chunks, world.cleared[-1]) == ({}, _HERE)
    await world.pipeline().ingest(_REQUEST, FakeJob())
    assert world.attached == replace(_NEW, place=_THERE, live_version=1, wanted_version=None)
