"""What versions of the platform sent and stored, which today's must read: a directory for each version.

`v1/messages/<name>.json` is a message in plain JSON with every field set; `v1/stored/<form>.json` bytes as they were
sealed and framed, under the key ring beside them. A file is never changed: what a version wrote, it wrote. A change of
the wire that is worth keeping gets a new directory. `python -m tests.contract.golden` writes what is missing from the
newest; look it over before you keep it.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Final

from libs.common import contracts
from libs.common.contracts.base import JobSpec, Message, TaskSpec
from libs.common.contracts.chat import BatchItem
from libs.common.keyring import Keyring
from libs.common.tasks.replies import Frame
from libs.common.tasks.wire import Envelope

Spec = TaskSpec[Any, Any] | JobSpec[Any]

_ROOT: Final = Path(__file__).parent
_PREFIX: Final = f"{contracts.__name__}."
# Messages that travel or are stored beside those of the specs.
_OTHERS: Final[dict[str, type[Message]]] = {"envelope": Envelope, "frame": Frame, "batch_item": BatchItem}


def specs() -> dict[str, Spec]:
    """Every task and job there is, by name."""
    modules = [importlib.import_module(found.name) for found in pkgutil.iter_modules(contracts.__path__, _PREFIX)]
    found = [each for module in modules for each in vars(module).values() if isinstance(each, TaskSpec | JobSpec)]
    return {spec.name: spec for spec in found}


def models() -> dict[str, type[Message]]:
    """Every message there is, by the name of its golden file."""
    found = dict(_OTHERS)
    for name, spec in specs().items():
        found[f"{name}.request"] = spec.request
        if isinstance(spec, TaskSpec):
            found[f"{name}.reply"] = spec.reply
    return found


def versions() -> list[Path]:
    """The directories, oldest first."""
    return sorted(_ROOT.glob("v*"), key=lambda path: int(path.name[1:]))


def keyring_of(version: Path) -> Keyring:
    """The key ring that a version's stored forms were sealed with."""
    return Keyring.parse((version / "keyring.json").read_text())
