"""The models of a survey: by name, by folder, or already in memory; encoders as far as their weights go.

Five models are named in accounts of "The Routing and Filtering Structure of Attention" (arXiv 2605.18826) or follow
from its head count of 1,776: 144 + 384 + 720 + 384 + 144. Which five they were is inferred, not known.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from interp.attention.encoder import encoder_shape, is_encoder
from interp.errors import InputError
from interp.loading import parse_device, parse_dtype
from interp.model import HookedModel
from interp.model_folder import check_counts, read_settings
from interp.presets import PRESETS
from interp.quiet import quiet_transformers
from interp.weights import checked_weights, fetch

FIVE = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "pythia-410m": "EleutherAI/pythia-410m",
    "bert-base": "google-bert/bert-base-uncased",
}
"""Short names of the five, as hub ids; presets have names of their own."""
NO_PASSES = "an encoder attends both ways, and only passes of causal models are recorded here: weights alone"

Model = HookedModel | nn.Module


def open_model(name: str, *, dtype: str | None = None, device: str | None = None) -> Model:
    """A `HookedModel`, or the bare module of an encoder."""
    source = name if name in PRESETS or Path(name).is_dir() else FIVE.get(name, name)
    if (found := _encoder(source)) is not None:
        return _open_encoder(*found, dtype, device)
    return HookedModel.load(source, dtype=dtype, device=device)


def name_of(model: Model) -> str:
    """What a model in memory is called in tables."""
    if isinstance(model, HookedModel):
        return model.name
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__


def family_of(model: Model) -> str:
    """Its `model_type`."""
    hf = model.hf if isinstance(model, HookedModel) else model
    return str(getattr(getattr(hf, "config", None), "model_type", type(hf).__name__))


def shape_of(model: Model) -> dict[str, int]:
    """Layers in memory, heads, groups of keys, and widths; also of models whose kernels are refused."""
    if not isinstance(model, HookedModel) and is_encoder(model):
        return dict(encoder_shape(model)._asdict())
    model = as_runnable(model)
    spec = model.cfg
    sizes = (model.loaded_layers, spec.n_heads, spec.n_kv_heads, spec.d_model, spec.d_head)
    return dict(zip(("layers", "heads", "groups", "d", "e"), sizes, strict=True))


def as_runnable(model: Model) -> HookedModel:
    """A model that can be run, or the reason why this one cannot."""
    if not isinstance(model, HookedModel):
        if is_encoder(model):
            raise InputError(NO_PASSES)
        return HookedModel.wrap(model)
    return model


def _encoder(source: str) -> tuple[Path, str | None] | None:
    """Folder (and hub id) of an encoder's config; `None` for everything else, which has error messages of its own."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(source).expanduser()
    if source in PRESETS or path.is_file() or path.suffix == ".gguf":
        return None
    hub_id = None if path.is_dir() else source
    if hub_id is not None:
        try:
            validate_repo_id(hub_id)
        except HFValidationError:
            return None
        path = fetch(hub_id)
    try:
        known = read_settings(path, source).get("model_type") == "bert"
    except (OSError, InputError):
        return None  # said in words where a model of any other kind is loaded
    return (path, hub_id) if known else None


def _open_encoder(folder: Path, hub_id: str | None, dtype: str | None, device: str | None) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    if hub_id is not None:
        folder = fetch(hub_id, weights=True, revision=folder.name)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # each family checks its own fields, and raises errors of many kinds
            raise InputError(
                f"the config in {folder} could not be read: {' '.join(str(error).split()):.300}"
            ) from error
    check_counts(config, str(folder))
    checked_weights(AutoModel, config, folder)
    with quiet_transformers():
        try:
            whole: Any = AutoModel.from_pretrained(
                str(folder),
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=parse_dtype(dtype) or torch.float32,
                output_loading_info=True,
                add_pooling_layer=False,
            )
        except (OSError, ValueError, SafetensorError, MemoryError) as error:
            raise InputError(f"the weights in {folder} could not be loaded: {error}") from error
    model, info = whole
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"the checkpoint in {folder} lacks {len(missing)} tensors, the first of them {missing[0]!r}")
    return model.to(parse_device(device)).eval()
