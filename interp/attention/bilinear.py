"""M = left right^T, of rank e, split into routing (M - M^T) / 2 and filtering (M + M^T) / 2.

One type for weights (left = W_Q, right = W_K: `h d e`) and for activations (q and k of a sequence: `h t e`). Whatever
is asked comes from one core of p x p, p = min(d, 2e), found once (`midlens_kernels.bilinear_spectrum`); only `dense`
forms M itself, d x d. Results are float64 and carry no gradient.

    A = Σ_i μ_i (x_i y_i^T - y_i x_i^T)     routing: planes that rotate; eigenvalues ±iμ_i, μ_i twice a singular value
    S = Σ_i λ_i u_i u_i^T                   filtering: modes with signed eigenvalues, at most e of either sign
    ||M||² = ||A||² + ||S||²

In the manner of Jamil and Kapadia 2026 (arXiv 2605.18826), whose formulas for ranks are not known to us.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Float
from midlens_kernels.bilinear_spectrum import (
    BilinearEnergies,
    BilinearSpectrum,
    bilinear_core,
    bilinear_eigenvalues,
    bilinear_spectrum,
    bilinear_vectors,
)
from torch import Tensor

from interp.attention.ranks import Ranks, rank_measures
from interp.display import Shown
from interp.errors import InputError

_ROUNDING = 8 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of one part of M."""

    values: Float[Tensor, "*h r"]
    """Singular values, descending; of routing each plane once, though it counts twice."""
    signed: Float[Tensor, "*h r"]
    """Filtering: eigenvalues, descending. Routing: μ, where the eigenvalues are ±iμ."""
    energy: Float[Tensor, "*h"]
    """Squared Frobenius norm of the part."""
    paired: bool
    """Whether `values` lists planes."""
    floor: Float[Tensor, "*h"]
    """What rounding of the factors alone may put into a value; ranks count nothing below."""

    def ranks(self) -> Ranks:
        """Every measure of rank; 0 for a part that is zero up to rounding."""
        return rank_measures(self.values, paired=self.paired, floor=self.floor)

    def __repr__(self) -> str:
        kind = "planes" if self.paired else "modes"
        return f"Spectrum({self.values.shape[-1]} {kind}{_heads(self.values.shape[:-1])})"


@dataclass(frozen=True, eq=False, repr=False)
class Bilinear(Shown):
    """M = left right^T for any number of heads."""

    left: Float[Tensor, "..."]
    """Of the shape `*h d e`, as is `right`; what is not is refused in words."""
    right: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        if self.left.shape != self.right.shape or self.left.ndim < 2:
            raise InputError(
                f"left and right must have one shape (..., d, e), got {tuple(self.left.shape)} and "
                f"{tuple(self.right.shape)}; repeat the keys of a group for each of its heads first"
            )

    @cached_property
    def core(self) -> tuple[Float[Tensor, "*h p e"], Float[Tensor, "*h p e"]]:
        """a and b, in main memory: a b^T has every spectrum of M."""
        a, b = bilinear_core(self.left, self.right)
        # On a GPU, PyTorch decomposes matrices of more than 32 columns one after the other: LAPACK does the rest.
        return a.cpu(), b.cpu()

    @cached_property
    def _spectrum(self) -> BilinearSpectrum:
        return bilinear_spectrum(*self.core)

    @cached_property
    def rounding(self) -> Float[Tensor, "*h"]:
        """How far rounding may move a value of a spectrum: a few units in the last place of Σ_j |left_j| |right_j|."""
        a, b = self.core
        return _ROUNDING * (a.norm(dim=-2) * b.norm(dim=-2)).sum(-1)

    def routing(self) -> Spectrum:
        """The skew-symmetric part, by planes."""
        found = self._spectrum
        return Spectrum(found.routing, found.routing, found.routing_energy, True, self.rounding)

    def filtering(self) -> Spectrum:
        """The symmetric part, by modes."""
        found = self._spectrum
        values = found.filtering.abs().sort(dim=-1, descending=True).values
        return Spectrum(values, found.filtering, found.filtering_energy, False, self.rounding)

    def energies(self) -> BilinearEnergies:
        """Squared norms of the two parts, without any decomposition of the core."""
        a, b = self.core
        m = a @ b.mT
        return BilinearEnergies(*((part / 2).square().sum((-2, -1)) for part in (m - m.mT, m + m.mT)))

    def eigenvalues(self) -> Complex[Tensor, "*h small"]:
        """Those of M, min(d, e) of them in no order; the others are zero."""
        return bilinear_eigenvalues(*self.core)

    def dense(self) -> Float[Tensor, "*h d d"]:
        """M itself, float64."""
        return self.left.double() @ self.right.double().mT

    def transposed(self) -> "Bilinear":
        """M^T: what keys ask of queries."""
        return Bilinear(self.right, self.left)

    def mixed(self, alpha: float, beta: float) -> "Bilinear":
        """alpha S + beta A = (alpha + beta) / 2 M + (alpha - beta) / 2 M^T, of width 2e."""
        left = torch.cat([(alpha + beta) / 2 * self.left, (alpha - beta) / 2 * self.right], -1)
        return Bilinear(left, torch.cat([self.right, self.left], -1))

    def truncated(self, planes: int | None = None, modes: int | None = None) -> "Bilinear":
        """M with its largest planes and modes (by magnitude) alone; `None`, or more than there are, keeps all."""
        if min(planes or 0, modes or 0) < 0:
            raise InputError(f"planes and modes to keep must be 0 or more, got {planes} and {modes}")
        found = bilinear_vectors(self.left, self.right)
        mu = found.routing[..., :planes, None]
        x, y = found.planes[..., :planes, :, :].unbind(-2)
        best = found.filtering.abs().argsort(dim=-1, descending=True)[..., :modes]
        signed = found.filtering.gather(-1, best)[..., None]
        u = found.modes.gather(-2, best[..., None].expand(*best.shape, found.modes.shape[-1]))
        none = u.new_zeros(*u.shape[:-2], not (mu.numel() or u.numel()), u.shape[-1])  # factors have a column at least
        left, right = torch.cat([signed * u, mu * x, -mu * y, none], -2), torch.cat([u, y, x, none], -2)
        return Bilinear(left.mT, right.mT)

    def __repr__(self) -> str:
        d, e = self.left.shape[-2:]
        return f"Bilinear(d {d}, e {e}{_heads(self.left.shape[:-2])})"

    def _facts(self) -> dict[str, Any]:
        d, e = self.left.shape[-2:]
        heads = " x ".join(str(size) for size in self.left.shape[:-2])
        return {
            "M": "left · rightᵀ",
            "heads": heads or None,
            "d": d,
            "e": e,
            "dtype": str(self.left.dtype).removeprefix("torch."),
        }


def _heads(shape: torch.Size) -> str:
    return ", " + " x ".join(str(size) for size in shape) + " heads" if shape else ""
