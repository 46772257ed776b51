"""Where training starts: the scale of the activations, which rows are too large to learn from, and the first weights.

    scale s = sqrt(d) / mean norm                over a sample, rows of massive norm left out
    W_dec = random unit rows,  W_enc = its transpose,  b_enc = 0
    b_dec = geometric median (or mean) of the scaled sample

Training sees s x, so that one learning rate fits every model; `unscaled` divides the biases by s at the end. TopK with
ReLU is positively homogeneous, hence exact: codes and reconstruction of the result are those of training, divided by s.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from saes.config import SAEConfig
from saes.recipe import Start
from saes.sae import SAE


@dataclass(frozen=True)
class Scaling:
    """What a sample says about the activations."""

    scale: float
    """Factor that brings the mean norm to sqrt(d)."""
    threshold: float
    """Norm, before scaling, above which a row is massive."""
    variance: float
    """Mean squared distance of the scaled sample from its mean."""
    rows: int
    """Rows of the sample."""
    massive: int
    """Those of them that are massive."""


def measure(sample: Float[Tensor, "n d"], *, massive: float) -> Scaling:
    """Scale, threshold and variance of the sample's ordinary rows; float64 throughout."""
    x = sample.double()
    norms = x.norm(dim=1)
    if bad := int((~norms.isfinite()).sum()):
        raise InputError(
            f"{bad} of {len(x)} sampled activations hold NaN or infinite values; extract them again in a wider dtype "
            "(float16 overflows above 65,504), and look at the model's own outputs if that does not help"
        )
    threshold = massive * norms.median()
    kept = norms <= threshold
    mean = norms[kept].mean()
    if not mean > 0:
        raise InputError(f"all {len(x)} sampled activations are zero; there is nothing to train on")
    scale = math.sqrt(x.shape[1]) / mean
    variance = scale**2 * (x[kept] - x[kept].mean(0)).square().sum(1).mean()
    if not variance > 0:
        raise InputError(f"all {len(x)} sampled activations are equal; there is nothing to train on")
    return Scaling(scale.item(), threshold.item(), variance.item(), len(x), len(x) - int(kept.sum()))


def geometric_median(x: Float[Tensor, "n d"], *, iterations: int = 100, tolerance: float = 1e-5) -> Float[Tensor, " d"]:
    """The point of least mean distance to the rows (Weiszfeld's iteration, in float64)."""
    x = x.double()
    point = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - point).norm(dim=1).clamp(min=1e-12)
        moved = weights @ x / weights.sum()
        step, point = (moved - point).norm(), moved
        if step <= tolerance * moved.norm():
            break
    return point


def start(config: SAEConfig, sample: Float[Tensor, "n d"], scaling: Scaling, *, b_dec: Start | str, seed: int) -> SAE:
    """First weights, for activations multiplied by `scaling.scale`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(config.d_sae, config.d_in, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    ordinary = sample[sample.norm(dim=1) <= scaling.threshold].double() * scaling.scale
    match b_dec:
        case "geometric_median":
            centre = geometric_median(ordinary)
        case "mean":
            centre = ordinary.mean(0)
        case "zeros":
            centre = torch.zeros(config.d_in)
        case _:
            raise InputError(f"b_dec starts at one of {', '.join(map(repr, get_args(Start)))}, got {b_dec!r}")
    weights = {"W_enc": rows.T, "b_enc": torch.zeros(config.d_sae), "W_dec": rows, "b_dec": centre}
    return SAE.of_weights(config, **{name: tensor.float() for name, tensor in weights.items()})


def unscaled(sae: SAE, scale: float, config: SAEConfig) -> SAE:
    """The SAE for raw activations that acts on x as `sae` acts on `scale * x`, in the units of x."""
    return SAE.of_weights(
        dataclasses.replace(config, apply_b_dec_to_input=sae.config.apply_b_dec_to_input),
        W_enc=sae.W_enc,
        b_enc=sae.b_enc / scale,
        W_dec=sae.W_dec,
        b_dec=sae.b_dec / scale,
    )
