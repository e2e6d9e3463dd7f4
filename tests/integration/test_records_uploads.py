"""The records of uploads in parts, on both databases."""

from sqlalchemy import Connection, insert, select, update

from libs.common.records import files, uploads
from libs.common.records.database import Database, epoch_now
from libs.common.records.files import NewFile
from libs.common.records.tables import tenants, upload_parts
from libs.common.records.tables import uploads as uploads_table
from libs.common.records.uploads import NewUpload, UploadPart

TENANT = "tenant_a"


def _prepare(connection: Connection) -> None:
    connection.execute(insert(tenants).values(id=TENANT, name="t", created_at=epoch_now()))
    uploads.insert(connection, TENANT, NewUpload("upload_1", "a.txt", "assistants", 6))
    for number, blob_id in enumerate(("blob_a", "blob_b"), start=1):
        uploads.add_part(connection, TENANT, UploadPart(f"part_{number}", "upload_1", blob_id, 3, 0.0))


def test_completing_is_found_again_by_the_same_run(database: Database) -> None:
    new = NewFile("file-1", "a.txt", "assistants", 6, "0" * 64, "blob_whole")

    def twice(connection: Connection) -> tuple[list[str], list[str]]:
        _prepare(connection)
        _, first = uploads.complete(connection, TENANT, "upload_1", new)
        _, second = uploads.complete(connection, TENANT, "upload_1", new)
        return sorted(first), second

    assert database.write_now(twice) == (["blob_a", "blob_b"], [])
    shown = database.read_now(lambda connection: uploads.get(connection, TENANT, "upload_1"))
    assert (shown.status, shown.file_id) == (uploads.COMPLETED, "file-1")


def test_an_upload_whose_time_is_over_ends_with_its_parts(database: Database) -> None:
    def end(connection: Connection) -> list[tuple[str, str, list[str]]]:
        _prepare(connection)
        assert uploads.expire(connection, limit=10) == []
        connection.execute(update(uploads_table).values(expires_at=epoch_now() - 1))
        assert uploads.get(connection, TENANT, "upload_1").status == uploads.EXPIRED
        return uploads.expire(connection, limit=10)

    ((tenant_id, upload_id, blob_ids),) = database.write_now(end)
    assert (tenant_id, upload_id, sorted(blob_ids)) == (TENANT, "upload_1", ["blob_a", "blob_b"])
    left = database.read_now(lambda connection: connection.execute(select(upload_parts)).all())
    assert left == []


def test_expired_files_are_found(database: Database) -> None:
    def find(connection: Connection) -> list[tuple[str, str]]:
        connection.execute(insert(tenants).values(id=TENANT, name="t", created_at=epoch_now()))
        for file_id, seconds in (("file-old", -1), ("file-young", 60), ("file-kept", None)):
            new = NewFile(file_id, "a.txt", "assistants", 6, "0" * 64, f"blob_{file_id}", seconds)
            files.insert(connection, TENANT, new)
        return files.expired(connection, limit=10)

    assert database.write_now(find) == [(TENANT, "file-old")]
