"""How well rows are reconstructed, streamed in float64 and exact: the split into batches does not change the result.

    explained variance = 1 - Σ |x - x̂|² / Σ |x - mean|²        sums over all tokens, mean over all tokens
    FVU                = 1 - explained variance
    MSE                = Σ |x - x̂|² / n                        summed over the width, per token
    cosine             = mean over tokens of x · x̂ / (|x| |x̂|)
    L2 ratio           = mean over tokens of |x̂| / |x|         tokens with x = 0 left out
    bias γ             = Σ |x̂|² / Σ x · x̂                      1: not too short, not too long

Centred, and one ratio of sums: neither a mean of per-token ratios (dominated by tokens near the mean), nor Σ|x|² below
the line (which a large mean inflates), nor the variance of the error (which forgives a constant error).
The centred sum is merged from batch means and batch deviations (Chan, Golub, LeVeque 1983), so a mean far from zero
costs no digits. No figure depends on how the width is divided: sums over the width, never means over it.

γ is the relative reconstruction bias of Rajamanoharan et al. 2024 (https://arxiv.org/abs/2404.16014): x̂ / γ is the best
multiple of x̂. It is not centred: a mean of x that b_dec puts back draws it towards 1.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError


class Reconstruction(NamedTuple):
    """Quality over `n_tokens` rows."""

    n_tokens: int
    explained_variance: float
    mse: float
    cosine: float
    l2_ratio: float
    """NaN where every row is zero."""
    bias: float
    """γ; NaN where x and x̂ are orthogonal, as when nothing is reconstructed."""

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return 1 - self.explained_variance


class ReconstructionFitter:
    """Accumulates rows and their reconstructions; `result()` is a `Reconstruction`."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._mean: Tensor | None = None
        self._deviation = 0.0  # Σ |x - mean|²
        self._sums = torch.zeros(6, dtype=torch.float64)  # Σ of: |x - x̂|², cosine, |x̂|/|x|, rows of x ≠ 0, |x̂|², x·x̂

    def update(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> "ReconstructionFitter":
        """Add rows; no rows are fine. For a transcoder `x` is its target."""
        if len(x) == 0:
            return self
        x, x_hat = x.double(), x_hat.double()
        mean = x.mean(0)
        self._join(len(x), mean, float((x - mean).square().sum()))
        norms, dots = x.norm(dim=1), (x * x_hat).sum(1)
        square = x_hat.square().sum(1)
        there = norms > 0
        terms = (
            (x - x_hat).square().sum(),
            # Equals 0 where a row or its reconstruction is zero.
            torch.cosine_similarity(x, x_hat, dim=1, eps=1e-30).sum(),
            (square[there].sqrt() / norms[there]).sum(),
            there.sum().double(),
            square.sum(),
            dots.sum(),
        )
        self._sums += torch.stack(terms).cpu()
        return self

    def merge(self, other: "ReconstructionFitter") -> "ReconstructionFitter":
        """Both together, as a new fitter."""
        both = ReconstructionFitter()
        for part in (self, other):
            if part._mean is not None:
                both._join(part.n_tokens, part._mean, part._deviation)
            both._sums = both._sums + part._sums
        return both

    def result(self) -> Reconstruction:
        """Over everything added so far."""
        n = self.n_tokens
        if not self._deviation > 0:
            raise InputError(
                f"explained variance needs rows that differ, and got {n} rows whose deviation is {self._deviation:g}. "
                "The store is empty, constant or holds NaN, or every row counted as massive"
            )
        error, cosine, ratio, there, square, dot = self._sums.tolist()
        return Reconstruction(
            n_tokens=n,
            explained_variance=1 - error / self._deviation,
            mse=error / n,
            cosine=cosine / n,
            l2_ratio=ratio / there if there else math.nan,
            bias=square / dot if dot else math.nan,
        )

    def _join(self, n: int, mean: Tensor, deviation: float) -> None:
        if self._mean is None:
            self.n_tokens, self._mean, self._deviation = n, mean, deviation
            return
        gap, total = mean - self._mean, self.n_tokens + n
        self._deviation += deviation + float(gap.square().sum()) * self.n_tokens * n / total
        self._mean = self._mean + gap * (n / total)
        self.n_tokens = total
