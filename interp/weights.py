"""Only the weights a run needs: fetching the shards that hold them, and reading those tensors and no other.

A truncated model is the family's base class (no head) built from the config cut to its first layers; its parameter
names say which tensors of the checkpoint are read. Checkpoints name them with or without the base model's prefix
(`model.layers.0...`, `h.0...`). Where layers are left out, so is the final norm, and the identity stands in its place.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from interp.errors import InputError
from interp.model_folder import check_layers, check_size, shard_names, weight_files
from interp.placement import below, refuse_gaps
from interp.quiet import quiet_transformers
from interp.sealing import beyond_memory

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_FINAL_NORMS = {"norm", "ln_f", "final_layer_norm"}
_WEIGHTS = "model*.safetensors"  # some repositories hold a second copy, consolidated.safetensors
_PICKLED = "pytorch_model*.bin"
_LOOKS, _LOOK = 64, 64 << 10
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def fetch(
    hub_id: str,
    *,
    weights: bool = False,
    files: Iterable[str] = (),
    revision: str | None = None,
    trust_pickle: bool = False,
) -> Path:
    """Fetch a hub repository's small files and all (`weights`) or some (`files`) of its weights.

    Pickled weights are fetched with `trust_pickle` only, and only where there are no others.

    The folder returned is named after the commit.
    """
    folder = _fetched(hub_id, [*_SMALL_FILES, *files, *([_WEIGHTS] if weights else [])], revision)
    if trust_pickle and weights and not any(folder.glob(_WEIGHTS)):
        folder = _fetched(hub_id, [*_SMALL_FILES, _PICKLED], folder.name)
    return folder


def _fetched(hub_id: str, patterns: list[str], revision: str | None) -> Path:
    """The snapshot's folder; what hinders it said in words."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub_id}"
    try:
        folder = Path(snapshot(hub_id, patterns, revision))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{hub_id} is gated: accept its licence on {page}, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model {hub_id!r} that you can see; check the spelling, and for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{hub_id} is not in the local cache and could not be fetched from the hub ({type(error).__name__}); "
            "connect to the network, or name a local folder or GGUF file"
        ) from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{page} holds no config.json, so it is no transformers model; name another repository")
    return folder


def snapshot(hub_id: str, patterns: list[str], revision: str | None) -> str:
    """The hub's files that match, in the local cache: the one function here that reaches the network."""
    from huggingface_hub import snapshot_download

    return snapshot_download(hub_id, allow_patterns=patterns, revision=revision)


def truncated_config(config: Any, keep: int) -> Any:
    """A copy of the config for the first `keep` layers."""
    settings = config.to_dict()
    settings[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = keep
    if settings.get("layer_types") is not None:
        settings["layer_types"] = settings["layer_types"][:keep]
    return type(config).from_dict(settings)


def built_empty(kind: Any, config: Any, folder: Path, **options: Any) -> Any:
    """The model of a config on the meta device: shapes without memory. `kind` is one of transformers' auto classes."""
    with quiet_transformers(), torch.device("meta"):
        try:
            return kind.from_config(config, trust_remote_code=False, **options)
        except Exception as error:  # numbers that do not go together fail wherever they meet
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"no model can be built from the config.json in {folder} ({reason:.300})") from error


def checked_weights(
    kind: Any, config: Any, folder: Path, *, trust_pickle: bool = False, options: Mapping[str, Any] | None = None
) -> bool:
    """Refuse weights that may run code, lead elsewhere, or cannot be those of the config; whether they are pickles.

    With the options of `interp.placement` they need not fit into this machine's memory, but all have to have a place.
    """
    named = read_index(folder)  # transformers would say nothing of a damaged one but the place of the missing comma
    files = weight_files(folder, trust_pickle=trust_pickle)
    pickled = files[0].suffix != ".safetensors"
    if not pickled:
        check_layers(config.num_hidden_layers, len(named or shards_of(folder, None)), folder)
    stored = sum(path.stat().st_size for path in files)
    empty = built_empty(kind, config, folder)
    check_size(empty, stored, folder, in_parts=bool(options))
    tensors = list(empty.state_dict())
    refuse_gaps(options or {}, tensors, {*dict(empty.named_modules()), *tensors})
    return pickled


