"""A keyring fits the database that it was the first to seal, and whatever a rotation makes of it; another one never."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from libs.common import keys
from libs.common.health import NotReadyError
from libs.common.keyring import Keyring, KeyringError
from libs.common.records import canaries
from libs.common.records.database import Database
from libs.common.records.tables import canaries as table
from libs.common.starting import KeyringFit


def _check(database: Database, keyring: Keyring) -> None:
    database.write_now(lambda connection: canaries.check(connection, keyring))


def _another() -> Keyring:
    return Keyring.parse(Keyring.generate())


def _limited(keyring: Keyring, *purposes: str) -> Keyring:
    return Keyring.parse(keyring.limited_to(purposes))


def test_the_first_keyring_fits_and_another_does_not(database: Database, keyring: Keyring) -> None:
    _check(database, keyring)
    _check(database, keyring)
    with pytest.raises(KeyringError, match="not the one that this database was sealed with"):
        _check(database, _another())
    _check(database, keyring)


def test_a_part_of_the_keyring_fits_as_far_as_it_goes(database: Database, keyring: Keyring) -> None:
    _check(database, _limited(keyring, "files", "replies"))
    _check(database, _limited(keyring, "replies", "chunks"))
    _check(database, keyring)
    with pytest.raises(KeyringError, match=r"open: files\)"):
        _check(database, _limited(_another(), "files"))


def test_a_stranger_leaves_nothing_behind(database: Database, keyring: Keyring) -> None:
    _check(database, _limited(keyring, "files"))
    with pytest.raises(KeyringError):
        _check(database, _another())
    _check(database, keyring)


def test_a_key_of_the_same_name_and_other_bytes_does_not_fit(database: Database, keyring: Keyring) -> None:
    _check(database, keyring)
    text = Keyring.generate()
    forged = text.replace(Keyring.parse(text).active, keyring.active)
    with pytest.raises(KeyringError):
        _check(database, Keyring.parse(forged))


def test_any_live_key_will_do_through_a_rotation(database: Database, keyring: Keyring) -> None:
    _check(database, keyring)
    both = Keyring.parse(keyring.with_new_key())
    _check(database, both)
    new_id = next(key_id for key_id in both.key_ids if key_id != keyring.active)
    new_active = Keyring.parse(both.with_active(new_id))
    _check(database, new_active)
    _check(database, keyring)
    _check(database, Keyring.parse(new_active.without_key(keyring.active)))
    with pytest.raises(KeyringError):
        _check(database, _another())


def test_every_purpose_has_a_canary_and_the_text_is_sealed(database: Database, keyring: Keyring) -> None:
    _check(database, keyring)
    rows = database.read_now(lambda connection: connection.execute(select(table)).all())
    assert {row.purpose for row in rows} == set(keys.PURPOSES)
    assert all(b"docent" not in row.sealed for row in rows)


def test_of_two_first_keyrings_at_once_one_wins(database: Database) -> None:
    barrier = threading.Barrier(4, timeout=10)

    def first(candidate: Keyring) -> bool:
        barrier.wait()
        try:
            _check(database, candidate)
        except KeyringError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(first, [_another() for _ in range(4)])) == 1


async def test_readiness_says_what_to_do_and_shows_no_key(database: Database, keyring: Keyring) -> None:
    _check(database, keyring)
    wrong = _another()
    fit = KeyringFit(database, wrong)
    with pytest.raises(NotReadyError, match="Give this service the installation's own keyring") as told:
        await fit.probe()
    assert "\n" not in str(told.value)
    wrong.adopt(keyring)  # as after its file was mended
    await fit.probe()
    await fit.wait()


async def test_a_new_active_key_is_noticed_while_running(database: Database) -> None:
    keyring = _another()
    fit = KeyringFit(database, keyring)
    await fit.probe()
    both = Keyring.parse(keyring.with_new_key())
    new_id = next(key_id for key_id in both.key_ids if key_id != keyring.active)
    old_id = keyring.active
    keyring.adopt(Keyring.parse(both.with_active(new_id)))
    await fit.probe()
    keyring.adopt(Keyring.parse(Keyring.parse(both.with_active(new_id)).without_key(old_id)))
    _check(database, keyring)


async def test_without_a_schema_nobody_is_ready(empty_database_url: str, keyring: Keyring) -> None:
    database = Database(empty_database_url)
    with pytest.raises(NotReadyError, match=r"libs\.common\.records\.migrate"):
        await KeyringFit(database, keyring).probe()
    database.close()
