"""Maps that carry one population onto another: by their means, by mean and covariance, or neuron by neuron.

    mean_match     x + μ_t − μ_s                                    MiMiC's first map (Singh et al. 2024); `add` by name
    gaussian_ot    μ_t + A (x − μ_s),   A = Σ_s^-½ (Σ_s^½ Σ_t Σ_s^½)^½ Σ_s^-½       MiMiC's second: Gaussian OT
    per_neuron     x_i ↦ a_i x_i + h_i, least squares between sorted samples        Linear-AcT (Rodriguez et al. 2025)

A is the one symmetric positive map with A Σ_s A = Σ_t; its cost is the Bures-Wasserstein distance, and equal
covariances make it a translation. Both covariances are singular with fewer prompts than dimensions, so A is fitted in
the span B of the m leading principal directions of the pooled covariance (m at most a tenth of the prompts): I + B (A_m
− I) Bᵀ, with the full translation. To keep rank k of it, P = the k leading left singular vectors of (A − I) Σ_s^½
(the metric of the data, not A's own eigenvectors): U = P, Vᵀ = Pᵀ (A − I). Strengths between 0 and 1 follow the
displacement interpolation; beyond 1 they are no transport. These maps are for inputs of the source population: give
them a gate (`interp.steering.gating`) where others pass.

The choice of m and the compression are our own. MiMiC's code adds its regulariser to every entry of the covariance and
takes a non-symmetric square root; neither is done here.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments
from interp.steering.closed_forms import add
from interp.steering.edits import AffineEdit, DiagonalEdit

PROMPTS_PER_DIRECTION = 10
_SMALLEST = 1e-10


def mean_match(source: Float[Tensor, " d"], target: Float[Tensor, " d"]) -> AffineEdit:
    """Move the source mean onto the target mean."""
    return add(target, source)


class Subspace(NamedTuple):
    """An orthonormal basis of m directions and both covariances in it."""

    basis: Float[Tensor, "d m"]
    source: Float[Tensor, "m m"]
    target: Float[Tensor, "m m"]


def gaussian_ot(source: Moments, target: Moments, *, m: int | None = None, rank: int | None = None) -> AffineEdit:
    """Gaussian optimal transport within the `m` leading pooled directions, kept at `rank`; see the docstring."""
    basis, s, t = _pooled(source, target, m)
    move = transport_matrix(s, t) - torch.eye(len(s)).to(s)
    keep = len(s) if rank is None else rank
    if not 1 <= keep <= len(s):
        raise InputError(f"rank={rank}: expected 1 to {len(s)}, the number of directions transport is fitted in")
    left = torch.linalg.eigh(move @ s @ move.T).eigenvectors[:, -keep:]
    v = basis @ (move.T @ left)
    return AffineEdit(basis @ left, v, v.T @ source.mean, target.mean - source.mean)


def _pooled(source: Moments, target: Moments, m: int | None) -> Subspace:
    n = min(source.n_groups, target.n_groups)
    most = min(source.d, n - 1)
    if most < 1:
        raise InputError(f"transport needs two prompts or more of each kind, got {n}")
    chosen = max(1, min(source.d, n // PROMPTS_PER_DIRECTION)) if m is None else m
    if not 1 <= chosen <= most:
        raise InputError(f"m={m}: expected 1 to {most} directions ({n} prompts, width {source.d})")
    if m is None and n < PROMPTS_PER_DIRECTION:
        warnings.warn(f"{n} prompts of a kind: transport is fitted along one direction only", stacklevel=3)
    a, b = source.covariance(), target.covariance()
    share = source.n_groups / (source.n_groups + target.n_groups)
    basis = torch.linalg.eigh(share * a + (1 - share) * b).eigenvectors[:, -chosen:]
    return Subspace(basis, basis.T @ a @ basis, basis.T @ b @ basis)


def transport_matrix(source: Float[Tensor, "m m"], target: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """The symmetric positive A with A Σ_s A = Σ_t."""
    values, vectors = torch.linalg.eigh(source)
    if float(values.min()) <= _SMALLEST * float(values.max()):
        raise InputError(
            "the source covariance is singular in the directions of transport; give more prompts or a smaller m"
        )
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
    return inverse @ _root(root @ target @ root) @ inverse


def _root(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def per_neuron(source: Float[Tensor, "n d"], target: Float[Tensor, "j d"]) -> DiagonalEdit:
    """Coordinate by coordinate, the affine map between the sorted samples; unequal numbers meet at shared quantiles."""
    if len(source) < 2 or len(target) < 2:
        raise InputError(f"per-neuron transport needs two prompts or more, got {len(source)} and {len(target)}")
    x, y = _quantiles(source.double(), len(target)), _quantiles(target.double(), len(source))
    mean_x, mean_y = x.mean(0), y.mean(0)
    spread = (x - mean_x).square().sum(0)
    moving = spread > _SMALLEST * spread.max()
    scale = torch.where(moving, ((x - mean_x) * (y - mean_y)).sum(0) / torch.where(moving, spread, 1.0), 1.0)
    return DiagonalEdit(scale, mean_y - scale * mean_x)


def _quantiles(x: Float[Tensor, "n d"], other: int) -> Float[Tensor, "q d"]:
    """The sorted columns, read at as many evenly spaced places as the larger of both samples has."""
    x, size = x.sort(0).values, max(len(x), other)
    if size == len(x):
        return x
    places = torch.linspace(0.5, size - 0.5, size, dtype=x.dtype, device=x.device) * (len(x) / size) - 0.5
    places = places.clamp(0, len(x) - 1)
    low = places.floor().long().clamp(max=len(x) - 2)
    return torch.lerp(x[low], x[low + 1], (places - low)[:, None])
