"""Options of a command as a TOML file: read against the dataclass that holds them, and written from one.

    max_length = 256                 # as the flag --max-length 256
    sites = ["resid_post.15"]        # as --sites resid_post.15
    [base]                           # options inside options: --base.lr 1e-3
    lr = 1e-3

Names may be spelt with hyphens, as flags are. TOML has no null: "None", which flags take too, stands for it. Kinds are
strict: a number in quotes is refused where a number belongs.
"""

import dataclasses
import math
import tomllib
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from interp.errors import InputError
from interp.sealing import NOT_JSON

_NONE = "None"


def read_options(path: Path, kind: type, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The options in a file, converted to the kinds that `kind` declares; not those in `without`."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}; expected a TOML file of options") from error
    except NOT_JSON as error:  # tomllib fails in the same ways as json
        raise InputError(f"--config {path} is no TOML: {error}") from error
    return _table(content, kind, f"--config {path}: ", "", without)


def filled(kind: type, values: Mapping[str, Any], missing: Any) -> Any:
    """A `kind` with these values, defaults for others and `missing` for what has none; nothing is checked yet."""
    record = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name in values:
            value = values[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        else:
            value = missing if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(record, field.name, value)
    return record


def options_text(record: Any, *, title: str = "", without: Collection[str] = ()) -> str:
    """All options of a record as TOML; what is None by default stands in a comment."""
    lines = [f"# {title}"] if title else []
    return "\n".join([*lines, *_lines(record, "", without)]) + "\n"


def _table(content: Mapping[str, Any], kind: type, at: str, prefix: str, without: Collection[str]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in without]
    values = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"{at}there is no option {prefix + key!r}; known: {', '.join(known)}")
        if name in values:
            raise InputError(f"{at}{prefix + name!r} is given twice, with a hyphen and with an underscore")
        values[name] = _converted(value, hints[name], at, prefix + name)
    return values


def _converted(value: Any, kind: Any, at: str, name: str) -> Any:
    """A value of TOML as the kind an annotation names; refused with what was expected."""
    if get_origin(kind) is Annotated:
        return _converted(value, get_args(kind)[0], at, name)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        inside = _table(value, kind, at, name + ".", ())
        if wanting := [
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in inside
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]:
            raise InputError(f"{at}{name} lacks {', '.join(wanting)}")
        return kind(**inside)
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            try:
                return _converted(value, one, at, name)
            except InputError as error:
                if dataclasses.is_dataclass(one) and isinstance(value, Mapping):
                    raise error
    if get_origin(kind) is tuple and isinstance(value, list):
        inside = get_args(kind)
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        if len(kinds) == len(value):
            return tuple(_converted(one, kinds[i], at, f"{name}[{i}]") for i, one in enumerate(value))
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    elif kind in (str, bool) and isinstance(value, kind):
        return value
    elif kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif get_origin(kind) is Literal and any(value == one and type(value) is type(one) for one in get_args(kind)):
        return value
    elif kind is type(None) and value == _NONE:
        return None
    raise InputError(f"{at}{name} is {_spelt(kind)}, got {value!r}")


def _spelt(kind: Any) -> str:
    """A kind in words, for an error text."""
    inside = [one for one in get_args(kind) if one is not ...]
    if get_origin(kind) is Annotated:
        return _spelt(inside[0])
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spelt(one) for one in inside))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, inside))
    if get_origin(kind) is tuple:
        return f"a list, each {_spelt(inside[0])}" if get_args(kind)[-1] is ... else f"a list of {len(inside)}"
    words = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
    words |= {type(None): repr(_NONE)}
    return words.get(kind, "a table" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind)))


def _lines(record: Any, table: str, without: Collection[str]) -> list[str]:
    """The options of one table, and those of the tables in it below."""
    own, below = [], []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in without or not field.init:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            below += ["", f"[{table}{field.name}]", *_lines(value, f"{table}{field.name}.", ())]
        elif value is None and field.default is None:
            own.append(f"# {field.name} =")
        else:
            own.append(f"{field.name} = {_spelling(value)}")
    return own + below


def _spelling(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_spelling, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'
