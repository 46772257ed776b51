"""Where the parts of a model are loaded: layers on several devices, in the host's memory or on disk, or each layer cut
across processes.

    HookedModel.load(name, device_map="auto", max_memory={0: "20GiB", "cpu": "60GiB"})       accelerate's hooks
    HookedModel.load(name, device_map={"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, ...})
    HookedModel.load(name, tp_plan="auto")        under torchrun: transformers' tensor parallelism, `interp.sharded`

With a map, captured tensors lie where their layer computed them (a site between two devices: on the earlier one), and
an edit gets tensor and `Where` on that device. With a plan every process captures and edits whole tensors.
"""

import importlib.util
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict, get_args

import torch

from interp.errors import InputError
from interp.processes import left_at_end
from interp.typed import read_object

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
_SIZE = re.compile(r"\d+(\.\d+)?(GiB|MiB|KiB|GB|MB|KB)")  # as accelerate reads them
Place = str | int | torch.device


class Placing(TypedDict, total=False):
    """Options of loading a model in parts; those not given are None."""

    device_map: str | Mapping[str, Place] | None
    """auto, balanced, balanced_low_0, sequential, or module -> device, "cpu" or "disk" (names of the whole model)."""
    max_memory: Mapping[int | str, int | str] | None
    """Most bytes of each device (its number, or "cpu") that weights may take, as a number or such as "20GiB"."""
    offload_folder: str | Path | None
    """For weights on disk; by default they are read from the checkpoint itself where that is possible."""
    tp_plan: str | Mapping[str, str] | None
    """"auto" (the family's own plan), or module -> style; needs one process a device, as torchrun starts them."""


@dataclass(frozen=True, kw_only=True)
class PlacingConfig:
    """Options of a job whose model may be larger than one device."""

    device_map: str | None = None
    """For a model larger than one device, in place of a device: auto, balanced, balanced_low_0, sequential, or a .json
    file of {"model.layers.0": 0, ...}, of modules to device numbers, "cpu" or "disk"."""
    max_memory: tuple[str, ...] = ()
    """Of a device map: the most of each device that weights may take, such as 0=70GiB 1=70GiB cpu=100GiB."""
    offload_folder: Path | None = None
    """Of a device map: folder for weights on disk, where they cannot be read from the checkpoint itself."""

    def placing(self) -> Placing:
        """What `HookedModel.load` takes."""
        limits = dict(_limit(one) for one in self.max_memory)
        if len(limits) < len(self.max_memory):
            raise InputError(f"max_memory {' '.join(self.max_memory)}: a device is named twice")
        places = self.device_map
        if places is not None and places not in STRATEGIES:
            if not places.endswith(".json"):
                _check_map(places)
            places = read_object(Path(places), "device map")
        return {"device_map": places, "max_memory": limits or None, "offload_folder": self.offload_folder}


PLACING = tuple(one.name for one in fields(PlacingConfig))
"""Options that decide where a model lies, and nothing of the result."""


def _limit(text: str) -> tuple[int | str, str]:
    """`0=70GiB` as device and size."""
    device, _, size = text.partition("=")
    if not (device.isdecimal() or device == "cpu") or not _SIZE.fullmatch(size):
        raise InputError(f"max_memory {text!r}: expected a device's number or cpu, and a size, such as 0=70GiB")
    return int(device) if device.isdecimal() else device, size


def load_options(placing: Placing, device: object) -> dict[str, Any]:
    """The options of `from_pretrained` that say so; empty where the model goes to one device as a whole."""
    given = {name: value for name, value in placing.items() if value is not None}
    if unknown := sorted(given.keys() - Placing.__annotations__.keys()):
        raise InputError(f"unknown options {unknown}; expected {', '.join(Placing.__annotations__)}")
    if not given:
        return {}
    plan, places = given.get("tp_plan"), given.get("device_map")
    if plan is None and places is None:
        raise InputError(f"{' and '.join(given)} is for a device_map: give device_map='auto', or a mapping, with it")
    if plan is not None and places is not None:
        raise InputError("give either device_map (layers on several devices) or tp_plan (each layer cut), not both")
    chosen = "device_map" if plan is None else "tp_plan"
    if device is not None:
        raise InputError(
            f"device={str(device)!r} and {chosen}: the {chosen} says where the model goes; leave device out"
        )
    if plan is not None:
        _check_plan(given)
        left_at_end()
        return {"tp_plan": plan}
    _check_map(places)
    return given


