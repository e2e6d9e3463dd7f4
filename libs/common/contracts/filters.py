"""Attribute filters of a search, in the shape of OpenAI's vector store API."""

from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictStr,
    StringConstraints,
    model_validator,
)

MAX_DEPTH: Final = 8
MAX_KEY_CHARACTERS: Final = 64
MAX_TEXT_CHARACTERS: Final = 512
MAX_OPERANDS: Final = 100

# Quotes and backslashes cannot be written inside a quoted path of the vector database, control characters never belong.
Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_CHARACTERS, pattern=r'^[^"\\\x00-\x1f\x7f]+$')]
Text = Annotated[StrictStr, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
Scalar = Text | StrictBool | FiniteFloat
Operands = Annotated[tuple[Scalar, ...], Field(min_length=1, max_length=MAX_OPERANDS)]


class Comparison(BaseModel):
    """One attribute against a value; `in` and `nin` take a list, the four orderings a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: Key
    value: Scalar | Operands

    @model_validator(mode="after")
    def _value_suits_type(self) -> Self:
        if self.type in ("in", "nin"):
            if not isinstance(self.value, tuple):
                raise ValueError(f"'{self.type}' compares with a list of values")
        elif isinstance(self.value, tuple):
            raise ValueError(f"'{self.type}' compares with a single value")
        elif self.type not in ("eq", "ne") and not isinstance(self.value, float):
            raise ValueError(f"'{self.type}' compares with a number")
        return self

    @property
    def depth(self) -> int:
        """Levels of nesting: 1."""
        return 1


class Compound(BaseModel):
    """Several filters of which all (`and`) or at least one (`or`) must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["and", "or"]
    filters: Annotated[tuple["Filter", ...], Field(min_length=1, max_length=MAX_OPERANDS)]

    @model_validator(mode="after")
    def _not_too_deep(self) -> Self:
        if self.depth > MAX_DEPTH:
            raise ValueError(f"filters may be nested at most {MAX_DEPTH} levels deep")
        return self

    @property
    def depth(self) -> int:
        """Levels of nesting, this one included."""
        return 1 + max(inner.depth for inner in self.filters)


Filter = Annotated[Comparison | Compound, Field(discriminator="type")]
Compound.model_rebuild()
