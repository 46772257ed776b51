"""Values of a settings record against its annotations, for records that are filled from files and command lines."""

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from interp.errors import InputError


def check_fields(record: Any) -> None:
    """Refuse a field of a dataclass instance whose value is not of its annotated kind, naming both."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not fits(value, field.type):
            raise InputError(f"{field.name} is {_spelt(field.type)}, got {value!r}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: None, bool, int, float (int too), str, Literal, tuples (lists too), unions."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind in (None, NoneType) else isinstance(value, kind)


def _spelt(kind: Any) -> str:
    """A kind in words, for an error text."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_spelt(one) for one in inside if one is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin is tuple:
        kinds = {float: "numbers", int: "whole numbers", str: "texts"}.get(inside[0], "values")
        return f"a list of {kinds}" if inside[-1] is ... else f"{len(inside)} {kinds}"
    words = {float: "a finite number", int: "a whole number", bool: "True or False"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
