"""What a model folder has to be before transformers reads it: nothing in it runs, leaves it, or asks for the absurd.

A model folder may come from anyone. transformers would load pickled weights, ask at a terminal whether to run code that
the folder brings, follow `adapter_config.json` and shard names to other places, fetch kernels that the config names,
and allocate whatever the config's numbers multiply to. Here

- weights are safetensors; pickles are refused, or with `trust_pickle=True` opened for tensors only;
- code (`auto_map`) never runs: a model that needs its own is loaded by its user and given to `HookedModel.wrap`;
- names of shards are names of files in the folder;
- layers and parameters are held against the weight files before anything is allocated.

What is not looked at: the values of weights, and links of the file system, which the hub's cache is made of.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from interp.errors import InputError
from interp.sealing import beyond_memory, plain_name
from interp.typed import read_object

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MOST_LAYERS = 2000
_MOST = 2**31
_COUNTS = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size")
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_WRAP = "load it yourself with transformers and give it to HookedModel.wrap"


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """`config.json`, once nothing in it leads to code or to other files."""
    path = folder / "config.json"
    settings = read_object(path, "model")
    if not isinstance(settings.get("model_type"), str):
        raise InputError(f"{path}: model_type is {settings.get('model_type')!r:.80}, expected a text such as 'llama'")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} holds an adapter (adapter_config.json), which leads to a model elsewhere: merge it into its "
            f"model, or {_WRAP}"
        )
    if "transformers_weights" in settings:
        raise InputError(f"{path} names its own weight file (transformers_weights), which is not followed; {_WRAP}")
    for key in ("attn_implementation", "_attn_implementation"):
        if (value := settings.get(key)) is not None and value not in _ATTENTIONS:
            raise InputError(
                f"{path}: {key} is {value!r:.80}, which may be code on the hub; expected one of "
                f"{', '.join(_ATTENTIONS)}"
            )
    return settings


def refuse_code(settings: Mapping[str, Any], name: str, known: Iterable[str]) -> None:
    """Refuse a model that brings its own code, of a kind that transformers has none for."""
    if settings.get("auto_map") and settings["model_type"] not in known:
        raise InputError(
            f"{name} brings code of its own (auto_map in its config.json), which is never run here. If you trust "
            f"whoever wrote it, {_WRAP}"
        )


def check_counts(config: Any, name: str) -> None:
    """Refuse numbers of layers, widths and tokens that no model has."""
    for key in _COUNTS:
        value, most = getattr(config, key, 1), MOST_LAYERS if key == "num_hidden_layers" else _MOST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise InputError(f"the config of {name}: {key} is {value!r:.80}, expected a whole number from 1 to {most}")
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and (method := _method(quantised)) not in _quantisers():
        raise InputError(
            f"the config of {name}: the weights are quantised by {method!r:.80}, which is not known; known: "
            f"{', '.join(sorted(_quantisers()))}"
        )


def _method(quantised: Any) -> Any:
    found = (
        quantised.get("quant_method") if isinstance(quantised, Mapping) else getattr(quantised, "quant_method", None)
    )
    found = getattr(found, "value", found)
    return found if isinstance(found, str) else repr(found)


def _quantisers() -> tuple[str, ...]:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return tuple(AUTO_QUANTIZATION_CONFIG_MAPPING)


def check_layers(n_layers: int, n_tensors: int, folder: Path) -> None:
    """Refuse a config with more layers than there are tensors, before that many are built."""
    if n_layers > n_tensors:
        raise InputError(
            f"the config.json in {folder} speaks of {n_layers:,} layers, but its weights are {n_tensors:,} tensors; "
            "do the two belong together?"
        )


def check_size(empty: nn.Module, stored: int, folder: Path, *, in_parts: bool = False) -> None:
    """Refuse a model (on the meta device) far larger than its weight files of `stored` bytes.

    Unless it is loaded `in_parts` (on several devices, on disk), they are held against this machine's memory too.

    One bit a weight is the least that any format takes: a factor of 8, and as much again for what is not stored.
    """
    wanted = sum(x.numel() for x in empty.parameters()) + sum(x.numel() for x in empty.buffers())
    if wanted > 16 * stored + 2**20:
        raise InputError(
            f"the config.json in {folder} speaks of {wanted:,} parameters, but its weight files hold {stored:,} bytes; "
            "do the two belong together?"
        )
    if not in_parts:
        beyond_memory(stored, f"the model in {folder}")


def weight_files(folder: Path, *, trust_pickle: bool) -> list[Path]:
    """The files of a folder that hold its weights; pickles only if trusted."""
    if found := sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter")):
        return found
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if trust_pickle and pickles:
        for index in folder.glob("*.bin.index.json"):
            shard_names(index)
        return pickles
    if pickles:
        raise InputError(
            f"the weights in {folder} are pickles ({pickles[0].name}), and opening a pickle can run any program hidden "
            "in it; expected safetensors. If you trust whoever made them, pass trust_pickle=True (they are then opened "
            f"for tensors only, weights_only), or {_WRAP}"
        )
    raise InputError(
        f"{folder} holds no weights: expected model.safetensors, or shards and a model.safetensors.index.json"
    )


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> shard file, as an index says; every one a file beside it."""
    try:
        found = read_object(index, "model")["weight_map"]
        if not isinstance(found, dict):
            raise TypeError(f"weight_map is a {type(found).__name__}")
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged ({type(error).__name__}: {error}); fetch it again") from error
    for shard in set(map(json.dumps, found.values())):
        name = json.loads(shard)
        if not plain_name(name):
            raise InputError(
                f"{index} leads to {name!r:.80}, which is no file beside it; an index that leads out of its folder is "
                "not followed"
            )
        if index.name.endswith(".safetensors.index.json") and not name.endswith(".safetensors"):
            raise InputError(f"{index} leads to {name!r:.80}, expected names of safetensors files")
    return found
