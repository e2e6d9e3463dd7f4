"""A client's attribute filter as a condition of Qdrant.

A chunk without the attribute passes `ne` and `nin` and fails everything else; values of different types differ.
"""

from qdrant_client import models

from libs.common.contracts.filters import Comparison, Filter, Scalar


def attribute_condition(attribute_filter: Filter) -> models.Condition:
    """The condition on a chunk's payload that holds where `attribute_filter` does."""
    if isinstance(attribute_filter, Comparison):
        return _comparison(attribute_filter)
    conditions = [attribute_condition(inner) for inner in attribute_filter.filters]
    return models.Filter(must=conditions) if attribute_filter.type == "and" else models.Filter(should=conditions)


def _comparison(comparison: Comparison) -> models.Condition:
    # Quoted, so that dots and brackets in a key are part of its name and not of Qdrant's path syntax.
    path = f'attributes."{comparison.key}"'
    if comparison.type in ("gt", "gte", "lt", "lte"):
        return models.FieldCondition(key=path, range=models.Range(**{comparison.type: comparison.value}))
    values = comparison.value if isinstance(comparison.value, tuple) else (comparison.value,)
    equal_to_any: list[models.Condition] = [_equals(path, value) for value in values]
    if comparison.type in ("ne", "nin"):
        return models.Filter(must_not=equal_to_any)
    return models.Filter(should=equal_to_any)


def _equals(path: str, value: Scalar) -> models.FieldCondition:
    if isinstance(value, float):
        # An exact match takes whole numbers only.
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))
