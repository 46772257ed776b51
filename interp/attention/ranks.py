"""How many directions a spectrum occupies, by every usual measure.

With singular values σ, p = σ / Σσ, w = σ² / Σσ² and H the entropy in nats:

    erank1          exp H(p)                  (Roy and Vetterli 2007)
    erank2          exp H(w)
    participation   1 / Σ w²
    stable          1 / max w
    r90, r95, r99   the fewest directions that hold this share of the energy Σσ²
    numerical       directions beyond rounding: σ > 1e-12 max σ

All count the same thing on equal values (k of them: k) and differ up to twentyfold on a spectrum with a long tail: r90
is no better than the others, but has to be named. A skew-symmetric matrix has its values in equal pairs, one a plane of
rotation: `paired=True` takes each plane once and counts it twice, so that every measure of a matrix that is not zero is
2 at least and r90, r95, r99 are even. A zero matrix has rank 0 by every measure.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError

NUMERICAL = 1e-12
"""Values below this part of the largest are rounding."""


class Ranks(NamedTuple):
    """The measures, float64."""

    erank1: Float[Tensor, "*h"]
    erank2: Float[Tensor, "*h"]
    participation: Float[Tensor, "*h"]
    stable: Float[Tensor, "*h"]
    r90: Float[Tensor, "*h"]
    r95: Float[Tensor, "*h"]
    r99: Float[Tensor, "*h"]
    numerical: Float[Tensor, "*h"]


def rank_measures(
    sigma: Float[Tensor, "*h r"], *, paired: bool = False, floor: Float[Tensor, "*h"] | None = None
) -> Ranks:
    """Measures of singular values (no sign, any order). `floor`: what is not above it counts as zero."""
    if not sigma.ndim or (sigma < 0).any():
        raise InputError("rank_measures takes singular values, none below zero: give the magnitudes of eigenvalues")
    sigma = sigma.double().sort(dim=-1, descending=True).values
    if not sigma.shape[-1]:
        sigma = sigma.new_zeros(*sigma.shape[:-1], 1)
    if floor is not None:
        sigma = torch.where(sigma > floor.double()[..., None], sigma, 0)
    top = sigma[..., :1]
    there = top[..., 0] > 0
    sigma = sigma / torch.where(top > 0, top, 1)  # ranks do not depend on scale, and squares may underflow
    energy = sigma.square()
    w = _share(energy)
    held = w.cumsum(-1)
    counts = [(held < (1 - 1e-12) * tau).sum(-1) + 1.0 for tau in (0.9, 0.95, 0.99)]  # 9 of 10 equal values are 90 %
    numerical = (sigma > NUMERICAL).sum(-1).double()
    found = (_spread(_share(sigma)), _spread(w), 1 / w.square().sum(-1), 1 / w[..., 0], *counts, numerical)
    return Ranks(*(torch.where(there, (1 + paired) * rank.double(), 0) for rank in found))


def _share(x: Tensor) -> Tensor:
    total = x.sum(-1, keepdim=True)
    return x / torch.where(total > 0, total, 1)


def _spread(p: Tensor) -> Tensor:
    """exp H(p), at least 1 (rounding)."""
    return torch.special.entr(p).sum(-1).exp().clamp_min(1)
