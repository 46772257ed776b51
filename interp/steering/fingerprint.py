"""Which weights a steering was fitted on: a short, cheap fingerprint that survives a change of name and of precision.

    fingerprint(model, blocks=n) = sha256( architecture, embedding, blocks 0 .. n-1 )

Of every parameter: its name below its block, its shape, and up to 2048 values at even distances, the first and the last
among them, rounded to bfloat16. So the same weights under another name or path, in float32 or bfloat16, loaded with
fewer layers (`upto`) or without the head have the same fingerprint; other weights, another architecture or a tune that
moves any sampled value by more than bfloat16's rounding have not. Weights of other precisions (float16, quantised) are
other weights. It notices mistakes; it is no defence against someone who wants to be mistaken.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from interp.anatomy import module_at
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Point, Site

SAMPLES = 2048
_NUMBERS = (
    "family d_model n_heads n_kv_heads d_head d_mlp d_vocab norm norm_eps gated parallel rotary attn_cap windows"
).split()


def fingerprint(model: HookedModel, *, blocks: int | None = None) -> str:
    """sha256 in hexadecimal of the embedding and the first `blocks` layers (by default all that are loaded)."""
    loaded = model.loaded_layers
    n = loaded if blocks is None else blocks
    if not 0 <= n <= loaded:
        raise InputError(f"fingerprint of {n} layers: {model.name} has {loaded} of {model.cfg.n_layers} loaded")
    sha = hashlib.sha256(repr([getattr(model.cfg, name) for name in _NUMBERS]).encode())
    body = model.anatomy.body(model.hf)
    parts = [module_at(body, model.anatomy.embed), *list(model.anatomy.blocks(model.hf))[:n]]
    for number, part in enumerate(parts):
        _add(sha, number, part)
    return sha.hexdigest()


def _add(sha: Any, number: int, part: nn.Module) -> None:
    for name, parameter in sorted(part.named_parameters()):
        sha.update(f"{number}|{name}|{tuple(parameter.shape)}|".encode())
        sha.update(_sample(name, parameter.detach()).view(torch.uint8).numpy().tobytes())


def _sample(name: str, parameter: Tensor) -> Tensor:
    if parameter.device.type == "meta":
        raise InputError(
            f"{name} is not in memory (offloaded), so its model cannot be told from others; use force=True"
        )
    flat = parameter.reshape(-1)
    n = len(flat)
    if n > SAMPLES:
        flat = flat[torch.linspace(0, n - 1, SAMPLES, dtype=torch.float64, device=flat.device).round().long()]
    return (flat.to(torch.bfloat16) if flat.is_floating_point() else flat).cpu().contiguous()


def reach(model: HookedModel, sites: Iterable[Site]) -> int:
    """How many layers the activations at `sites` depend on."""
    n = 0
    for site in sites:
        if site.point is Point.LN_FINAL:
            return model.cfg.n_layers
        if site.layer is not None:
            n = max(n, site.layer if site.point is Point.RESID_PRE else site.layer + 1)
    return n


def identity(model: HookedModel, sites: Iterable[Site]) -> dict[str, Any]:
    """Provenance of what was fitted at `sites`: name, revision and weights of the model, and what ran."""
    blocks = reach(model, sites)
    return {
        "model": model.name,
        "revision": model.revision,
        "weights": {"sha256": fingerprint(model, blocks=blocks), "blocks": blocks},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages a fit depends on."""
    found = {"python": platform.python_version()}
    for name in ("midlens", "torch", "transformers"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
