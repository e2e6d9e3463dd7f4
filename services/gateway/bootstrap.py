"""The first tenant and its API key.

    python -m services.gateway.bootstrap --key-file .local/api-key

Does nothing when the key in the file is already known to the database; the file is readable by its owner only.
"""

import argparse
import os
from pathlib import Path

from sqlalchemy import Connection, insert, select

from libs.common import keys
from libs.common.configuration import plain_exit
from libs.common.keyring import load_keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import api_keys, tenants
from services.gateway.auth import KEY_FORM, new_api_key, store_api_key
from services.gateway.settings import GatewaySettings

FIRST_TENANT = "tenant_default"


def bootstrap(settings: GatewaySettings, key_file: Path) -> None:
    """Make sure that the database knows the key in `key_file`, creating both as needed."""
    database = Database(settings.database_url)
    try:
        if not (key_file.exists() and database.read_now(lambda connection: _knows(connection, key_file))):
            key_id, key = new_api_key()
            database.write_now(lambda connection: _create(connection, settings, key_id, key))
            _write_private(key_file, key)
    finally:
        database.close()


def _knows(connection: Connection, key_file: Path) -> bool:
    match = KEY_FORM.fullmatch(key_file.read_bytes().strip())
    if match is None:
        return False
    known = select(api_keys.c.id).where(api_keys.c.id == match[1].decode())
    return connection.execute(known).one_or_none() is not None


def _create(connection: Connection, settings: GatewaySettings, key_id: str, key: str) -> None:
    keyring = load_keyring(
        text=settings.keyring.get_secret_value() if settings.keyring else None, file=settings.keyring_file
    )
    if connection.execute(select(tenants.c.id).where(tenants.c.id == FIRST_TENANT)).one_or_none() is None:
        connection.execute(insert(tenants).values(id=FIRST_TENANT, name="Default", created_at=epoch_now()))
    store_api_key(
        connection,
        keyring.mac(keys.API_KEYS_PURPOSE),
        tenant_id=FIRST_TENANT,
        key_id=key_id,
        key=key,
        name="first key",
        requests_per_minute=settings.requests_per_minute,
        parallel_streams=settings.parallel_streams,
    )


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")


def main() -> None:
    """Bootstrap the database of DATABASE_URL."""
    parser = argparse.ArgumentParser(description="Create the first tenant and its API key.")
    parser.add_argument("--key-file", type=Path, required=True)
    options = parser.parse_args()
    with plain_exit("bootstrap"):
        bootstrap(GatewaySettings(), options.key_file)


if __name__ == "__main__":
    main()
