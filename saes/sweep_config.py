"""Which SAEs a sweep trains: a grid over architecture, width, k, learning rate, sparsity and seed, or a list; names.

    {"architecture": ["topk", "batchtopk"], "d_sae": [2304, 4608], "k": [16, 32], "lr": [1e-3], "base": {"epochs": 4}}

Every combination is a member. What an architecture has no use for is left out for it (k for standard, sparsity for
topk), and members that are then equal are one. A file holds one grid or a list of them.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from interp.errors import InputError
from interp.sealing import digest, read_json
from saes.recipe import TrainConfig, Training, uses

_SETTINGS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
_WHOLE, _NUMBERS = ("d_sae", "expansion", "k", "seed"), ("lr", "sparsity")
_SWEPT = ("architecture", *_WHOLE, *_NUMBERS)
_LONGEST = 150  # characters of a name that is made here; folders have 255
FILE, PAGE = "sweep.json", "sweep.html"  # in the folder of a sweep, beside the members


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values to combine; a field left empty has the value of `base`, else `TrainConfig`'s default."""

    architecture: tuple[Training, ...] = ()
    d_sae: tuple[int, ...] = ()
    """Widths."""
    expansion: tuple[int, ...] = ()
    """Widths as multiples of the activations' width, instead of `d_sae`."""
    k: tuple[int, ...] = ()
    lr: tuple[float, ...] = ()
    sparsity: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()
    """A seed decides the order of the rows too: SAEs of different seeds cannot share a read."""
    base: TrainConfig | Mapping[str, Any] = field(default_factory=dict)
    """What all members share: a recipe, or settings by name (those of several architectures may stand together)."""

    def __post_init__(self) -> None:
        if self.d_sae and self.expansion:
            raise InputError("a grid has d_sae or expansion, not both: either says the width")
        if unknown := sorted(self._shared().keys() - _SETTINGS.keys()):
            raise InputError(f"unknown settings in a grid's base: {unknown}; known are {', '.join(_SETTINGS)}")

    @classmethod
    def from_json(cls, value: Any) -> "Grid":
        """From JSON; one value stands for a list of one, unknown keys are refused."""
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(value, dict):
            raise InputError(f"a grid is an object with some of {', '.join(known)}, got {value!r}")
        if unknown := sorted(value.keys() - set(known)):
            raise InputError(
                f"unknown keys in a grid: {unknown}. It has {', '.join(known)}; other settings stand inside base"
            )
        if empty := [name for name in _SWEPT if value.get(name) == []]:
            raise InputError(f"{', '.join(empty)} in a grid: an empty list; leave out what is not varied")
        base = value.get("base", {})
        if not isinstance(base, dict):
            raise InputError(f"a grid's base is an object of settings, got {base!r}")
        lists = {name: tuple(_checked(name, one) for one in _listed(value[name])) for name in _SWEPT if name in value}
        return cls(**lists, base={name: _hashable(x) for name, x in base.items()})

    def configs(self) -> list[TrainConfig]:
        """Every member, each once, in the order of the fields."""
        swept = {name: values for name in _SWEPT if (values := getattr(self, name))}
        shared = self._shared()
        if self.expansion:
            shared.pop("d_sae", None)
        made: dict[TrainConfig, None] = {}
        used = set()
        for values in itertools.product(*swept.values()):
            given = shared | dict(zip(swept, values, strict=True))
            architecture = given.get("architecture", _SETTINGS["architecture"])
            kept = {name: x for name, x in given.items() if uses(name, architecture, given.get("penalty"))}
            used |= kept.keys()
            try:
                made[TrainConfig(**kept)] = None
            except TypeError as error:
                raise InputError(f"a setting of the grid has the wrong type ({error}), among {kept}") from None
        if idle := sorted((shared.keys() | swept.keys()) - used):
            raise InputError(
                f"{', '.join(idle)} in a grid would be without effect: "
                f"none of its architectures ({', '.join(sorted({c.architecture for c in made}))}) uses it"
            )
        return list(made)

    def _shared(self) -> dict[str, Any]:
        if isinstance(self.base, TrainConfig):
            values = {name: getattr(self.base, name) for name in _SETTINGS}
            return {name: value for name, value in values.items() if value != _SETTINGS[name]}
        return dict(self.base)


Members = Grid | Sequence[TrainConfig] | Mapping[str, TrainConfig]


def load_grids(path: str | Path) -> list[TrainConfig]:
    """The members of a JSON file: one grid, or a list of grids."""
    value = read_json(Path(path), "grid")
    grids = [Grid.from_json(each) for each in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(config for grid in grids for config in grid.configs()))


def configs_of(members: Members) -> list[TrainConfig]:
    """The recipes of a sweep, in order, equal ones once."""
    if isinstance(members, Grid):
        return members.configs()
    listed = list(members.values() if isinstance(members, Mapping) else members)
    if not listed:
        raise InputError("a sweep without members: give a grid or at least one TrainConfig")
    if isinstance(members, Mapping) and len(set(listed)) < len(listed):
        raise InputError("two members of the sweep have the same recipe under different names")
    return list(dict.fromkeys(listed))


def named(members: Members) -> dict[str, TrainConfig]:
    """The members by name: their own where a mapping gives it, else a function of the recipe alone.

    So a member keeps its name, and with it its folder, whatever others join the sweep.
    """
    if not isinstance(members, Mapping):
        return {_name(config): config for config in configs_of(members)}
    for name in members:
        if not re.fullmatch(r"[A-Za-z0-9_+=,][A-Za-z0-9_+=,.\-]*", name):
            raise InputError(f"{name!r} is no name of a member: letters, digits and _+=,.- name its folder")
        if name in (FILE, PAGE):
            raise InputError(f"no member can be called {name!r}: the sweep has a file of this name in its folder")
    return dict(members)


def _name(config: TrainConfig) -> str:
    """Architecture, width (`w` features, or `x` times the activations' width), k, sparsity, learning rate and seed,
    then every other setting that is not `TrainConfig`'s default; what is None is left out."""
    given = {name: value for name, default in _SETTINGS.items() if (value := getattr(config, name)) != default}
    if uses("k", config.architecture, config.penalty):
        given["k"] = config.k
    first = {"d_sae": "w", "expansion": "x", "k": "k", "sparsity": "sparsity", "lr": "lr", "seed": "s"}
    given |= {"seed": config.seed} | ({} if config.d_sae else {"expansion": config.expansion})
    parts = [config.architecture, *(f"{short}{_spelled(given.pop(n))}" for n, short in first.items() if n in given)]
    given.pop("architecture", None)
    name = "-".join([*parts, *(f"{name}{_spelled(value)}" for name, value in given.items())])
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}-{digest(name)[:8]}"


def _spelled(value: Any) -> str:
    """A setting's value, such that different values look different and equal ones (2, 2.0) alike."""
    if isinstance(value, tuple | list):
        return "_".join(map(_spelled, value))
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        return short if float(short := f"{value:g}") == value else repr(value)
    return re.sub(r"[^A-Za-z0-9.+_\-]", "_", str(value))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _checked(name: str, value: Any) -> Any:
    """One value of a grid, as its field has it."""
    kinds = (int,) if name in _WHOLE else (int, float) if name in _NUMBERS else (str,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise InputError(f"{name}={value!r} in a grid: expected {' or '.join(kind.__name__ for kind in kinds)}")
    if name == "architecture" and value not in get_args(Training):
        raise InputError(f"architecture is one of {', '.join(get_args(Training))}, got {value!r}")
    return float(value) if name in _NUMBERS else value


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
