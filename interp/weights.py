"""Only the weights a run needs: fetching the shards that hold them, and reading those tensors and no other.

A truncated model is the family's base class (no head) built from the config cut to its first layers; its parameter
names say which tensors of the checkpoint are read. Checkpoints name them with or without the base model's prefix
(`model.layers.0...`, `h.0...`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import InputError
from interp.quiet import quiet_transformers

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def fetch(hub_id: str, *, weights: bool, files: list[str] | None = None) -> tuple[Path, str | None]:
    """Fetch a hub repository's small files and all (`weights`) or some (`files`) of its weights: folder and commit."""
    from huggingface_hub import errors

    patterns = _SMALL_FILES + (["*.safetensors"] if weights else files or [])
    page = f"https://huggingface.co/{hub_id}"
    try:
        folder = Path(snapshot(hub_id, patterns))
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
    return folder, folder.name


def snapshot(hub_id: str, patterns: list[str]) -> str:
    """The hub's files that match, in the local cache: the one function here that reaches the network."""
    from huggingface_hub import snapshot_download

    return snapshot_download(hub_id, allow_patterns=patterns)


def truncated_config(config: Any, keep: int) -> Any:
    """A copy of the config for the first `keep` layers."""
    settings = config.to_dict()
    settings[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = keep
    if settings.get("layer_types") is not None:
        settings["layer_types"] = settings["layer_types"][:keep]
    return type(config).from_dict(settings)


def load_partial(folder: Path, config: Any, keep: int, dtype: torch.dtype, *, hub_id: str | None = None) -> nn.Module:
    """The base model of the first `keep` layers, without head, from a folder (or the hub's) safetensors."""
    from transformers import AutoModel

    short = truncated_config(config, keep)
    with quiet_transformers():
        with torch.device("meta"):
            empty = AutoModel.from_config(short)
        wanted = [name for name, _ in empty.named_parameters()] + _persistent_buffers(empty)
        prefix = f"{empty.base_model_prefix}."
        shards = _shards(folder, hub_id)
        held = {name.removeprefix(prefix): (name, shard) for name, shard in shards.items()}
        if missing := [name for name in wanted if name not in held]:
            raise InputError(
                f"the checkpoint in {folder} lacks {len(missing)} tensors, the first of them {missing[0]!r}"
            )
        if hub_id is not None:
            folder, _ = fetch(hub_id, weights=False, files=sorted({held[name][1] for name in wanted}))
        state = _read(folder, {name: held[name] for name in wanted})
        return type(empty).from_pretrained(None, config=short, state_dict=state, dtype=dtype)


def _persistent_buffers(model: nn.Module) -> list[str]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in parameters]


def _shards(folder: Path, hub_id: str | None) -> dict[str, str]:
    """Tensor name -> shard file, from the index, or from the only file there is."""
    from safetensors import safe_open

    if (folder / _INDEX).is_file():
        return json.loads((folder / _INDEX).read_text())["weight_map"]
    if not (folder / _SINGLE).is_file() and hub_id is not None:
        folder, _ = fetch(hub_id, weights=False, files=[_SINGLE])
    if not (folder / _SINGLE).is_file():
        raise InputError(f"{folder} holds neither {_INDEX} nor {_SINGLE}; loading a part of a model needs safetensors")
    with safe_open(str(folder / _SINGLE), framework="pt") as file:
        return dict.fromkeys(file.keys(), _SINGLE)


def _read(folder: Path, wanted: dict[str, tuple[str, str]]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    for shard in sorted({shard for _, shard in wanted.values()}):
        with safe_open(str(folder / shard), framework="pt") as file:
            for name, (stored, home) in wanted.items():
                if home == shard:
                    state[name] = file.get_tensor(stored)
    return state
