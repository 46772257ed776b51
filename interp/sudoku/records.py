"""Results as frozen dataclasses that go to JSON and come back: numbers, names, arrays, estimates, other results."""

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from interp.errors import InputError
from interp.typed import fits

R = TypeVar("R", bound="Record")


class Record:
    """A frozen dataclass of such fields gains `to_json` and `from_json` by inheriting from this."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name; arrays as lists, NaN as null."""
        assert dataclasses.is_dataclass(self)
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls: type[R], fields: Any) -> R:
        """What `to_json` gave; refuses other fields, and values of other kinds."""
        assert dataclasses.is_dataclass(cls)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or set(fields) != known:
            got = sorted(map(str, fields)) if isinstance(fields, Mapping) else repr(fields)
            raise InputError(
                f"a {cls.__name__} has the fields {sorted(known)}, got {got!s:.300}: was it written by another version?"
            )
        hints = _hints(cls)
        read = {name: _read(value, hints[name], f"{cls.__name__}.{name}") for name, value in fields.items()}
        sizes: dict[str, int] = {}
        for name, array in read.items():
            letters = str(getattr(hints[name], "dim_str", "")).split()
            for letter, size in zip(letters, getattr(array, "shape", ()), strict=False):
                if letter.isidentifier() and sizes.setdefault(letter, size) != size:
                    raise InputError(f"{cls.__name__}.{name} has {size} entries where others have {sizes[letter]}")
        return cls(**read)


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


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


def _read(value: Any, hint: Any, at: str) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _read(value, inside[0], at)
    if origin is dict and isinstance(value, Mapping):
        return {key: _read(item, inside[1], f"{at}[{key!r}]") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        if len(kinds) == len(value):
            return tuple(_read(item, kind, at) for item, kind in zip(value, kinds, strict=True))
    elif isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    elif hasattr(hint, "_fields") and isinstance(value, list) and len(value) == len(hint._fields):
        return hint(*(_read(item, float, at) for item in value))  # a named tuple of numbers
    elif hasattr(hint, "dtypes") and isinstance(value, list):
        return _array(value, hint, at)
    elif hint is float and value is None:
        return math.nan
    elif origin in (None, Literal) and not hasattr(hint, "dtypes") and not hasattr(hint, "_fields"):
        if fits(value, hint) or (hint is float and isinstance(value, float)):  # infinite ones too
            return value
    raise InputError(f"{at} cannot be {value!r:.80}: was it written by another version?")


def _array(value: list[Any], hint: Any, at: str) -> np.ndarray:
    """Numbers in lists as an array of the kind and the number of axes of a jaxtyping annotation."""
    whole = any(name.startswith("int") for name in hint.dtypes)
    try:
        found = np.array(_with_nan(value))
    except (ValueError, OverflowError):  # rows of different lengths, numbers of 64 bits and more
        found = np.empty(0, object)
    axes = len(hint.dims) if isinstance(hint.dims, tuple | list) else found.ndim
    if found.size == 0 and found.dtype != object and found.ndim <= axes:
        found = found.reshape(found.shape + (0,) * (axes - found.ndim)).astype(np.int64)
    if found.dtype.kind not in ("iu" if whole else "iuf") or found.ndim != axes:
        raise InputError(f"{at} is no array of {'whole ' if whole else ''}numbers with {axes} axes: {value!r:.80}")
    return found.astype(np.int64 if whole else np.float64)


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
