"""Q, the inverse covariance that steering reads with, under shrinkage: `whitener(moments, how).solve(S)` is Q S.

    shrink   Q = ((1 − γ) Σ + γ (tr Σ / d) I)^-1      γ from n prompts, in [0, 1]                          (default)
    ridge    Q = (Σ + λ I)^-1                         λ = 0.1 · median of the variances, unless given
    diag     Q = diag(Σ)^+
    none     Q = I
    full     Q = Σ^+                                  eigenvalues below λ_max · d · 2^-52 are taken for 0, unless given

γ is the oracle-approximating coefficient of Chen, Wiesel, Eldar and Hero 2010 (IEEE Trans. Signal Processing 58,
eq. 23), which needs only traces:

    γ = min(1, ((1 − 2/d) tr Σ² + tr² Σ) / ((n + 1 − 2/d) (tr Σ² − tr² Σ / d)))

n counts prompts, not tokens: tokens of a prompt depend on each other, so this shrinks rather more than tokens would
ask for. Any positive Q keeps the constraints of `interp.steering.closed_forms` exactly; only the disturbance grows.
Shrinkage and ridge cost one Cholesky factorisation; no matrix square root is taken anywhere.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.running_moments import Moments

Whitening = Literal["shrink", "ridge", "diag", "none", "full"]


@dataclass(frozen=True, eq=False)
class Whitener:
    """Q at one site; `solve` is all that the closed forms use. See the module's docstring."""

    how: Whitening
    factor: Tensor
    """Cholesky factor (shrink, ridge), the diagonal of Q (diag, none), or Q itself (full)."""
    shrinkage: float = 0.0
    """γ of shrink; λ of ridge."""

    @property
    def d(self) -> int:
        """Width of the activations."""
        return len(self.factor)

    def solve(self, s: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        """Q S, float64."""
        s = s.to(self.factor)
        if self.factor.ndim == 1:
            return self.factor[:, None] * s
        return self.factor @ s if self.how == "full" else torch.cholesky_solve(s, self.factor)

    def gram(self, s: Float[Tensor, "d k"], t: Float[Tensor, "d j"] | None = None) -> Float[Tensor, "k j"]:
        """SᵀQ T (SᵀQ S without T): inner products in the metric of the data."""
        return s.to(self.factor).T @ self.solve(s if t is None else t)


def whitener(
    moments: Moments, how: Whitening = "shrink", *, ridge: float | None = None, rtol: float | None = None
) -> Whitener:
    """Q from moments; `ridge` is λ of "ridge", `rtol` the relative tolerance of "full" and "diag"."""
    if how not in get_args(Whitening):
        raise InputError(f"unknown whitening {how!r}: expected one of {', '.join(get_args(Whitening))}")
    if how == "none":
        return Whitener(how, torch.ones_like(moments.mean))
    sigma = moments.covariance()
    if not bool(sigma.diagonal().max() > 0):
        raise InputError(
            f"the {moments.n} rows are all equal: no covariance to whiten with. Give other neutral prompts"
        )
    tolerance = moments.d * 2.0**-52 if rtol is None else rtol
    if how == "diag":
        return Whitener(how, _reciprocal(sigma.diagonal(), tolerance))
    if how == "full":
        return Whitener(how, _pseudo_inverse(sigma, moments.n_groups, tolerance))
    eye = torch.eye(moments.d, dtype=torch.float64, device=sigma.device)
    if how == "ridge":
        amount = 0.1 * float(sigma.diagonal().median()) if ridge is None else ridge
        return Whitener(how, _cholesky(sigma + amount * eye), amount)
    gamma = shrinkage(sigma, moments.n_groups)
    return Whitener(how, _cholesky((1 - gamma) * sigma + gamma * sigma.trace() / moments.d * eye), gamma)


def shrinkage(sigma: Float[Tensor, "d d"], n: int) -> float:
    """γ of Chen et al. 2010 for a covariance from `n` independent rows, clamped to [0, 1]."""
    d = len(sigma)
    square, trace = float(sigma.square().sum()), float(sigma.trace())
    spread = square - trace**2 / d
    if n < 1 or spread <= 0:
        return 1.0
    return min(1.0, max(0.0, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * spread)))


def _cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise InputError(
            "the covariance is singular: there are fewer rows than dimensions, or λ is too small. "
            "Use whiten='shrink', or a larger ridge"
        )
    return factor


def _reciprocal(values: Float[Tensor, " d"], rtol: float) -> Float[Tensor, " d"]:
    kept = values > rtol * values.max()
    return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)


def _pseudo_inverse(sigma: Float[Tensor, "d d"], n: int, rtol: float) -> Float[Tensor, "d d"]:
    if n <= len(sigma):
        warnings.warn(
            f"whiten='full' with {n} prompts for {len(sigma)} dimensions: directions of pure noise are kept and "
            "amplified. Use whiten='shrink', or more prompts",
            stacklevel=4,
        )
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * _reciprocal(values, rtol)) @ vectors.T
