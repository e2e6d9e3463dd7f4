"""What request bodies are made of: identifiers, vectors, payloads and filters, checked before the engine sees them.

The engine logs an update before it applies it. A malformed sparse vector or a payload nested past the log reader's
limit would therefore fail again at every start, so the checks here are what keeps a collection openable.
"""

from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

MAX_DEPTH: Final = 32
"""Levels of nesting allowed in payloads, payload paths and filters; the engine's log cannot be read back past 128."""

_FLOAT32_MAX: Final = 3.4028234e38


def _shallow(value: object) -> object:
    pending = [(value, 1)]
    while pending:
        current, depth = pending.pop()
        if isinstance(current, dict | list):
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            children = current.values() if isinstance(current, dict) else current
            pending.extend((child, depth + 1) for child in children)
    return value


def _shallow_path(path: str) -> str:
    if path.count(".") + path.count("[") >= MAX_DEPTH:
        raise ValueError(f"path of more than {MAX_DEPTH} steps")
    return path


def _canonical_uuid(text: str) -> str:
    return str(UUID(text))


def as_list(value: object) -> object:
    """The value, or a list of it alone: Qdrant takes either where several may be given."""
    return value if isinstance(value, list) else [value]


class Wire(BaseModel):
    """Strict types, unknown fields refused; null means absent, as everywhere in Qdrant's API."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: object) -> object:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def require_one_of(self, *names: str) -> None:
        """Raise ValueError unless exactly one of the fields was given."""
        if len(self.model_fields_set.intersection(names)) != 1:
            raise ValueError(f"exactly one of {', '.join(names)} is required")


Finite = Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX, allow_inf_nan=False)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Limit = Annotated[int, Field(ge=1, lt=2**63)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Path = Annotated[str, AfterValidator(_shallow_path)]
Payload = Annotated[dict[str, object], AfterValidator(_shallow)]
PointId = Annotated[int, Field(ge=0, lt=2**64)] | Annotated[str, AfterValidator(_canonical_uuid)]


class SparseVector(Wire):
    """Values at distinct dimensions; the two lists have the same length."""

    indices: list[Annotated[int, Field(ge=0, lt=2**32)]]
    values: list[Finite]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if len(self.indices) != len(self.values):
            raise ValueError("indices and values must have the same length")
        if len(set(self.indices)) != len(self.indices):
            raise ValueError("indices must be unique")
        return self


DenseVector = Annotated[list[Finite], Field(min_length=1, max_length=65_536)]
Vector = DenseVector | SparseVector
Vectors = DenseVector | dict[str, Vector]


class Match(Wire):
    """A test of a payload value; exactly one of the fields is set."""

    value: bool | Integer | str | None = None
    any: list[str] | list[Integer] | None = None
    except_: list[str] | list[Integer] | None = Field(default=None, alias="except")
    text: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        self.require_one_of("value", "any", "except_", "text")
        return self


class NumberRange(Wire):
    """Bounds on a number."""

    gt: FiniteFloat | None = None
    gte: FiniteFloat | None = None
    lt: FiniteFloat | None = None
    lte: FiniteFloat | None = None


class DatetimeRange(Wire):
    """Bounds on a moment, in RFC 3339."""

    gt: str | None = None
    gte: str | None = None
    lt: str | None = None
    lte: str | None = None


class FieldCondition(Wire):
    """Exactly one condition on one payload field."""

    key: str
    match: Match | None = None
    range: NumberRange | DatetimeRange | None = None
    is_empty: bool | None = None
    is_null: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        self.require_one_of("match", "range", "is_empty", "is_null")
        return self


class PayloadField(Wire):
    """The name of a payload field."""

    key: str


class IsEmpty(Wire):
    """True of points without the field, or with null or an empty list there."""

    is_empty: PayloadField


class IsNull(Wire):
    """True of points with an explicit null in the field."""

    is_null: PayloadField


class HasId(Wire):
    """True of the points listed."""

    has_id: list[PointId]


class FilterNode(Wire):
    """A filter inside a filter; `Filter` is the same, with its depth checked once at the root."""

    must: "Conditions | None" = None
    should: "Conditions | None" = None
    must_not: "Conditions | None" = None


Condition = FieldCondition | IsEmpty | IsNull | HasId | FilterNode
Conditions = Annotated[list[Condition], BeforeValidator(as_list)]
Filter = Annotated[FilterNode, BeforeValidator(_shallow)]
FilterNode.model_rebuild()
