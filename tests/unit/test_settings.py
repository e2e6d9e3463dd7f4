import pytest
from pydantic import ValidationError

from libs.common.settings import CommonSettings, RetrievalSettings, WorkerSettings


def test_fields_are_the_environment_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "redis://broker/0")
    monkeypatch.setenv("DRAIN_SECONDS", "3.5")
    monkeypatch.setenv("KEYRING", "a secret")
    settings = WorkerSettings()
    assert (settings.broker_url, settings.drain_seconds) == ("redis://broker/0", 3.5)
    assert "a secret" not in repr(settings)


def test_settings_are_frozen_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CommonSettings()
    with pytest.raises(ValidationError):
        settings.max_attempts = 7  # type: ignore[misc]
    monkeypatch.setenv("MAX_ATTEMPTS", "several")
    with pytest.raises(ValidationError):
        CommonSettings()


def test_a_lease_outlives_missed_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEASE_SECONDS", "HEARTBEAT_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    settings = CommonSettings()
    assert settings.lease_seconds >= 3 * settings.heartbeat_seconds


def test_further_embedding_models_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_MODELS", "")
    assert RetrievalSettings().dimensions_by_model() == {"all-minilm-l6-v2": 384}
    monkeypatch.setenv("EMBEDDING_MODELS", '{"large": {"dimensions": 1024, "base_url": "http://models/v1"}}')
    assert RetrievalSettings().dimensions_by_model() == {"large": 1024, "all-minilm-l6-v2": 384}
    for wrong in ("{", '{"a": {}}', '{"a": {"dimensions": 0}}', '{"a": {"dimensions": 3, "base_url": "ftp://x"}}'):
        monkeypatch.setenv("EMBEDDING_MODELS", wrong)
        with pytest.raises(ValidationError):
            RetrievalSettings()
