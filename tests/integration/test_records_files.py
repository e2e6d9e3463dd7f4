"""Records of files and vector stores, on SQLite and PostgreSQL alike."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, delete, insert, update

from libs.common.contracts.ingest import Place
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.records import (
    file_batches,
    file_versions,
    files,
    reindexing,
    replacing,
    vector_store_files,
    vector_stores,
)
from libs.common.records.database import Database, epoch_now
from libs.common.records.files import File, NewFile
from libs.common.records.migrate import migrate
from libs.common.records.paging import PageQuery
from libs.common.records.reindexing import Built, Progress
from libs.common.records.tables import files as files_table
from libs.common.records.tables import tenants
from libs.common.records.tables import vector_stores as stores_table
from libs.common.records.vector_store_files import AttachedFile, FileKey
from libs.common.records.vector_stores import LiveFile
from libs.local.postgres import postgres_available, running_postgres

T = TypeVar("T")
_AUTO = {"type": "auto"}


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := postgres_available():
        pytest.skip(reason)
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/docent.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Database(url)
    migrate(opened.engine)

    def start_empty(connection: Connection) -> None:
        for table in (stores_table, files_table, tenants):
            connection.execute(delete(table))
        for tenant in ("a", "b"):
            connection.execute(insert(tenants).values(id=tenant, name=tenant, created_at=epoch_now()))

    opened.write_now(start_empty)
    yield opened
    opened.close()


def _file(connection: Connection, name: str, tenant: str = "a", **more: Any) -> File:
    values: dict[str, Any] = {"purpose": "assistants", "bytes": 3, "sha256": "0" * 64, "blob_id": f"blob_{name}"}
    return files.insert(connection, tenant, NewFile(id=f"file-{name}", filename=f"{name}.txt", **(values | more)))


def _store(connection: Connection, name: str = "one", tenant: str = "a", days: int | None = None) -> str:
    store_id = f"vs_{name}"
    vector_stores.create(
        connection, tenant, store_id=store_id, name=name, metadata={}, embedding_model="m", expires_after_days=days
    )
    return store_id


def _attach(connection: Connection, store_id: str, file: File, **more: Any) -> tuple[AttachedFile, bool]:
    options: dict[str, Any] = {"attributes": {}, "chunking": _AUTO}
    return vector_store_files.attach(connection, store_id, file, **(options | more))


def _key(file: str = "file-x", store: str = "vs_one", tenant: str = "a") -> FileKey:
    return FileKey(tenant, store, file)


def _go_live(connection: Connection, version: int = 1, **more: Any) -> bool:
    options: dict[str, Any] = {"usage_bytes": 10, "attributes": {}, "place": Place("m")}
    return file_versions.go_live(connection, _key(), version=version, **(options | more))


def _revision(database: Database, store_id: str = "vs_one") -> int:
    return database.read_now(lambda connection: vector_stores.get(connection, "a", store_id)).revision


def _refused(database: Database, query: Callable[[Connection], object]) -> ErrorCode:
    with pytest.raises(PermanentError) as caught:
        database.write_now(query)
    return caught.value.code


def test_pages_of_files_go_both_ways_and_end(database: Database) -> None:
    for number in range(5):
        database.write_now(partial(_file, name=str(number)))

    def walk(order: Any, after: str | None = None) -> list[str]:
        query = PageQuery(after, 2, order)
        page = database.read_now(lambda connection: files.list_page(connection, "a", query))
        found = [file.id for file in page.items]
        assert page.has_more == (len(found) == 2 and found[-1] not in ("file-4" if order == "asc" else "file-0"))
        return found + walk(order, found[-1]) if page.has_more else found

    assert walk("asc") == [f"file-{number}" for number in range(5)]
    assert walk("desc") == [f"file-{number}" for number in reversed(range(5))]


def test_files_of_one_moment_are_paged_without_gap_or_repeat(database: Database) -> None:
    def create(connection: Connection) -> None:
        for name in "cadbe":
            _file(connection, name)
        connection.execute(update(files_table).values(created_at=1_700_000_000.25))

    database.write_now(create)
    seen: list[str] = []
    for _ in range(5):
        query = PageQuery(seen[-1] if seen else None, 1, "asc")
        seen += [file.id for file in database.read_now(partial(files.list_page, tenant_id="a", query=query)).items]
    assert seen == [f"file-{name}" for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        (PageQuery(before="file-4", limit=2, order="asc"), "23", True),
        (PageQuery(before="file-2", limit=2, order="asc"), "01", False),
        (PageQuery(before="file-0", limit=2, order="asc"), "", False),
        (PageQuery(before="file-1", limit=2), "32", True),
        (PageQuery(before="file-1", after="file-4", limit=1), "3", True),
        (PageQuery(before="file-1", after="file-4", limit=2), "32", False),
        (PageQuery(before="file-4", after="file-1", limit=2), "", False),
    ],
)
def test_pages_end_ahead_of_a_cursor(database: Database, query: PageQuery, names: str, has_more: bool) -> None:
    for number in range(5):
        database.write_now(partial(_file, name=str(number)))
    page = database.read_now(partial(files.list_page, tenant_id="a", query=query))
    assert [file.id for file in page.items] == [f"file-{name}" for name in names]
    assert page.has_more == has_more


def test_an_unknown_and_a_foreign_cursor_are_refused_alike(database: Database) -> None:
    database.write_now(lambda connection: _file(connection, "theirs", "b"))
    for cursor in ("file-theirs", "file-none"):
        with pytest.raises(PermanentError) as caught:
            database.read_now(partial(files.list_page, tenant_id="a", query=PageQuery(cursor)))
        assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_CURSOR, "after")
        with pytest.raises(PermanentError) as caught:
            database.read_now(partial(files.list_page, tenant_id="a", query=PageQuery(before=cursor)))
        assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_CURSOR, "before")


def test_a_foreign_an_expired_and_a_missing_file_are_one_and_the_same(database: Database) -> None:
    database.write_now(lambda connection: _file(connection, "theirs", "b"))
    database.write_now(lambda connection: _file(connection, "old", expires_after_seconds=-1))
    for file_id in ("file-theirs", "file-old", "file-none"):
        assert _refused(database, partial(files.get, tenant_id="a", file_id=file_id)) is ErrorCode.NOT_FOUND
    assert database.read_now(lambda connection: files.list_page(connection, "a", PageQuery())).items == []


def test_files_are_listed_by_purpose(database: Database) -> None:
    database.write_now(lambda connection: _file(connection, "x"))
    database.write_now(lambda connection: _file(connection, "y", purpose="batch"))
    page = database.read_now(lambda connection: files.list_page(connection, "a", PageQuery(), purpose="batch"))
    assert [file.id for file in page.items] == ["file-y"]


def test_attaching_twice_makes_one_version_and_with_other_options_a_second(database: Database) -> None:
    def attach(connection: Connection) -> list[tuple[int, bool]]:
        file, store = _file(connection, "x"), _store(connection)
        tried = [
            _attach(connection, store, file),
            _attach(connection, store, file),
            _attach(connection, store, file, attributes={"year": 2024.0}),
        ]
        return [(attached.latest_version, begun) for attached, begun in tried]

    assert database.write_now(attach) == [(1, True), (1, False), (2, True)]


def test_a_version_goes_live_once_and_changes_the_revision(database: Database) -> None:
    database.write_now(lambda connection: _attach(connection, _store(connection), _file(connection, "x")))
    before = _revision(database)
    assert database.read_now(lambda connection: vector_stores.live_files(connection, "a", ("vs_one",))) == {}
    assert database.write_now(_go_live)
    assert not database.write_now(_go_live)
    assert _revision(database) > before
    live = database.read_now(lambda connection: vector_stores.live_files(connection, "a", ("vs_one",)))
    assert live == {("vs_one", "file-x"): LiveFile(1, "x.txt")}
    assert database.read_now(lambda connection: vector_stores.live_files(connection, "b", ("vs_one",))) == {}


def test_an_overtaken_version_does_not_go_live(database: Database) -> None:
    def attach(connection: Connection) -> None:
        file, store = _file(connection, "x"), _store(connection)
        _attach(connection, store, file)
        _attach(connection, store, file, attributes={"year": 2024.0})

    database.write_now(attach)
    assert not database.write_now(_go_live)
    assert database.write_now(lambda connection: _go_live(connection, 2, attributes={"year": 2024.0}))


def test_attributes_changed_since_the_chunks_were_stored_are_noticed(database: Database) -> None:
    database.write_now(lambda connection: _attach(connection, _store(connection), _file(connection, "x")))
    database.write_now(lambda connection: vector_store_files.update_attributes(connection, _key(), {"year": 2025.0}))
    with pytest.raises(RetryableError):
        database.write_now(_go_live)
    with pytest.raises(RetryableError):
        database.write_now(lambda connection: file_versions.confirm_attributes(connection, _key(), {}))
    assert database.read_now(lambda c: vector_stores.live_files(c, "a", ("vs_one",))) == {}


def test_a_deleted_file_answers_in_no_store_and_leaves_its_blob_to_be_purged(database: Database) -> None:
    def create(connection: Connection) -> None:
        file = _file(connection, "x")
        for name in ("one", "two"):
            _attach(connection, _store(connection, name), file)
        assert _go_live(connection)

    database.write_now(create)
    before = _revision(database), _revision(database, "vs_two")
    assert _refused(database, lambda connection: files.delete(connection, "b", "file-x")) is ErrorCode.NOT_FOUND
    deleted = database.write_now(lambda connection: files.delete(connection, "a", "file-x"))
    assert (deleted.blob_id, sorted(deleted.vector_store_ids)) == ("blob_x", ["vs_one", "vs_two"])
    assert database.read_now(lambda c: vector_stores.live_files(c, "a", ("vs_one", "vs_two"))) == {}
    assert (_revision(database), _revision(database, "vs_two")) == (before[0] + 1, before[1] + 1)


def test_detaching_and_deleting_a_store_leave_the_file(database: Database) -> None:
    def create(connection: Connection) -> None:
        file = _file(connection, "x")
        for name in ("one", "two"):
            _attach(connection, _store(connection, name), file)

    database.write_now(create)
    database.write_now(lambda connection: vector_store_files.detach(connection, _key()))
    assert _refused(database, lambda c: vector_store_files.detach(c, _key())) is ErrorCode.NOT_FOUND
    assert _refused(database, lambda c: vector_stores.delete(c, "b", "vs_two")) is ErrorCode.NOT_FOUND
    database.write_now(lambda connection: vector_stores.delete(connection, "a", "vs_two"))
    assert database.read_now(lambda c: vector_store_files.find(c, _key(store="vs_two"))) is None
    assert database.read_now(lambda connection: files.get(connection, "a", "file-x")).id == "file-x"


def test_counts_of_several_stores_come_together(database: Database) -> None:
    def create(connection: Connection) -> None:
        for name in ("one", "two", "none"):
            _store(connection, name)
        for name in ("x", "y"):
            _attach(connection, "vs_one", _file(connection, name))
        _attach(connection, "vs_two", _file(connection, "z"))
        assert _go_live(connection, usage_bytes=42)

    database.write_now(create)
    counts = database.read_now(lambda c: vector_stores.counts(c, "a", ["vs_one", "vs_two", "vs_none"]))
    shown = {store: (each.in_progress, each.completed, each.total, each.usage_bytes) for store, each in counts.items()}
    assert shown == {"vs_one": (1, 1, 2, 42), "vs_two": (1, 0, 1, 0), "vs_none": (0, 0, 0, 0)}


def test_a_cancelled_version_never_goes_live_and_a_failed_one_resumes(database: Database) -> None:
    database.write_now(lambda connection: _attach(connection, _store(connection), _file(connection, "x")))
    database.write_now(lambda connection: vector_store_files.set_job(connection, _key(), "job_1"))
    assert database.write_now(lambda connection: file_versions.cancel(connection, "b", "job_1")) == []
    assert database.write_now(lambda connection: file_versions.cancel(connection, "a", "job_1")) == [_key()]
    assert not database.write_now(_go_live)
    database.write_now(lambda connection: file_versions.resume(connection, "a", "job_1"))
    assert database.read_now(lambda c: vector_store_files.get(c, _key())).status == "cancelled"


def test_stores_are_required_all_or_none(database: Database) -> None:
    def create(connection: Connection) -> None:
        _store(connection)
        _store(connection, "theirs", "b")
        _store(connection, "old", days=1)
        connection.execute(update(stores_table).where(stores_table.c.id == "vs_old").values(expires_at=1.0))

    database.write_now(create)
    found = database.read_now(lambda connection: vector_stores.require_stores(connection, "a", ["vs_one", "vs_one"]))
    assert [store.id for store in found] == ["vs_one"]
    for store_id in ("vs_theirs", "vs_old", "vs_none"):
        wanted = ["vs_one", store_id]
        assert (
            _refused(database, partial(vector_stores.require_stores, tenant_id="a", store_ids=wanted))
            is ErrorCode.NOT_FOUND
        )
    assert database.read_now(lambda connection: vector_stores.get(connection, "a", "vs_old")).expired


def test_use_puts_off_expiry_but_revives_nothing(database: Database) -> None:
    def create(connection: Connection) -> None:
        for name in ("one", "old"):
            _store(connection, name, days=2)
        day_ago = {
            "last_active_at": stores_table.c.last_active_at - 86_400,
            "expires_at": stores_table.c.expires_at - 86_400,
        }
        connection.execute(update(stores_table).values(**day_ago))
        connection.execute(update(stores_table).where(stores_table.c.id == "vs_old").values(expires_at=1.0))
        vector_stores.touch(connection, "a", ["vs_one", "vs_old"])

    database.write_now(create)
    used = database.read_now(lambda connection: vector_stores.get(connection, "a", "vs_one"))
    assert used.expires_at == pytest.approx(used.last_active_at + 2 * 86_400, abs=0.01)
    assert database.read_now(lambda connection: vector_stores.get(connection, "a", "vs_old")).expired


def test_a_store_changes_only_what_is_given(database: Database) -> None:
    database.write_now(lambda connection: _store(connection, days=3))
    named = database.write_now(lambda c: vector_stores.update(c, "a", "vs_one", name="new", metadata={"k": "v"}))
    assert (named.name, named.metadata, named.expires_after) == (
        "new",
        {"k": "v"},
        {"anchor": "last_active_at", "days": 3},
    )
    kept = database.write_now(lambda c: vector_stores.update(c, "a", "vs_one", expires_after_days=0))
    assert (kept.name, kept.expires_after, kept.expires_at) == ("new", None, None)
    assert _refused(database, lambda c: vector_stores.update(c, "b", "vs_one", name="x")) is ErrorCode.NOT_FOUND


def test_a_file_batch_counts_and_lists_its_files(database: Database) -> None:
    def create(connection: Connection) -> None:
        _store(connection)
        file_batches.create(connection, "a", "vs_one", "vsfb_1")
        for name in ("x", "y"):
            _attach(connection, "vs_one", _file(connection, name), file_batch_id="vsfb_1")
            vector_store_files.set_job(connection, _key(f"file-{name}"), f"job_{name}")
        _attach(connection, "vs_one", _file(connection, "z"))
        assert _go_live(connection)

    database.write_now(create)
    counts = database.read_now(lambda connection: file_batches.counts(connection, "a", "vsfb_1"))
    assert (counts.in_progress, counts.completed, counts.total) == (1, 1, 2)
    page = database.read_now(
        lambda c: vector_store_files.list_page(
            c, "a", "vs_one", PageQuery(), status="in_progress", file_batch_id="vsfb_1"
        )
    )
    assert [attached.file_id for attached in page.items] == ["file-y"]
    batch = database.read_now(lambda connection: file_batches.get(connection, "a", "vs_one", "vsfb_1"))
    assert database.write_now(lambda connection: file_batches.cancel(connection, batch)) == ["job_y"]
    assert _refused(database, lambda c: file_batches.get(c, "b", "vs_one", "vsfb_1")) is ErrorCode.NOT_FOUND


def test_a_store_moves_only_when_every_live_file_is_built_as_it_answers(database: Database) -> None:
    goal = Place("other")

    def create(connection: Connection) -> None:
        _attach(connection, _store(connection), _file(connection, "x"))
        _attach(connection, "vs_one", _file(connection, "y"))
        assert _go_live(connection)
        reindexing.begin(connection, "a", "vs_one", "job_1")

    def mark(connection: Connection, year: float | None = None) -> bool:
        attributes: dict[str, str | float | bool] = {} if year is None else {"year": year}
        return reindexing.mark(connection, _key(), Built(1, attributes, chunks=3, usage_bytes=99))

    database.write_now(create)
    assert database.read_now(lambda c: reindexing.unbuilt(c, "a", "vs_one", limit=9)) == ["file-x"]
    assert not database.write_now(lambda c: reindexing.switch(c, "a", "vs_one", goal))
    assert database.write_now(mark)
    assert database.read_now(lambda c: reindexing.progress(c, "a", "vs_one")) == Progress(total=1, done=1, chunks=3)
    database.write_now(lambda c: vector_store_files.update_attributes(c, _key(), {"year": 2026.0}))
    assert not database.write_now(lambda c: reindexing.switch(c, "a", "vs_one", goal))
    assert not database.write_now(mark)
    assert database.write_now(partial(mark, year=2026.0))
    assert database.write_now(lambda c: reindexing.switch(c, "a", "vs_one", goal))
    moved = database.read_now(lambda c: vector_stores.get(c, "a", "vs_one"))
    assert (moved.place, moved.reindex_job_id) == (goal, "job_1")
    attached = database.read_now(lambda c: vector_store_files.get(c, _key()))
    assert (attached.usage_bytes, attached.reindexed_version) == (99, 0)
    with pytest.raises(file_versions.PlaceChangedError):
        database.write_now(lambda c: file_versions.go_live(
            c, _key("file-y"), version=1, usage_bytes=1, attributes={}, place=Place("m")
        ))  # fmt: skip
    assert database.write_now(lambda c: reindexing.give_up(c, "b", "job_1")) == []
    assert database.write_now(lambda c: reindexing.give_up(c, "a", "job_1")) == ["vs_one"]


def test_a_file_takes_the_places_of_those_it_replaces_and_of_whom_they_were_to_replace(database: Database) -> None:
    def create(connection: Connection) -> None:
        store = _store(connection)
        for name in "xyz":
            _attach(connection, store, _file(connection, name))
        replacing.mark(connection, _key("file-y"), "file-z")
        replacing.mark(connection, _key("file-x"), "file-y")
        replacing.mark(connection, _key("file-z"), "file-x")  # in a circle, none is lost
        assert _go_live(connection)

    database.write_now(create)
    before = _revision(database)
    gone = database.write_now(lambda connection: replacing.take_places(connection, _key()))
    assert {key.file_id for key in gone} == {"file-y", "file-z"}
    assert _revision(database) > before
    assert database.read_now(lambda c: vector_store_files.find(c, _key("file-y"))) is None
    assert database.write_now(lambda connection: replacing.take_places(connection, _key())) == []
    for tenant, replaced in (("a", "file-y"), ("b", "file-x")):
        key = _key("file-other", tenant=tenant)
        assert _refused(database, partial(replacing.mark, key=key, replaced_id=replaced)) is ErrorCode.NOT_FOUND
