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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, get_args

import torch

from interp.errors import InputError

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
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


def load_options(placing: Placing, device: object) -> dict[str, Any]:
    """The options of `from_pretrained` that say so; empty where the model goes to one device as a whole."""
    given = {name: value for name, value in placing.items() if value is not None}
    if unknown := sorted(given.keys() - Placing.__annotations__.keys()):
        raise InputError(f"unknown options {unknown}; expected {', '.join(Placing.__annotations__)}")
    if not given:
        return {}
    plan, places = given.get("tp_plan"), given.get("device_map")
    if (plan is None) == (places is None):
        raise InputError("give either device_map (layers on several devices) or tp_plan (each layer cut), not both")
    chosen = "device_map" if plan is None else "tp_plan"
    if device is not None:
        raise InputError(
            f"device={str(device)!r} and {chosen}: the {chosen} says where the model goes; leave device out"
        )
    if plan is not None:
        _check_plan(given)
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


def _check_plan(given: Mapping[str, Any]) -> None:
    if more := sorted(given.keys() - {"tp_plan"}):
        raise InputError(f"{', '.join(more)} and tp_plan: a plan cuts every layer alike; leave them out")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise InputError(
            "tp_plan needs processes that share the model: start them with `torchrun --nproc-per-node N script.py`"
        )


def below(options: Mapping[str, Any], prefix: str, held: Mapping[str, object]) -> dict[str, Any]:
    """The same options for a model without its head and without some layers: `held` are its modules by name."""
    places = options.get("device_map")
    if not isinstance(places, Mapping):
        return dict(options)
    named = {name.removeprefix(prefix) if name != prefix.rstrip(".") else "": to for name, to in places.items()}
    return {**options, "device_map": {name: to for name, to in named.items() if name in held}}