def _check_map(places: Any) -> None:
    if isinstance(places, str) and places not in STRATEGIES:
        raise InputError(
            f"device_map={places!r}: expected {', '.join(STRATEGIES)} or a mapping of modules to devices "
            f"(for one device give device={places!r})"
        )
    if not isinstance(places, str | Mapping) or not places:
        raise InputError(
            f"device_map is {places!r}: expected {', '.join(STRATEGIES)} or a mapping of modules to devices"
        )
    if isinstance(places, Mapping):
        for name, place in places.items():
            if not isinstance(place, get_args(Place)):
                raise InputError(f"device_map puts {name} at {place!r}: expected a device, its number, cpu or disk")
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("device_map needs accelerate: pip install accelerate")


def refuse_tied(options: Mapping[str, Any], config: Any) -> None:
    """Refuse a map that puts a head on disk which has no weights there, because they are the embedding's."""
    places = options.get("device_map")
    if isinstance(places, Mapping) and places.get("lm_head") == "disk" and config.tie_word_embeddings:
        raise InputError("lm_head is at disk, but it shares the embedding's weights: put it where the embedding is")


def refuse_gaps(options: Mapping[str, Any], tensors: Iterable[str], modules: Collection[str] = ()) -> None:
    """Refuse a map that says nothing of some of the model's tensors; of `modules`, if given, are the names in it."""
    places = options.get("device_map")
    if not isinstance(places, Mapping) or "" in places:
        return
    around = {name for place in places for name in _above(place)}
    left = [above for above in map(_above, tensors) if not any(name in places for name in above)]
    if not left:
        return
    # of every tensor left out, the largest module of which nothing has a place
    gaps = list(dict.fromkeys(next(name for name in above if name not in around) for above in left))
    odd = [name for name in places if modules and name not in modules]
    raise InputError(
        f"device_map leaves out {len(gaps)} of the model's modules: {_listed(gaps)}. Give each a device, 'cpu' or "
        "'disk' (or one of the modules around it), or device_map='auto'"
        + (f"; it names what the model does not have: {_listed(odd)}" if odd else "")
    )


def _above(name: str) -> list[str]:
    """A dotted name and those of the modules around it, the outermost first."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _check_plan(given: Mapping[str, Any]) -> None:
    if more := sorted(given.keys() - {"tp_plan"}):
        raise InputError(f"{', '.join(more)} and tp_plan: a plan cuts every layer alike; leave them out")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise InputError(
            "tp_plan needs processes that share the model: start them with `torchrun --nproc-per-node N script.py`"
        )


def below(options: Mapping[str, Any], prefix: str, held: Collection[str]) -> dict[str, Any]:
    """The same options for a model without its head and without some layers: `held` are its modules and tensors."""
    found = dict(options)
    for option in ("device_map", "tp_plan"):
        if isinstance(named := options.get(option), Mapping):
            short = {name.removeprefix(prefix) if name != prefix.rstrip(".") else "": to for name, to in named.items()}
            # a plan's names hold `*` for the numbers of layers
            found[option] = {name: to for name, to in short.items() if any(fnmatchcase(one, name) for one in held)}
    if found.get("tp_plan") == {}:
        matrices = [prefix + name.removesuffix(".weight") for name in held if name.endswith(".weight")]
        raise InputError(
            f"tp_plan names {_listed(sorted(options['tp_plan']))}, and the part of the model that is loaded has none "
            f"of them: name modules of it ({_listed(matrices)}), or give tp_plan='auto'"
        )
    return found
