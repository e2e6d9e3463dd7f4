"""Messages of every earlier version are read today: old and new processes run side by side, and queues outlive both."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from libs.common.contracts.base import Message
from tests.contract.golden import models, specs, versions
from tests.contract.golden.examples import example_of

_MODELS = models()
_HINT = "run `python -m tests.contract.golden`, look the new files over and keep them"


_FILES = [
    pytest.param(path, id=f"{version.name}/{path.stem}")
    for version in versions()
    for path in sorted((version / "messages").glob("*.json"))
]


def _read(path: Path) -> Message:
    return _MODELS[path.stem].model_validate_json(path.read_bytes())


def test_every_message_has_a_golden_file() -> None:
    recorded = {path.stem for version in versions() for path in (version / "messages").glob("*.json")}
    assert sorted(_MODELS.keys() - recorded) == [], _HINT


def test_every_golden_file_is_of_a_message() -> None:
    """A task that is gone may still be in the queues of who updates: its messages would be refused as unknown."""
    recorded = {path.stem for version in versions() for path in (version / "messages").glob("*.json")}
    assert sorted(recorded - _MODELS.keys()) == []


def test_a_name_is_one_task_s() -> None:
    assert len(specs()) >= 40
    assert all(name == spec.name and "." in name for name, spec in specs().items())


@pytest.mark.parametrize("path", _FILES)
def test_it_is_read_and_means_the_same(path: Path) -> None:
    """Required fields added since, fields renamed, removed or of another type: each breaks this."""
    assert json.loads(_read(path).model_dump_json(exclude_unset=True)) == json.loads(path.read_bytes())


@pytest.mark.parametrize("path", _FILES)
def test_fields_of_a_later_version_are_ignored_on_every_level(path: Path) -> None:
    message = _read(path)
    later = _plain(message, add={"a_field_of_a_later_version": {"deep": [1]}})
    assert _MODELS[path.stem].model_validate_json(json.dumps(later)) == message


@pytest.mark.parametrize("path", _FILES)
def test_an_older_sender_s_message_without_what_has_a_default_is_read(path: Path) -> None:
    model, whole = _MODELS[path.stem], json.loads(path.read_bytes())
    for name, field in model.model_fields.items():
        if not field.is_required():
            part = {key: value for key, value in whole.items() if key != name}
            assert getattr(model.model_validate_json(json.dumps(part)), name) == field.get_default()
    bare = _plain(_read(path), only_required=True)
    assert model.model_validate_json(json.dumps(bare)).model_fields_set == set(bare)


@pytest.mark.parametrize("name", _MODELS)
def test_an_example_can_be_made_of_it(name: str) -> None:
    """Or nobody could write the golden file of a new version with one command."""
    assert _MODELS[name].model_validate(example_of(_MODELS[name])).model_fields_set == set(_MODELS[name].model_fields)


def _plain(value: Any, *, add: dict[str, Any] | None = None, only_required: bool = False) -> Any:
    """A message as JSON values, with something added to each message in it, or without what each could do without."""
    if isinstance(value, tuple):
        return [_plain(each, add=add, only_required=only_required) for each in value]
    if not isinstance(value, BaseModel):
        return value
    names = [name for name in value.model_fields_set if _kept(value, name, only_required=only_required)]
    found = {name: _plain(getattr(value, name), add=add, only_required=only_required) for name in names}
    return found | (add or {} if isinstance(value, Message) else {})


def _kept(message: BaseModel, name: str, *, only_required: bool) -> bool:
    return not only_required or type(message).model_fields[name].is_required()
