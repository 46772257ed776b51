"""The spectral cascade: how many directions routing uses, layer by layer.

    operating    skew part of (q k^T / sqrt e) over the positions of a held-out sequence, unmasked n x n, rank <= 2e
    content      the same before rotary positions turn q and k
    kernel       skew part of W_Q W_K^T / sqrt e, d x d, rank <= 2e

arXiv 2605.18826 reports effective rank 2 (one plane of rotation, the least a skew matrix can have) at the first layer
and growth with depth. Its definition of rank is not known to us; all of `ranks.rank_measures` are given. Spectra come
from 2e x 2e cores in float64. For S-D attention in token space the operating skew part is S itself (up to the
constant c); for standard attention it is the skew half of what softmax is applied to. Weights are raw: the gain of a
layer norm is not folded in. Rotary positions alone spread one pair of constant q and k over as many planes as there
are frequencies (up to e / 2), hence `content`. Growth with depth that an untrained twin shows as well is not
training's: compare with step 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from midlens_kernels.bilinear_spectrum import bilinear_spectrum
from torch import Tensor

from interp.attention.ranks import Ranks, rank_measures
from interp.attention.sd_model import Twin

ROUNDING = 1e-6
"""Values below this part of |left| |right| are rounding of factors in float32."""
LOGGED = ("erank1", "erank2", "participation", "r90")
"""Measures that a training run logs."""


def operating_ranks(model: Twin, tokens: Int[Tensor, "b t"], *, turned: bool = True) -> list[Ranks]:
    """Of each layer, `b h`: measures of the skew part of each head on each (full) sequence.

    `turned=False`: of queries and keys as they are before rotary positions.
    """
    found: list[Ranks] = []
    with torch.no_grad():
        for block, x in zip(model.layers(), model.attention_inputs(tokens), strict=True):
            q, k, _ = block.attention.qkv(x, x.dtype, turned=turned)
            found.append(_ranks(q / math.sqrt(q.shape[-1]), k))
    return found


def kernel_ranks(model: Twin) -> list[Ranks]:
    """Of each layer, `h`: measures of the skew part of the weights."""
    return [_ranks(*block.attention.kernel()) for block in model.layers()]


def _ranks(left: Float[Tensor, "*h n e"], right: Float[Tensor, "*h n e"]) -> Ranks:
    left, right = left.contiguous(), right.contiguous()
    floor = ROUNDING * left.double().norm(dim=(-2, -1)) * right.double().norm(dim=(-2, -1))
    return rank_measures(bilinear_spectrum(left, right).routing, paired=True, floor=floor)


def rank_metrics(model: Twin, tokens: Int[Tensor, "b t"], *, measures: Sequence[str] = LOGGED) -> dict[str, float]:
    """`operating_erank2_0` (layer 0), ... and `kernel_erank2_0`, ...: means over sequences and heads, for a log."""
    found: dict[str, float] = {}
    for name, layers in _objects(model, tokens).items():
        for layer, ranks in enumerate(layers):
            for measure in measures:
                found[f"{name}_{measure}_{layer}"] = float(getattr(ranks, measure).mean())
    return found


def rank_rows(model: Twin, tokens: Int[Tensor, "b t"]) -> list[dict[str, Any]]:
    """One row per layer: head width, and the mean of every measure over heads and sequences, of each object."""
    objects = _objects(model, tokens)
    rows = []
    for layer, head_width in enumerate(model.config.head_widths):
        row: dict[str, Any] = {"layer": layer, "head_width": head_width}
        for name, layers in objects.items():
            row |= {f"{name}_{measure}": float(value.mean()) for measure, value in layers[layer]._asdict().items()}
        rows.append(row)
    return rows


def _objects(model: Twin, tokens: Int[Tensor, "b t"]) -> dict[str, list[Ranks]]:
    turned = operating_ranks(model, tokens)
    content = operating_ranks(model, tokens, turned=False) if model.config.rotary else turned
    return {"operating": turned, "content": content, "kernel": kernel_ranks(model)}


def log_spaced(step: int, every: int) -> bool:
    """Whether `step` is `every` times a power of two: when ranks are logged, beside the last step."""
    times, rest = divmod(step, every)
    return not rest and times > 0 and not times & (times - 1)
