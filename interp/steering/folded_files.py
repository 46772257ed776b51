"""A folded model as a Hugging Face folder that loads again as what was saved.

A Llama's output projections have no bias, and a checkpoint's bias is dropped where the configuration names none. Where
the configuration can name one (`attention_bias`, `mlp_bias`) it is switched on, and the biases that this adds to the
neighbouring projections are written as zeros: the model computes the same. Where it cannot, folding into a folder is
refused; the adapter of `interp.steering.lora` carries the bias.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.model import HookedModel
from interp.quiet import quiet_transformers
from interp.steering.fold import fold
from interp.steering.steering import Steering

_FLAGS = {"attention_bias": "attn", "mlp_bias": "mlp"}


def save_folded(model: HookedModel, steering: Steering, folder: str | Path, *, force: bool = False) -> Path:
    """Fold a copy of the model and write it with its tokenizer; refuses a family that would drop the biases."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already; give a folder of its own for the folded model")
    hf: Any = fold(model, steering, force=force).hf
    state: dict[str, Tensor] = dict(hf.state_dict())
    config = _with_biases(hf, state)
    hf.config = config
    with quiet_transformers():
        hf.save_pretrained(folder, state_dict=state)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    return folder


def _with_biases(hf: Any, state: dict[str, Tensor]) -> Any:
    """A configuration under which the model has every bias of `state`; adds zeros to `state` for those it has more."""
    config = copy.deepcopy(hf.config)
    missing = set(state) - _keys(hf, config)
    for flag, part in _FLAGS.items():
        if any(part in name for name in missing) and getattr(config, flag, None) is False:
            setattr(config, flag, True)
    keys = _keys(hf, config)
    if dropped := sorted(set(state) - keys):
        raise InputError(
            f"{type(hf).__name__} builds no {dropped[0]} when it is loaded again, so the folded model would lose its "
            "biases: write a LoRA adapter instead (--lora), or fold after loading"
        )
    like = {name.rsplit(".", 1)[0]: tensor for name, tensor in state.items() if name.endswith(".weight")}
    for name in sorted(keys - set(state)):
        state[name] = torch.zeros(like[name.removesuffix(".bias")].shape[0], dtype=hf.dtype)
    return config


def _keys(hf: Any, config: Any) -> set[str]:
    with torch.device("meta"):
        return set(type(hf)(copy.deepcopy(config)).state_dict())
