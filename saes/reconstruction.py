"""How well rows are reconstructed, streamed in float64 and exact: the split into batches does not change the result.

    explained variance = 1 - Σ |x - x̂|² / Σ |x - mean|²        sums over all tokens, mean over all tokens
    MSE                = Σ |x - x̂|² / n                        summed over the width, per token
    cosine             = mean over tokens of x · x̂ / (|x| |x̂|)

Centred, and one ratio of sums: neither a mean of per-token ratios (dominated by tokens near the mean), nor Σ|x|² below
the line (which a large mean inflates), nor the variance of the error (which forgives a constant error).
The centred sum is merged from batch means and batch deviations (Chan, Golub, LeVeque 1983), so a mean far from zero
costs no digits.
"""

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


class ReconstructionFitter:
    """Accumulates rows and their reconstructions; `result()` is a `Reconstruction`."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._mean: Tensor | None = None
        self._deviation = 0.0  # Σ |x - mean|²
        self._error = 0.0  # Σ |x - x̂|²
        self._cosine = 0.0

    def update(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> "ReconstructionFitter":
        """Add rows; no rows are fine."""
        if len(x) == 0:
            return self
        x, x_hat = x.double(), x_hat.double()
        mean = x.mean(0)
        self._join(len(x), mean, float((x - mean).square().sum()))
        self._error += float((x - x_hat).square().sum())
        # Equals 0 where a row or its reconstruction is zero.
        self._cosine += float(torch.cosine_similarity(x, x_hat, dim=1, eps=1e-30).sum())
        return self

    def merge(self, other: "ReconstructionFitter") -> "ReconstructionFitter":
        """Both together, as a new fitter."""
        both = ReconstructionFitter()
        for part in (self, other):
            if part._mean is not None:
                both._join(part.n_tokens, part._mean, part._deviation)
            both._error += part._error
            both._cosine += part._cosine
        return both

    def result(self) -> Reconstruction:
        """Over everything added so far."""
        n = self.n_tokens
        if not self._deviation > 0:
            raise InputError(
                f"explained variance needs rows that differ, and got {n} rows whose deviation is {self._deviation:g}. "
                "The store is empty, constant or holds NaN, or every row counted as massive"
            )
        return Reconstruction(n, 1 - self._error / self._deviation, self._error / n, self._cosine / n)

    def _join(self, n: int, mean: Tensor, deviation: float) -> None:
        if self._mean is None:
            self.n_tokens, self._mean, self._deviation = n, mean, deviation
            return
        gap, total = mean - self._mean, self.n_tokens + n
        self._deviation += deviation + float(gap.square().sum()) * self.n_tokens * n / total
        self._mean = self._mean + gap * (n / total)
        self.n_tokens = total
