"""Writes the golden files that the newest version lacks: `python -m tests.contract.golden`. Never changes one."""

import json
from pathlib import Path

from libs.common.keyring import Keyring
from tests.contract.golden import keyring_of, models, versions
from tests.contract.golden.examples import example_of
from tests.contract.golden.recording import FORMS


def main() -> None:
    """Write what is missing, and say what it was."""
    version = versions()[-1]
    if not (version / "keyring.json").exists():
        _write(version / "keyring.json", json.loads(Keyring.generate()))
    for name, model in models().items():
        path = version / "messages" / f"{name}.json"
        if not path.exists():
            _write(path, model.model_validate(example_of(model)).model_dump(mode="json"))
    for name, record in FORMS.items():
        path = version / "stored" / f"{name}.json"
        if not path.exists():
            _write(path, record(keyring_of(version)))


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {path.relative_to(Path.cwd())}")  # noqa: T201 - for whoever runs it


if __name__ == "__main__":
    main()