def load_partial(
    folder: Path,
    config: Any,
    keep: int,
    dtype: torch.dtype,
    *,
    hub_id: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The base model of the first `keep` layers, without head, from a folder's (or the hub's) safetensors.

    `options` are those of `interp.placement`.
    """
    from transformers import AutoModel

    if getattr(config, "quantization_config", None):
        raise InputError(f"{folder} holds a quantised checkpoint, which cannot be loaded in part; leave `upto` out")
    stored = shards_of(folder, hub_id)
    check_layers(config.num_hidden_layers, len(stored), folder)
    with quiet_transformers():
        short = truncated_config(config, keep)
    empty = built_empty(AutoModel, short, folder)
    prefix = f"{empty.base_model_prefix}."
    if keep < config.num_hidden_layers:  # the final norm stands above every site that is left
        for name in _FINAL_NORMS & dict(empty.named_children()).keys():
            setattr(empty, name, nn.Identity())
    held = {name.removeprefix(prefix): (name, shard) for name, shard in stored.items()}
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    wanted = list(shapes)
    if missing := [name for name in wanted if name not in held]:
        raise InputError(f"the checkpoint in {folder} lacks {len(missing)} tensors, the first of them {missing[0]!r}")
    if hub_id is not None:
        folder = fetch(hub_id, files=sorted({held[name][1] for name in wanted}), revision=folder.name)
    state = _read(folder, {name: held[name] for name in wanted})
    if odd := next((name for name in wanted if state[name].shape != shapes[name]), None):
        raise wrong_shape(folder, held[odd][0], state[odd].shape, shapes[odd])
    refuse_gaps(options or {}, [prefix + name for name in wanted])
    where = below(options or {}, prefix, [*dict(empty.named_modules()), *wanted])
    with quiet_transformers():
        model = type(empty).from_pretrained(None, config=short, state_dict=state, dtype=dtype, **where)
    for name, module in empty.named_children():
        if isinstance(module, nn.Identity):
            setattr(model, name, nn.Identity())
    return model


def wrong_shape(folder: Path, name: str, found: torch.Size, expected: torch.Size) -> InputError:
    """The error for weights and a config.json that do not belong together."""
    return InputError(
        f"{name} in {folder} has the shape {tuple(found)}, but by its config.json it should be {tuple(expected)}; "
        "do the two belong together?"
    )


def shards_of(folder: Path, hub_id: str | None) -> dict[str, str]:
    """Tensor name -> shard file, from the index, or from the only file there is."""
    from safetensors import safe_open

    if indexed := read_index(folder):
        return indexed
    if not (folder / _SINGLE).is_file() and hub_id is not None:
        folder = fetch(hub_id, files=[_SINGLE], revision=folder.name)
    if not (folder / _SINGLE).is_file():
        weight_files(folder, trust_pickle=False)
        raise InputError(f"{folder} holds neither {_INDEX} nor {_SINGLE}; loading a part of a model needs safetensors")
    try:
        with safe_open(str(folder / _SINGLE), framework="pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE)
    except (OSError, SafetensorError, MemoryError) as error:
        raise InputError(f"the weight file {folder / _SINGLE} is damaged ({error}); fetch it again") from error


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> shard file, as the index says; empty where there is no index."""
    return shard_names(folder / _INDEX) if (folder / _INDEX).is_file() else {}


def _read(folder: Path, wanted: dict[str, tuple[str, str]]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    for shard in sorted({shard for _, shard in wanted.values()}):
        try:
            with safe_open(str(folder / shard), framework="pt") as file:
                names = {name: stored for name, (stored, home) in wanted.items() if home == shard}
                sizes = (math.prod(file.get_slice(stored).get_shape()) for stored in names.values())
                beyond_memory(sum(sizes), f"what is read of {folder / shard}")
                state |= {name: file.get_tensor(stored) for name, stored in names.items()}
        except (OSError, SafetensorError, MemoryError) as error:
            raise InputError(
                f"the weight file {folder / shard} is missing or damaged ({error}); fetch it again"
            ) from error
    return state


def folder_revision(folder: Path) -> str:
    """What tells a folder's model from the one it may hold tomorrow: a digest of names and sizes of its config and its
    files of weights, and of 64 blocks of 64 KiB at even distances in each. It takes no time, and is no defence against
    someone who wants to be mistaken."""
    sha = hashlib.sha256()
    weights = (path for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}") if path.is_file())
    for path in (folder / "config.json", *sorted(weights)):
        size = path.stat().st_size
        sha.update(f"|{path.name}|{size}|".encode())
        with path.open("rb") as file:
            for part in range(_LOOKS):
                file.seek(max(0, size - _LOOK) * part // (_LOOKS - 1))
                sha.update(file.read(_LOOK))
    return f"folder-sha256:{sha.hexdigest()[:16]}"
