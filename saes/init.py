"""The first weights of a run, for scaled activations (`saes.frame`).

    W_dec = random rows of one norm,  W_enc = its transpose,  b_enc = 0,  b_dec = geometric median or mean of the sample
    where the encoder reads a part r of b_dec: b_enc = -r W_enc^T b_dec, so that the first activations are the same
    transcoder: W_dec = 0, or short rows,  W_enc = random unit rows,  b_enc = -W_enc^T mean(x),
                b_dec = median of what is written,  W_skip = 0

Long rows of a transcoder's decoder, which have nothing to do with what their features read, only do harm: training
silences the features before it turns the rows (24 planted features: none fired any more at norm 1, all were found at
0.1 or less).

With `start_l0`, biases (standard, gated) or thresholds (jumprelu) are then set from quantiles of the sample's
pre-activations so that every feature fires equally often, `start_l0` of them per token: sparse from the first step.
"""

import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from saes.config import SAEConfig
from saes.frame import Framed
from saes.recipe import Start
from saes.sae import SAE

QUANTILE_ROWS = 4096


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


def start(
    shape: SAEConfig, sample: Framed, *, b_dec: Start | str, seed: int, norm: float = 1.0, mean_read: float = 0.0
) -> SAE:
    """First weights, from a sample of scaled activations; rows that do not count (massive) are left out.

    `norm`: of the decoder's rows. `mean_read`: part of b_dec that the encoder reads (`saes.recipe`).
    """
    usual = sample.kept > 0
    x, y = sample.x[usual], sample.y[usual]
    generator = torch.Generator().manual_seed(seed)
    rows = _unit_rows(shape.d_sae, shape.d_in, generator)
    bias = torch.zeros(shape.d_sae)
    if shape.is_transcoder:
        decoder = _unit_rows(shape.d_sae, shape.width_out, generator) * norm
        bias = -(rows @ x.double().mean(0).float())
    else:
        decoder = rows = rows * norm
    gated = shape.architecture == "gated"
    centre = _centre(y, b_dec)
    if mean_read and not shape.is_transcoder:
        bias = -mean_read * (rows.double() @ centre.double()).float()
    weights = {
        "W_enc": rows.T,
        "W_dec": decoder,
        "b_dec": centre.float(),
        "b_gate" if gated else "b_enc": bias,
    }
    for name, sizes in shape.shapes().items():
        weights.setdefault(name, torch.zeros(sizes))
    return SAE.of_weights(shape, **weights)


def _unit_rows(f: int, d: int, generator: torch.Generator) -> Float[Tensor, "f d"]:
    rows = torch.randn(f, d, generator=generator)
    return rows.div_(rows.norm(dim=1, keepdim=True))


def _centre(y: Float[Tensor, "n out"], b_dec: Start | str) -> Float[Tensor, " out"]:
    match b_dec:
        case "geometric_median":
            return geometric_median(y)
        case "mean":
            return y.double().mean(0)
        case "zeros":
            return torch.zeros(y.shape[1])
        case _:
            raise InputError(f"b_dec starts at one of {', '.join(map(repr, get_args(Start)))}, got {b_dec!r}")


@torch.no_grad()
def quantiles(sae: SAE, read: Float[Tensor, "n d"], *, l0: float, of: int) -> Float[Tensor, " f"]:
    """Per feature, the pre-activation that it exceeds on a part l0 / `of` of the rows `read`; `of`: all features."""
    n = len(read)
    if l0 >= of:
        raise InputError(f"start_l0={l0} active features do not fit an SAE of {of} features")
    rank = min(n, max(1, n - math.floor(n * l0 / of)))
    found = [
        torch.addmm(bias, read, rows.T).kthvalue(rank, dim=0).values
        for rows, bias in zip(sae.encoder.split(1024), sae.b_enc.split(1024), strict=True)
    ]
    return torch.cat(found)
