from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from libs.common.contracts.filters import MAX_DEPTH, Comparison, Compound, Filter

FILTER: TypeAdapter[Comparison | Compound] = TypeAdapter(Filter)


def _nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "eq", "key": "team", "value": "legal"}
    for _ in range(levels - 1):
        inner = {"type": "and", "filters": [inner]}
    return inner


@pytest.mark.parametrize(
    ("value", "kind"), [("3", str), (3, float), (3.5, float), (True, bool), (1, float), ("true", str)]
)
def test_a_value_keeps_its_type(value: object, kind: type) -> None:
    parsed = FILTER.validate_python({"type": "eq", "key": "a", "value": value})
    assert isinstance(parsed, Comparison)
    assert type(parsed.value) is kind


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "in", "key": "year", "value": [2024, "n/a"]},
        {"type": "or", "filters": [_nested(1), {"type": "and", "filters": [_nested(2)]}]},
    ],
)
def test_a_filter_survives_json(raw: dict[str, Any]) -> None:
    parsed = FILTER.validate_python(raw)
    assert FILTER.validate_json(FILTER.dump_json(parsed)) == parsed


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "like", "key": "a", "value": "x"},
        {"type": "eq", "key": "a", "value": "x", "extra": 1},
        {"type": "eq", "key": "", "value": "x"},
        {"type": "eq", "key": "k" * 65, "value": "x"},
        {"type": "eq", "key": 'a"] or tenant_id["', "value": "x"},
        {"type": "eq", "key": "a\\", "value": "x"},
        {"type": "eq", "key": "a\n", "value": "x"},
        {"type": "eq", "key": "a", "value": float("nan")},
        {"type": "eq", "key": "a", "value": ["x"]},
        {"type": "eq", "key": "a", "value": None},
        {"type": "gt", "key": "a", "value": "x"},
        {"type": "lte", "key": "a", "value": True},
        {"type": "in", "key": "a", "value": "x"},
        {"type": "in", "key": "a", "value": []},
        {"type": "and", "filters": []},
        {"type": "and", "filters": [{"type": "eq", "key": "a"}]},
        _nested(MAX_DEPTH + 1),
        _nested(3000),
    ],
)
def test_what_makes_no_sense_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FILTER.validate_python(raw)


def test_the_deepest_allowed_filter_is_read() -> None:
    assert FILTER.validate_python(_nested(MAX_DEPTH)).depth == MAX_DEPTH
