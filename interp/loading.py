"""Models by name: a preset, a hub id, a local folder or a GGUF file, whole or only up to one site.

    load_hf("smollm2-135m", upto=Site.parse("resid_post.15"))  ->  Loaded(hf = 16 blocks without head, ...)

With `upto`, the layers above the site, the final norm and the head are neither allocated nor read (`interp.weights`).
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import SafetensorError
from torch import nn

from interp.errors import InputError
from interp.gguf_cache import dequantised, packaged_gguf
from interp.model_folder import (
    check_counts,
    read_settings,
    refuse_code,
)
from interp.placement import Placing, load_options, refuse_tied
from interp.precision import default_dtype
from interp.presets import PRESETS, Preset
from interp.quiet import quiet_transformers
from interp.sites import Point, Site
from interp.weights import built_empty, checked_weights, fetch, folder_revision, load_partial, wrong_shape

SUPPORTED = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
}
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Loaded:
    """A Hugging Face model with what is known about where it came from; `n_layers` counts the full model's blocks."""

    hf: nn.Module
    tokenizer: Any
    name: str
    revision: str | None
    preset: Preset | None
    n_layers: int


@dataclass(frozen=True)
class _Source:
    """Where a name leads: a folder on this disk, or a hub id to fetch from."""

    folder: Path | None
    hub_id: str | None
    revision: str | None


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """`"bfloat16"`, `"bf16"`, `torch.bfloat16` or None (choose for me)."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    raise InputError(f"{dtype!r} is no dtype this can compute in; use one of {', '.join(_DTYPES)}")


def parse_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; `None`: CUDA where there is one."""
    try:
        where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # a backend may be a package
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used here ({reason}); expected cpu, cuda, cuda:1 …"
        ) from error
    return where


def load_hf(
    name: str | Path,
    *,
    upto: Site | str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_pickle: bool = False,
    **placing: Unpack[Placing],
) -> Loaded:
    """Load a model and its tokenizer, in eval mode.

    `name` is a preset, a hub id, a local folder or a .gguf file. `upto` stops loading at a site. `device` defaults to
    CUDA where there is one, `dtype` to bfloat16 where the device multiplies it, else float32 (`interp.precision`).
    Pickled weights are refused without `trust_pickle`, and then opened for tensors only; code is never run. `placing`
    puts the model's parts in several places (`interp.placement`).
    """
    options = load_options(placing, device)
    preset = PRESETS.get(str(name))
    where = parse_device(device)
    number_type = parse_dtype(dtype) or default_dtype(where)
    source = _resolve(str(name), preset)
    folder, revision = source.folder, source.revision
    if folder is None:
        assert source.hub_id is not None
        folder = fetch(source.hub_id)
        revision = folder.name
    config = _read_config(folder, str(name))
    n_layers = config.num_hidden_layers
    keep = None if upto is None else layers_needed(Site.parse(upto), n_layers)
    if source.hub_id is not None and keep is None:
        folder = fetch(source.hub_id, weights=True, revision=revision, trust_pickle=trust_pickle)
    if keep is None:
        hf = _load_whole(folder, config, number_type, options, trust_pickle=trust_pickle)
    else:
        hf = load_partial(folder, config, keep, number_type, hub_id=source.hub_id, options=options)
    tokenizer = _load_tokenizer(folder)
    return Loaded((hf if options else hf.to(where)).eval(), tokenizer, str(name), revision, preset, n_layers)


def sketch_hf(name: str | Path, *, dtype: torch.dtype = torch.float32) -> Loaded:
    """The whole model on the meta device, with its tokenizer: shapes without numbers, from the config alone."""
    from transformers import AutoModelForCausalLM

    preset = PRESETS.get(str(name))
    source = _resolve(str(name), preset)
    folder = source.folder or fetch(str(source.hub_id))
    config = _read_config(folder, str(name))
    hf = built_empty(AutoModelForCausalLM, config, folder, dtype=dtype)
    revision = source.revision if source.hub_id is None else folder.name
    return Loaded(hf.eval(), _load_tokenizer(folder), str(name), revision, preset, config.num_hidden_layers)


def layers_needed(site: Site, n_layers: int) -> int:
    """How many blocks a run up to this site needs: N for resid_pre.N, N+1 inside block N, none for embed."""
    if site.layer is None:
        return 0 if site.point is Point.EMBED else n_layers
    if site.layer >= n_layers:
        raise InputError(f"site {site} does not exist: the model has {n_layers} layers, 0 to {n_layers - 1}")
    return site.layer + (site.point is not Point.RESID_PRE)


def _resolve(name: str, preset: Preset | None) -> _Source:
    if preset is not None and preset.package is not None:
        return _from_gguf(packaged_gguf(preset.package))
    if preset is not None:
        return _Source(None, preset.hub_id, None)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}; expected a GGUF model file")
        return _from_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {path} holds no model: expected a config.json beside its weights in it")
        return _Source(path, None, folder_revision(path))
    if path.exists():
        raise InputError(f"{path} is a file, but no .gguf; expected a model folder with a config.json, or a GGUF file")
    return _Source(None, _hub_id(name), None)


def _from_gguf(path: Path) -> _Source:
    folder, digest = dequantised(path)
    return _Source(folder, None, f"gguf-sha256:{digest}")


def _hub_id(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"{name!r} is no model: there is no such folder or file, it is no hub id (owner/name), and the presets are "
            f"{', '.join(PRESETS)}"
        ) from error
    return name


def _read_config(folder: Path, name: str) -> Any:
    from transformers import AutoConfig

    families = ", ".join(f"{title} ({kind})" for kind, title in SUPPORTED.items())
    try:
        settings = read_settings(folder, name)
    except InputError as error:
        raise InputError(f"the config of {name} could not be read: {error}. Supported: {families}") from None
    refuse_code(settings, name, SUPPORTED)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # each family checks its own fields, and raises errors of many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the config of {name} could not be read: {reason:.300}. Supported: {families}") from error
    if config.model_type not in SUPPORTED:
        raise InputError(f"{name} is a {config.model_type!r:.80} model, which is not supported. Supported: {families}")
    check_counts(config, name)
    return config


def _load_whole(
    folder: Path, config: Any, dtype: torch.dtype, options: Mapping[str, Any], *, trust_pickle: bool
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    refuse_tied(options, config)
    pickled = checked_weights(AutoModelForCausalLM, config, folder, trust_pickle=trust_pickle, options=options)
    with quiet_transformers():
        try:
            whole: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
                trust_remote_code=False, use_safetensors=not pickled, weights_only=True,
                **options,
            )  # fmt: skip
        except (OSError, ValueError, SafetensorError, MemoryError, ImportError, pickle.UnpicklingError) as error:
            raise InputError(f"the weights in {folder} could not be loaded: {error}") from error
    model, info = whole
    # Where a tensor is missing or of another shape, transformers would go on with random numbers.
    if odd := sorted(info["mismatched_keys"]):
        raise wrong_shape(folder, *odd[0])
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"the checkpoint in {folder} lacks {len(missing)} of the model's tensors, the first of them {missing[0]!r}"
        )
    return model


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return None  # a folder of weights alone is still a model
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"the tokenizer in {folder} could not be read ({reason:.300}); code that a tokenizer brings "
                "(auto_map) is never run here. Repair its files, or take them out to load the weights alone"
            ) from error
