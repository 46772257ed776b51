"""What one number can say of a head's M = left right^T, whatever its ranks.

With A and S the skew-symmetric and symmetric parts, λ the eigenvalues of M, all norms Frobenius's:

    routing_fraction          f = ||A||² / ||M||²                 a random Gaussian head: 1/2
    symmetry                  tr M² / ||M||² = 1 - 2f             (Saponati et al. 2025), between -1 and 1
    routing_filtering_ratio   ||A|| / ||S||
    directionality            do few rows, or few columns, stand out? below: (rows - columns) / (rows + columns)
    henrici                   N / ||M||, N² = ||M||² - Σ|λ|²      non-normality; a normal matrix: 0 (found to 1e-8)
    spectral_abscissa         max Re λ, over the min(d, e) eigenvalues that need not be zero
    numerical_abscissa        λ_max(S), at least the former (Bendixson)
    rotation_share            Σ|Im λ| / Σ|λ|                      a random Gaussian head: about 0.6

    ||A||² = Σ(Im λ)² + N²/2    and    ||S||² = Σ(Re λ)² + N²/2       (Schur, Henrici)

so f mixes eigenvalues that rotate with half of what is not normal: rotation_share and henrici tell them apart. Random
weights have max Re λ > 0 as well: by itself it says nothing of a trained head.

Directionality (Saponati et al. 2025): of the Euclidean norms of M's rows (what queries bring) and columns (what keys
bring), the excess is the sum of norm - threshold over those above threshold = mean + 2 std (unbiased). Negative: few
large columns. 0 where nothing exceeds.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention.bilinear import Bilinear


class HeadMetrics(NamedTuple):
    """Float64; a zero head has energies, trace, directionality and abscissae 0 and every ratio NaN."""

    energy: Float[Tensor, "*h"]
    routing_energy: Float[Tensor, "*h"]
    filtering_energy: Float[Tensor, "*h"]
    routing_fraction: Float[Tensor, "*h"]
    symmetry: Float[Tensor, "*h"]
    routing_filtering_ratio: Float[Tensor, "*h"]
    trace: Float[Tensor, "*h"]
    directionality: Float[Tensor, "*h"]
    henrici: Float[Tensor, "*h"]
    spectral_abscissa: Float[Tensor, "*h"]
    numerical_abscissa: Float[Tensor, "*h"]
    rotation_share: Float[Tensor, "*h"]


def head_metrics(m: Bilinear) -> HeadMetrics:
    """All of them, of every head."""
    return HeadMetrics(directionality=directionality(m), **core_metrics(m))


def core_metrics(m: Bilinear) -> dict[str, Float[Tensor, "*h"]]:
    """All but directionality: what does not change when space is turned, and so is the same for M and for its core."""
    routing, filtering = m.energies()
    energy = routing + filtering
    values = m.eigenvalues()
    size = values.abs()
    a, b = m.core
    return {
        "energy": energy,
        "routing_energy": routing,
        "filtering_energy": filtering,
        "routing_fraction": routing / energy,
        "symmetry": (filtering - routing) / energy,
        "routing_filtering_ratio": (routing / filtering).sqrt(),
        "trace": (a * b).sum((-2, -1)),
        "henrici": ((energy - size.square().sum(-1)).clamp_min(0) / energy).sqrt(),
        "spectral_abscissa": values.real.amax(-1),
        "numerical_abscissa": m.filtering().signed[..., 0],
        "rotation_share": values.imag.abs().sum(-1) / torch.where(size.sum(-1) > m.rounding, size.sum(-1), torch.nan),
    }


def directionality(m: Bilinear) -> Float[Tensor, "*h"]:
    """Of each M, from its row and column norms, without M; above 0: rows stand out, below 0: columns."""
    left, right = m.left.double(), m.right.double()
    rows, columns = (_excess(_row_norms(*pair)).cpu() for pair in ((left, right), (right, left)))
    total = rows + columns
    return torch.where(total > 0, (rows - columns) / total, 0)


def _row_norms(left: Tensor, right: Tensor) -> Tensor:
    return ((left @ (right.mT @ right)) * left).sum(-1).clamp_min(0).sqrt()


def _excess(norms: Tensor) -> Tensor:
    if norms.shape[-1] < 2:
        return norms.new_zeros(norms.shape[:-1])
    over = norms - norms.mean(-1, keepdim=True) - 2 * norms.std(-1, keepdim=True)
    # equal norms have a standard deviation of rounding, which would decide
    return torch.where(over > 1e-12 * norms.amax(-1, keepdim=True), over, 0).sum(-1)
