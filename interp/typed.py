"""Values against annotations: records that are filled from files and command lines.

    check_fields(record)              an instance whose fields may be of any kind: refused where one is not its own
    built(Kind, value, "a sample")    JSON as a `Kind`, its fields and theirs likewise; refused where it does not fit
    read_object(path, "survey")       a JSON file that must hold an object

Known are None, bool, int, float (int too), str, Any, Literal, tuple (lists too), list, dict, unions and dataclasses.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from interp.errors import InputError
from interp.sealing import read_json

T = TypeVar("T")


def check_fields(record: Any) -> None:
    """Refuse a field of a dataclass instance whose value is not of its annotated kind, naming both."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not fits(value, field.type):
            raise InputError(f"{field.name} is {_spelt(field.type)}, got {value!r}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; numbers must be finite."""
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


def built(kind: type[T], value: Any, what: str, *, null_is_nan: bool = False, defaults: bool = False) -> T:
    """JSON as the dataclass `kind`: exactly its fields, each of its kind, lists as tuples where it has tuples.

    A dataclass inside it that has a `from_json` reads itself. `what` names it in errors; `null_is_nan` reads null as
    NaN where a number is annotated; with `defaults` fields that have one may be missing.
    """
    return _Builder(null_is_nan, defaults).record(kind, value, what)


@dataclasses.dataclass(frozen=True)
class _Builder:
    null_is_nan: bool
    defaults: bool

    def record(self, kind: Any, value: Any, at: str) -> Any:
        fields = _fields(kind)
        needed = {name for name, optional in fields.items() if not (self.defaults and optional)}
        if not isinstance(value, Mapping) or not needed <= set(value) <= set(fields):
            got = ", ".join(sorted(map(str, value))) or "nothing" if isinstance(value, Mapping) else f"{value!r:.80}"
            raise InputError(f"{at} has {', '.join(sorted(fields))}; got {got}")
        hints = _hints(kind)
        return kind(**{name: self.value(hints[name], one, f"{at}, {name}") for name, one in value.items()})

    def value(self, kind: Any, value: Any, at: str) -> Any:
        origin, inside = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin in (Union, UnionType):
            return self._one_of(inside, value, at)
        if dataclasses.is_dataclass(kind):
            own = getattr(kind, "from_json", None)
            return self.record(kind, value, at) if own is None else own(value)
        if origin in (tuple, list) and isinstance(value, list | tuple):
            if inside[-1] is ... and all(type(one) is inside[0] for one in value):  # 500 of a feature's 540 values
                return tuple(value)
            kinds = inside[:1] * len(value) if origin is list or inside[-1] is ... else inside
            if len(kinds) == len(value):
                items = (self.value(one, x, f"{at}[{i}]") for i, (one, x) in enumerate(zip(kinds, value, strict=True)))
                return tuple(items) if origin is tuple else list(items)
        elif origin in (dict, Mapping) and isinstance(value, Mapping):
            key, held = inside
            return {self.value(key, name, at): self.value(held, x, f"{at}, {name}") for name, x in value.items()}
        elif kind is float and value is None and self.null_is_nan:
            return math.nan
        elif kind is float and isinstance(value, float | int) and not isinstance(value, bool):
            return _as_float(value, at)
        elif kind is not float and origin not in (tuple, list, dict, Mapping) and fits(value, kind):
            return value
        raise InputError(f"{at}: expected {_spelt(kind)}, got {value!r:.80}")

    def _one_of(self, kinds: tuple[Any, ...], value: Any, at: str) -> Any:
        if value is None and NoneType in kinds:
            return None
        others = [one for one in kinds if one is not NoneType]
        for one in others[:-1]:
            try:
                return self.value(one, value, at)
            except InputError:
                continue
        return self.value(others[-1], value, at)


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read JSON that must be an object; `what` names the thing in the error."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object, got {value!r:.80}; make the {what} again")
    return value


@lru_cache
def _fields(kind: Any) -> dict[str, bool]:
    """The fields of a dataclass, and whether they have a default."""
    missing = dataclasses.MISSING
    return {
        f.name: f.default is not missing or f.default_factory is not missing for f in dataclasses.fields(kind) if f.init
    }


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _as_float(value: float, at: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{at}: {str(value)[:20]}... is too large a number") from None


def _spelt(kind: Any) -> str:
    """A kind in words, for an error text."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_spelt(one) for one in inside if one is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin in (tuple, list):
        kinds = {float: "numbers", int: "whole numbers", str: "texts"}.get(inside[0], "values")
        return f"{len(inside)} {kinds}" if origin is tuple and inside[-1] is not ... else f"a list of {kinds}"
    if origin in (dict, Mapping):
        return "an object"
    words = {float: "a finite number", int: "a whole number", bool: "True or False"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
