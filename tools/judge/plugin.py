"""A pytest plugin: the suite's own key is replaced by ours, and every test begins with the objects it expects.

The suite's files are left as they are. Loaded by `-p tools.judge.plugin` in a process that runs nothing else.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from libs.common.keyring import Keyring
from tools.judge.seeding import Seeder

_SEEDER = pytest.StashKey[Seeder]()


def pytest_configure(config: pytest.Config) -> None:
    """Connect to the stack's stores."""
    environment = json.loads(os.environ["JUDGE_ENVIRONMENT"])
    config.stash[_SEEDER] = Seeder(environment, Keyring.parse(Path(environment["KEYRING_FILE"]).read_text()))


def pytest_collection_finish(session: pytest.Session) -> None:  # noqa: ARG001 - pytest's
    """The suite's clients read these names when they are made."""
    conftest = sys.modules["tests.conftest"]
    for name in ("api_key", "admin_api_key"):
        setattr(conftest, name, os.environ["JUDGE_API_KEY"])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every object as it was."""
    item.config.stash[_SEEDER].seed()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Disconnect."""
    config.stash[_SEEDER].close()
