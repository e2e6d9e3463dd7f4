"""A program whose settings or keyring are at fault ends with one line that names the variable and shows no value."""

import json
from pathlib import Path

import pytest

from libs.common import keys
from libs.common.blobs import BlobStore
from libs.common.configuration import configured
from libs.common.keyring import Keyring, load_keyring
from libs.common.settings import CommonSettings, WorkerSettings

_SECRET = "hunter2"


def _keyring(settings: CommonSettings) -> Keyring:
    text = settings.keyring.get_secret_value() if settings.keyring else None
    return load_keyring(text=text, file=settings.keyring_file)


def _reason(capsys: pytest.CaptureFixture[str]) -> str:
    """Why it ended: the log's only line."""
    with pytest.raises(SystemExit) as ended:
        configured(WorkerSettings, _keyring)
    assert ended.value.code == 78
    shown = capsys.readouterr()
    [line] = shown.out.splitlines()
    assert not shown.err
    assert _SECRET not in line
    return str(json.loads(line)["reason"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_URL", f"http://{_SECRET}@broker/0"),
        ("BROKER_URL", f"redis://:{_SECRET}@broker:port/0"),
        ("CACHE_URL", ""),
        ("DATABASE_URL", f"mysql://docent:{_SECRET}@db/docent"),
        ("DATABASE_URL", "docent.db"),
        ("BLOBS_URL", "/var/lib/docent"),
        ("LOG_LEVEL", _SECRET),
        ("LEASE_SECONDS", "-1"),
        ("LEASE_SECONDS", "inf"),
        ("LEASE_SECONDS", "nan"),
        ("HEALTH_PORT", _SECRET),
        ("TENANT_SHARE", "2"),
    ],
)
def test_a_bad_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv("KEYRING", Keyring.generate())
    monkeypatch.setenv(name, value)
    assert _reason(capsys).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "text", [_SECRET, "{}", '{"active": "hunter2", "keys": {}}', '{"active":"k","keys":{"k":"x"}}']
)
def test_a_malformed_keyring_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setenv("KEYRING", text)
    assert "KEYRING" in _reason(capsys)


def test_a_missing_keyring_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("KEYRING", raising=False)
    monkeypatch.delenv("KEYRING_FILE", raising=False)
    assert "No keyring is configured" in _reason(capsys)
    monkeypatch.setenv("KEYRING_FILE", str(tmp_path / "missing.json"))
    assert "cannot be read" in _reason(capsys)


def test_what_is_right_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYRING", Keyring.generate())
    assert configured(WorkerSettings, _keyring).active


def test_the_list_of_purposes_is_whole() -> None:
    named = {value for name, value in vars(keys).items() if name.endswith("_PURPOSE")}
    assert named <= set(keys.PURPOSES)


def test_a_blob_store_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEYRING", Keyring.generate())

    def build(settings: WorkerSettings) -> BlobStore:
        return BlobStore.open(settings.blobs_url, _keyring(settings).segment_sealer(keys.FILES_PURPOSE))

    monkeypatch.setenv("BLOBS_URL", "s3://")
    with pytest.raises(SystemExit) as ended:
        configured(WorkerSettings, build)
    assert ended.value.code == 78
    assert json.loads(capsys.readouterr().out)["reason"].startswith("BLOBS_URL: ")
