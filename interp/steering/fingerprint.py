"""Which weights a steering was fitted on: a short, cheap fingerprint that survives a change of name and of precision.

    fingerprint(model, blocks=n) = sha256( architecture, embeddings, blocks 0 .. n-1 )

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
from interp.offload import here
from interp.sites import Point, Site

SAMPLES = 2048
_NUMBERS = (
    "family d_model n_heads n_kv_heads d_head d_mlp d_vocab norm norm_eps gated parallel rotary attn_cap windows"
).split()


def fingerprint(model: HookedModel, *, blocks: int | None = None) -> str:
    """sha256 in hexadecimal of the embeddings and the first `blocks` layers (by default all that are loaded)."""
    loaded = model.loaded_layers
    n = loaded if blocks is None else blocks
    if not 0 <= n <= loaded:
        raise InputError(f"fingerprint of {n} layers: {model.name} has {loaded} of {model.cfg.n_layers} loaded")
    sha = hashlib.sha256(repr([getattr(model.cfg, name) for name in _NUMBERS]).encode())
    anatomy = model.anatomy
    body, layers = anatomy.body(model.hf), list(anatomy.blocks(model.hf))
    above = {id(parameter) for part in (*layers, anatomy.ln_final(model.hf)) for parameter in part.parameters()}
    above |= {id(parameter) for parameter in head.parameters()} if (head := anatomy.unembed(model.hf)) else set()
    above -= {
        id(parameter) for parameter in module_at(body, anatomy.embed).parameters()
    }  # a tied head is the embedding
    _add(sha, -1, body, above)
    for number, layer in enumerate(layers[:n]):
        _add(sha, number, layer, set())
    return sha.hexdigest()


def _add(sha: Any, number: int, part: nn.Module, left_out: set[int]) -> None:
    for path, module in sorted(part.named_modules()):
        for name, parameter in sorted(module.named_parameters(recurse=False)):
            if id(parameter) not in left_out:
                sha.update(f"{number}|{path}.{name}|{tuple(parameter.shape)}|".encode())
                sha.update(_sample(module, name).view(torch.uint8).numpy().tobytes())


def _sample(module: nn.Module, name: str) -> Tensor:
    value = here(module, name)
    assert value is not None
    flat = value.detach().reshape(-1)
    if len(flat) > SAMPLES:
        flat = flat[torch.linspace(0, len(flat) - 1, SAMPLES, dtype=torch.float64, device=flat.device).round().long()]
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
