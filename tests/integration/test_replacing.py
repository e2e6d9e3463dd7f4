"""New versions of files and files that are there already, with the ingest service, records and vector server."""

from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from libs.common.errors import ErrorCode, PermanentError
from libs.common.records import vector_store_files, vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_store_files import FileKey
from libs.local.ports import free_port
from libs.local.running import Stack, running_stack
from services.gateway import attachments
from tests.faults.upstream import DIMENSIONS, EMBEDDING_MODEL, Upstream
from tests.integration.ingest_platform import STORE, TENANT, Platform, database_of, eventually, platform_of


@pytest.fixture(scope="module")
def model() -> Iterator[Upstream]:
    upstream = Upstream(free_port())
    upstream.start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Upstream) -> Iterator[Stack]:
    environ = {
        "EMBEDDING_BASE_URL": f"http://127.0.0.1:{model.port}/v1",
        "EMBEDDING_MODEL": EMBEDDING_MODEL,
        "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
    }
    # Without a cache, so that every embedding is counted.
    only = ("broker", "vectors", "ingest")
    with running_stack(tmp_path_factory.mktemp("stack"), only=only, environ=environ) as running:
        yield running


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[Database]:
    with database_of(stack) as opened:
        yield opened


@pytest.fixture
async def platform(stack: Stack, database: Database) -> AsyncIterator[Platform]:
    async with platform_of(stack, database) as opened:
        yield opened


async def _live(platform: Platform) -> set[str]:
    live = await platform.database.read(lambda connection: vector_stores.live_files(connection, TENANT, [STORE]))
    return {file_id for _, file_id in live}


async def _attached(platform: Platform, name: str, text: str) -> str:
    file_id = await platform.upload(name, text)
    await platform.attach(file_id)
    await platform.ended(file_id)
    return file_id


async def test_a_new_version_takes_the_old_ones_place_in_one_step(platform: Platform) -> None:
    old = await _attached(platform, "old", "The ferry leaves at six.")
    new = await platform.upload("new", "The ferry leaves at seven.")
    await platform.attach(new, replaces=old)
    answering = []

    async def switched() -> bool:
        answering.append(await _live(platform) & {old, new})
        return answering[-1] == {new}

    await eventually(switched)
    assert {frozenset(found) for found in answering} <= {frozenset({old}), frozenset({new})}

    async def purged() -> bool:
        return await platform.count(old) == 0

    await eventually(purged)
    assert await platform.count(new) == 1


async def test_if_the_new_version_fails_the_old_one_stays(platform: Platform) -> None:
    old = await _attached(platform, "stays", "The pier is closed.")
    new = await platform.upload("blank", "  ")
    await platform.attach(new, replaces=old)
    assert (await platform.ended(new)).status == "failed"
    assert await _live(platform) & {old, new} == {old}
    # Once it is out of the store, it takes nobody's place any more.
    await platform.change(attachments.detach_file, key=FileKey(TENANT, STORE, new))
    assert (await platform.file(old)).replaced_by is None


async def test_a_version_that_is_overtaken_by_the_next_leaves_nothing_of_the_first(platform: Platform) -> None:
    first = await _attached(platform, "v1", "Version one.")
    blank = await platform.upload("v2", " ")
    await platform.attach(blank, replaces=first)
    assert (await platform.ended(blank)).status == "failed"
    third = await platform.upload("v3", "Version three.")
    await platform.attach(third, replaces=blank)
    await platform.ended(third)
    assert await _live(platform) & {first, blank, third} == {third}


async def test_a_file_that_answers_already_takes_the_place_at_once(platform: Platform) -> None:
    one = await _attached(platform, "one", "One of two.")
    two = await _attached(platform, "two", "Two of two.")
    await platform.attach(one, replaces=two)
    assert await _live(platform) & {one, two} == {one}
    with pytest.raises(PermanentError):
        await platform.file(two)


async def test_only_what_is_in_the_store_can_be_replaced(platform: Platform) -> None:
    elsewhere = await platform.upload("elsewhere", "Not in the store.")
    new = await platform.upload("hopeful", "To be in the store.")
    for replaces in (elsewhere, "file-none"):
        with pytest.raises(PermanentError) as caught:
            await platform.attach(new, replaces=replaces)
        assert (caught.value.code, caught.value.param) == (ErrorCode.NOT_FOUND, "replaces")
    found = partial(vector_store_files.find, key=FileKey(TENANT, STORE, new))
    assert await platform.database.read(found) is None  # nothing was attached


async def test_the_same_bytes_again_cost_no_embedding(platform: Platform, model: Upstream) -> None:
    text = "\n\n".join(f"Berth {number} is free. " * 30 for number in range(90))
    first = await platform.upload("original", text, filename="berths.md")
    await platform.attach(first)
    await platform.ended(first)
    made, count = model.embedded, await platform.count(first)
    assert made > count > 64  # more than one request's worth

    again = await platform.upload("copy", text, filename="berths.md")
    await platform.attach(again, attributes={"year": 2026.0}, replaces=first)
    ended = await platform.ended(again)
    assert (ended.status, model.embedded) == ("completed", made)
    chunks = await platform.stored(again)
    assert [chunk.position for chunk in chunks] == list(range(count))
    assert chunks[0].attributes == {"year": 2026.0}
    assert await _live(platform) & {first, again} == {again}

    renamed = await platform.upload("renamed", text, filename="quays.md")  # the name is part of what is embedded
    await platform.attach(renamed)
    assert (await platform.ended(renamed)).status == "completed"
    assert model.embedded > made
