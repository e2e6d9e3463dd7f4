from pathlib import Path

from services.gateway.openapi import text

KEPT = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_kept_description_is_current() -> None:
    assert KEPT.read_text() == text(), "renew it by `make openapi`"
