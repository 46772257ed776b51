"""What of a layer makes its query-key kernels: the projections of queries and keys, and the norm in front of them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InputError
from interp.offload import here


class KernelShape(NamedTuple):
    """Sizes of a model's kernels: layers in memory, query heads, groups of keys, widths of the stream and of a head."""

    layers: int
    heads: int
    groups: int
    d: int
    e: int


class Projections(NamedTuple):
    """One layer's: q = x W_Q + b_Q, k = x W_K + b_K, where x = γ x̂ + β; what a model does not have is `None`."""

    q: Float[Tensor, "h d e"]
    k: Float[Tensor, "g d e"]
    b_q: Float[Tensor, "h e"] | None
    b_k: Float[Tensor, "g e"] | None
    scale: float
    """What q · k is multiplied by."""
    gain: Float[Tensor, " d"] | None = None
    """γ of the norm that queries and keys read; `None` where they read the stream itself."""
    norm_bias: Float[Tensor, " d"] | None = None
    """β of a LayerNorm."""
    centred: bool = False
    """Whether x̂ is centred."""


def weight_of(module: nn.Module, path: str) -> tuple[Float[Tensor, "out d"], Float[Tensor, " out"] | None]:
    """Matrix (outputs first) and bias of a linear module; refuses one whose weights are no plain numbers."""
    kind = type(module).__name__
    if inside := [name for name, _ in module.named_children() if name != "parametrizations"]:
        raise InputError(
            f"{path} is of type {kind}, which adds to its matrix what other modules hold ({', '.join(inside)}): merge "
            "adapters into the model first"
        )
    weight, bias = here(module, "weight"), here(module, "bias")
    sizes = [getattr(module, name, None) for name in ("out_features", "in_features")]
    if kind == "Conv1D" and weight is not None:  # GPT-2 keeps inputs first
        weight = weight.T
        sizes = list(weight.shape)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2 or list(weight.shape) != sizes:
        held = "no weight" if weight is None else f"a weight of dtype {weight.dtype} and shape {tuple(weight.shape)}"
        raise InputError(
            f"{path} is a {kind} with {held}: kernels are read from plain linear modules. Load the model without "
            "quantisation; its operating interaction can be measured as it is"
        )
    if weight.dtype.itemsize < 2:
        raise InputError(
            f"{path} holds {weight.dtype} numbers, which mean nothing without their scales: load the model unquantised"
        )
    if not weight.isfinite().all() or (bias is not None and not bias.isfinite().all()):
        raise InputError(f"{path} holds NaN or infinite weights: a kernel of them has no spectrum")
    return weight.to(torch.promote_types(weight.dtype, torch.float32)), bias
