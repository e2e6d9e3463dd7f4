"""A first example of any message: every field set, to a value of its kind."""

import types
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_PLAIN: Final[dict[Any, Any]] = {int: 7, float: 0.5, bool: True, bytes: b"bytes"}


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Plain JSON values that the model can be read from."""
    return {name: _value(name, field.annotation) for name, field in model.model_fields.items()}


def _value(name: str, kind: Any) -> Any:
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is Annotated:
            value = _value(name, arguments[0])
        case origin if origin is Literal:
            value = arguments[0]
        case origin if origin in (Union, types.UnionType):
            value = _value(name, next(each for each in arguments if each is not types.NoneType))
        case origin if origin is tuple:
            value = [_value(name, each) for each in arguments if each is not Ellipsis]
        case origin if origin is dict:
            value = {f"{name}_key": _value(name, arguments[1])}
        case _:
            value = _single(name, kind)
    return value


def _single(name: str, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example_of(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind)).value
    return _PLAIN.get(kind, name)
