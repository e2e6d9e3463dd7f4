"""The directory: a subdirectory per collection, and the aliases.

A collection exists when its `collection.json` does. That file is written last and removed first, so a crash while a
collection is created or deleted leaves a directory without it, which the next start sweeps away.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Final

import orjson

from libs.local.vector_server import writes
from libs.local.vector_server.collection import Collection
from libs.local.vector_server.errors import QdrantError, collection_not_found, not_found, wrong_input

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}")
_CONFIG: Final = "collection.json"


class Catalog:
    """Collections and aliases kept under `root`, which one process at a time may have open.

    Raises:
        BlockingIOError: another process has the directory.
        QdrantError: a collection cannot be opened.
    """

    def __init__(self, root: Path) -> None:
        self._collections_path = root / "collections"
        self._aliases_path = root / "aliases.json"
        self._changing = Lock()
        self._collections_path.mkdir(parents=True, exist_ok=True)
        self._owner = (root / "lock").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Both maps are replaced, never changed in place: readers need no lock.
        self._aliases: dict[str, str] = _read_aliases(self._aliases_path)
        self._collections: dict[str, Collection] = dict(map(_open, self._existing()))

    def collection(self, name: str) -> Collection:
        """The collection of that name or alias; QdrantError 404 if there is none."""
        found = self.find(name)
        if found is None:
            raise collection_not_found(name)
        return found

    def find(self, name: str) -> Collection | None:
        """The collection of that name or alias."""
        return self._collections.get(self._aliases.get(name, name))

    def names(self) -> list[str]:
        """Every collection's name, in order."""
        return sorted(self._collections)

    def aliases(self, collection: str | None = None) -> Mapping[str, str]:
        """From alias to collection, of one collection or of all."""
        if collection is not None and collection not in self._collections:
            raise collection_not_found(collection)
        return {alias: target for alias, target in self._aliases.items() if collection in (None, target)}

    def create(self, name: str, spec: writes.CollectionSpec) -> None:
        """Add an empty collection; QdrantError 400 for an unusable name, 409 for one in use."""
        _check_name(name)
        with self._changing:
            if name in self._collections:
                raise QdrantError(409, f"Wrong input: Collection `{name}` already exists!")
            if name in self._aliases:
                raise wrong_input(f"an alias named `{name}` already exists")
            directory = self._collections_path / name
            # A creation that failed half-way may have left files the engine would refuse.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            collection = Collection.create(_shard_path(directory), spec)
            _write(directory / _CONFIG, spec.model_dump(exclude_none=True))
            _sync(self._collections_path)
            self._collections = {**self._collections, name: collection}

    def delete(self, name: str) -> bool:
        """Remove a collection and its aliases; False if there was none."""
        with self._changing:
            collection = self._collections.get(name)
            if collection is None:
                return False
            self._set_aliases({alias: target for alias, target in self._aliases.items() if target != name})
            directory = self._collections_path / name
            (directory / _CONFIG).unlink()
            _sync(directory)
            self._collections = {key: value for key, value in self._collections.items() if key != name}
            collection.close()
            shutil.rmtree(directory)
            return True

    def update_aliases(self, actions: list[writes.AliasAction]) -> None:
        """Apply every action in order, or none: readers and the disk only ever see the end result."""
        with self._changing:
            aliases = dict(self._aliases)
            for action in actions:
                self._apply(action, aliases)
            self._set_aliases(aliases)

    def flush(self) -> None:
        """Flush every collection that changed."""
        for collection in self._collections.values():
            collection.flush()

    def close(self) -> None:
        """Flush and release everything."""
        with self._changing:
            self.flush()
            for collection in self._collections.values():
                collection.close()
            self._owner.close()

    def _apply(self, action: writes.AliasAction, aliases: dict[str, str]) -> None:
        if action.delete_alias is not None:
            aliases.pop(action.delete_alias.alias_name, None)
        elif action.rename_alias is not None:
            old = action.rename_alias.old_alias_name
            if old not in aliases:
                raise not_found(f"Alias {old} does not exist!")
            self._add_alias(aliases, action.rename_alias.new_alias_name, aliases.pop(old))
        elif action.create_alias is not None:
            self._add_alias(aliases, action.create_alias.alias_name, action.create_alias.collection_name)

    def _add_alias(self, aliases: dict[str, str], alias: str, collection: str) -> None:
        _check_name(alias)
        if collection not in self._collections:
            raise collection_not_found(collection)
        if alias in self._collections:
            raise QdrantError(409, f"Wrong input: Collection `{alias}` already exists!")
        aliases[alias] = collection

    def _set_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self._aliases:
            _write(self._aliases_path, aliases)
            self._aliases = aliases

    def _existing(self) -> list[Path]:
        directories = sorted(path for path in self._collections_path.iterdir() if path.is_dir())
        for directory in directories:
            if not (directory / _CONFIG).exists():
                shutil.rmtree(directory)
        return [directory for directory in directories if directory.exists()]


def _open(directory: Path) -> tuple[str, Collection]:
    spec = writes.CollectionSpec.model_validate(orjson.loads((directory / _CONFIG).read_bytes()))
    return directory.name, Collection.open(_shard_path(directory), spec)


def _shard_path(directory: Path) -> Path:
    path = directory / "shard"
    path.mkdir(exist_ok=True)
    return path


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise wrong_input(f"a name is up to 255 letters, digits, '_', '-' and '.', not `{name[:300]}`")


def _read_aliases(path: Path) -> dict[str, str]:
    aliases: dict[str, str] = orjson.loads(path.read_bytes()) if path.exists() else {}
    return aliases


def _write(path: Path, value: object) -> None:
    """Replace the file's content so that after a crash it is the old or the new one, whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(orjson.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Make renames and removals in the directory last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
