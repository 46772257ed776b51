"""saprmarks/dictionary_learning: `config.json` and `ae.pt`, a pickled state dict; one class per architecture.

| class | encodes | here |
|---|---|---|
| AutoEncoder | relu((x - bias) E^T + e) | standard; rows made units, codes times their norms, as its loader does |
| AutoEncoderNew | relu(x E^T + e) | standard |
| AutoEncoderTopK | k largest relu((x - b_dec) E^T + e) | topk; its threshold is not used |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | relu(...) > threshold, one number | jumprelu with a constant threshold |
| JumpReluAutoEncoder | x W_enc + b_enc > threshold, nothing subtracted | jumprelu |
| GatedAutoEncoder | gate and magnitude share E | gated |

A threshold of -1 means that training never estimated it (it begins at step 1,000); such an SAE has no form for
inference and is refused. `ae.safetensors` with the same tensors is read in place of `ae.pt` where it lies beside it.
"""

from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from saes.interop.files import Origin, fitting, setting
from saes.sae import SAE, fold_decoder_norm

CONFIG, PICKLE, SAFE = "config.json", "ae.pt", "ae.safetensors"
_ENCODER = {"encoder.weight": "f d", "encoder.bias": "f", "decoder.weight": "d f"}
_PLAIN = {"W_enc": "d f", "b_enc": "f", "W_dec": "f d", "b_dec": "d"}
_GATED = {"encoder.weight": "f d", "decoder.weight": "d f", "decoder_bias": "d"}
_CHOSEN = {"k": "", "threshold": ""}
_CLASSES: dict[str, dict[str, str]] = {
    "AutoEncoder": _ENCODER | {"bias": "d"},
    "AutoEncoderNew": _ENCODER | {"decoder.bias": "d"},
    "AutoEncoderTopK": _ENCODER | {"b_dec": "d", "k": "", "threshold?": ""},
    "BatchTopKSAE": _ENCODER | {"b_dec": "d"} | _CHOSEN,
    "MatryoshkaBatchTopKSAE": _PLAIN | _CHOSEN | {"group_sizes": "groups"},
    "JumpReluAutoEncoder": _PLAIN | {"threshold": "f"},
    "GatedAutoEncoder": _GATED | {"r_mag": "f", "gate_bias": "f", "mag_bias": "f"},
}
_NAMES = {
    "encoder.bias": "b_enc", "bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}  # fmt: skip


def read(origin: Origin) -> SAE:
    """Read one trainer's folder."""
    where, about = f"{origin.folder / CONFIG}", origin.json(CONFIG)
    trainer = setting(about, "trainer", dict, where)
    name = trainer.get("dict_class")
    if name not in list(_CLASSES):
        raise InputError(f"{where}: dict_class is {name!r:.80}, only {', '.join(_CLASSES)} can be loaded")
    file = origin.weights(SAFE, PICKLE)
    d, f = setting(trainer, "activation_dim", int, where), setting(trainer, "dict_size", int, where)
    raw = fitting(origin.tensors(file), _CLASSES[name], f"{origin.folder / file}", d=d, f=f)
    weights = _renamed(raw)
    metadata = _metadata(about, name)
    match name:
        case "AutoEncoder":
            return origin.build(fold_decoder_norm(weights), architecture="standard", metadata=metadata, subtract=True)
        case "AutoEncoderNew":
            return origin.build(weights, architecture="standard", metadata=metadata)
        case "AutoEncoderTopK":
            k = _k(raw, trainer, where)
            return origin.build(weights, architecture="topk", k=k, metadata=metadata, subtract=True)
        case "GatedAutoEncoder":
            return origin.build(weights, architecture="gated", metadata=metadata, subtract=True)
        case "JumpReluAutoEncoder":
            return origin.build(weights | {"threshold": raw["threshold"]}, architecture="jumprelu", metadata=metadata)
    weights["threshold"] = torch.full((f,), _threshold(raw, f"{origin.folder / file}"))
    metadata["k"] = _k(raw, trainer, where)
    return origin.build(weights, architecture="jumprelu", metadata=metadata, subtract=True)


def _renamed(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an SAE under SAELens's names and in its orientation; the rest is left out."""
    turned = {"W_enc": raw["encoder.weight"].T, "W_dec": raw["decoder.weight"].T} if "encoder.weight" in raw else {}
    kept = {name: raw[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "r_mag") if name in raw}
    return turned | kept | {new: raw[old] for old, new in _NAMES.items() if old in raw}


def _k(raw: dict[str, Tensor], trainer: dict[str, Any], where: str) -> int:
    k, asked = int(raw["k"].item()), trainer.get("k")
    if asked is not None and asked != k:
        raise InputError(f"{where}: k is {asked}, but the weights were saved with k = {k}; they do not belong together")
    return k


def _threshold(raw: dict[str, Tensor], where: str) -> float:
    threshold = raw["threshold"].item()
    if threshold < 0:
        raise InputError(
            f"{where}: the threshold is {threshold:g}, so training ended before it was estimated. Without it a "
            "BatchTopK SAE cannot encode single tokens; train it further"
        )
    return threshold


def _metadata(about: dict[str, Any], name: str) -> dict[str, Any]:
    """The site is the residual stream of `layer` unless the submodule's own name says something else."""
    trainer, buffer = about["trainer"], about.get("buffer")
    buffer = buffer if isinstance(buffer, dict) else {}
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    stream = isinstance(layer, int) and (not module or "resid_post" in str(module)) and buffer.get("io", "out") == "out"
    trained = {
        "AutoEncoderTopK": "topk",
        "BatchTopKSAE": "batchtopk",
        "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk",
        "JumpReluAutoEncoder": "jumprelu",
        "GatedAutoEncoder": "gated",
    }
    return {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{layer}.hook_resid_post" if stream else None,
        "submodule_name": module,
        "context_size": buffer.get("ctx_len"),
        "training_architecture": trained.get(name, "standard"),
    }
