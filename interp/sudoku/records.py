"""Results as frozen dataclasses that go to JSON and come back: numbers, names, arrays, estimates, other results."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from interp.errors import InputError

R = TypeVar("R", bound="Record")


class Record:
    """A frozen dataclass of such fields gains `to_json` and `from_json` by inheriting from this."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name; arrays as lists, NaN as null."""
        assert dataclasses.is_dataclass(self)
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls: type[R], fields: Mapping[str, Any]) -> R:
        """What `to_json` gave; refuses other fields."""
        assert dataclasses.is_dataclass(cls)
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            raise InputError(
                f"a {cls.__name__} has the fields {sorted(known)}, got {sorted(fields)}: was it written by another "
                f"version?"
            )
        hints = get_type_hints(cls)
        return cls(**{name: _read(value, hints[name]) for name, value in fields.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _read(value: Any, hint: Any) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _read(value, inside[0])
    if origin is dict:
        return {key: _read(item, inside[1]) for key, item in value.items()}
    if origin is tuple:
        return tuple(_read(item, inside[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if isinstance(hint, type) and hasattr(hint, "_fields"):  # a named tuple of numbers
        return hint(*(math.nan if item is None else item for item in value))
    if isinstance(value, list):
        whole = any(name.startswith("int") for name in getattr(hint, "dtypes", ()))
        return np.array(_with_nan(value), np.int64 if whole else np.float64)
    return math.nan if value is None else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
