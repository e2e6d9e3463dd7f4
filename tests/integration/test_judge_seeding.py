"""What the official SDK's own tests find here is written straight into the records, so it must follow their schema."""

from pathlib import Path

from sqlalchemy import Table, func, select

from libs.common.keyring import Keyring
from libs.common.records import tables
from libs.common.records.database import Database
from tools.judge.seeding import TENANT, Seeder


def test_the_judged_objects_can_be_put_back_again_and_again(
    database: Database, empty_database_url: str, broker_url: str, tmp_path: Path, keyring: Keyring
) -> None:
    environment = {
        "DATABASE_URL": empty_database_url,
        "BLOBS_URL": (tmp_path / "blobs").as_uri(),
        "BROKER_URL": broker_url,
    }
    (tmp_path / "blobs").mkdir()
    seeder = Seeder(environment, keyring)
    try:
        seeder.create_key()
        counts = []
        for _ in range(2):
            seeder.seed()
            counts.append([_count(database, table) for table in (tables.files, tables.vector_store_files)])
    finally:
        seeder.close()
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def _count(database: Database, table: Table) -> int:
    rows = select(func.count()).select_from(table).where(table.c.tenant_id == TENANT)
    with database.engine.connect() as connection:
        return int(connection.execute(rows).scalar_one())
