"""From factors to a core no larger than 2e x 2e, and from the core to spectra, planes and modes.

With an orthonormal U (d x p, p = min(d, 2e)) whose columns span those of [left right],

    left = U a,   right = U b,   M = U (a b^T) U^T

so M's routing and filtering parts are those of the core C = a b^T, turned by U, and have its spectra. Where d <= 2e the
factors are their own core. A QR decomposition gives a and b as blocks of its triangle; its error is that of rounding
each column of left and right. A Gram matrix [left right]^T [left right] = F F^T gives them too (a and b are the
transposed row blocks of F), at the price of half the digits for what is small: see README.md.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BilinearSpectrum(NamedTuple):
    """Spectra of the two parts of M, float64; all values of a d x d part that are not listed are zero."""

    routing: Float[Tensor, "*h planes"]
    """Descending; (M - M^T) / 2 has each twice as a singular value, and eigenvalues +-i times it; p // 2 of them."""
    filtering: Float[Tensor, "*h p"]
    """Eigenvalues of (M + M^T) / 2, signed, descending; where d > 2e the first e are >= 0 and the last e <= 0."""

    @property
    def routing_energy(self) -> Float[Tensor, "*h"]:
        """||(M - M^T) / 2||^2, the sum of the squares of all its singular values."""
        return 2 * self.routing.square().sum(-1)

    @property
    def filtering_energy(self) -> Float[Tensor, "*h"]:
        """||(M + M^T) / 2||^2; both energies add up to ||M||^2."""
        return self.filtering.square().sum(-1)


class BilinearVectors(NamedTuple):
    """The two parts of M taken apart, float64."""

    routing: Float[Tensor, "*h planes"]
    planes: Float[Tensor, "*h planes 2 d"]
    """Orthonormal x_i, y_i, so that (M - M^T) / 2 = sum_i routing_i (x_i y_i^T - y_i x_i^T)."""
    filtering: Float[Tensor, "*h p"]
    modes: Float[Tensor, "*h p d"]
    """Orthonormal u_i, so that (M + M^T) / 2 = sum_i filtering_i u_i u_i^T."""


def core_of_factors(
    left: Float[Tensor, "*h d e"], right: Float[Tensor, "*h d e"]
) -> tuple[Float[Tensor, "*h p e"], Float[Tensor, "*h p e"]]:
    """a and b, float64."""
    left, right = left.double(), right.double()
    d, e = left.shape[-2:]
    if d <= 2 * e:
        return left, right
    triangle = torch.linalg.qr(torch.cat([left, right], -1), mode="r").R
    return triangle[..., :e], triangle[..., e:]


def core_and_basis(
    left: Float[Tensor, "*h d e"], right: Float[Tensor, "*h d e"]
) -> tuple[Float[Tensor, "*h p e"], Float[Tensor, "*h p e"], Float[Tensor, "*h d p"]]:
    """a, b and U, float64."""
    left, right = left.double(), right.double()
    d, e = left.shape[-2:]
    if d <= 2 * e:
        return left, right, torch.eye(d, dtype=left.dtype, device=left.device).expand(*left.shape[:-2], d, d)
    basis, triangle = torch.linalg.qr(torch.cat([left, right], -1))
    return triangle[..., :e], triangle[..., e:], basis


def core_of_gram(
    gram: Float[Tensor, "*h two_e two_e"], size: int
) -> tuple[Float[Tensor, "*h p e"], Float[Tensor, "*h p e"]]:
    """a and b with p = `size` rows from the Gram matrix of [left right] (float64), which may be singular.

    M does not change when column j of left is multiplied by a number and column j of right divided by it. They are made
    alike in norm, by a power of two, which rounds nothing: else a long column would drown short ones. Where one of the
    two is zero the other counts for nothing.
    """
    refuse_nonfinite(gram)
    e = gram.shape[-1] // 2
    norms = gram.diagonal(dim1=-2, dim2=-1)
    long, short = norms[..., :e], norms[..., e:]
    counts = (long > 0) & (short > 0)
    balance = torch.where(counts, torch.exp2(torch.round((short.log2() - long.log2()) / 4)), 0)
    scale = torch.cat([balance, torch.where(counts, 1 / balance, 0)], -1)
    values, vectors = torch.linalg.eigh(scale[..., :, None] * gram * scale[..., None, :])
    F = (vectors * values.clamp_min(0).sqrt()[..., None, :])[..., -size:]
    return F[..., :e, :].mT, F[..., e:, :].mT


def spectrum_of_core(a: Float[Tensor, "*h p e"], b: Float[Tensor, "*h p e"]) -> BilinearSpectrum:
    """Spectra of the two parts of a b^T."""
    skew, symmetric = _parts(a, b)
    planes = skew.shape[-1] // 2
    singular = torch.linalg.svdvals(skew)[..., : 2 * planes]
    return BilinearSpectrum(
        singular.unflatten(-1, (planes, 2)).mean(-1), torch.linalg.eigvalsh(symmetric).flip(-1).contiguous()
    )


def vectors_of_core(a: Float[Tensor, "*h p e"], b: Float[Tensor, "*h p e"]) -> BilinearVectors:
    """The two parts of a b^T taken apart; vectors have p entries."""
    skew, symmetric = _parts(a, b)
    p = skew.shape[-1]
    planes = p // 2
    # i times a skew matrix is Hermitian; of an eigenvector for mu > 0, skew @ Re = mu Im and skew @ Im = -mu Re
    routing, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), skew))
    routing, vectors = routing[..., p - planes :].flip(-1), vectors[..., p - planes :].flip(-1)
    pairs = torch.stack([vectors.imag, vectors.real], -1).flatten(-2) * 2**0.5
    # Orthonormal already, except where mu is zero to rounding: a QR decomposition mends that and leaves the others.
    mended, triangle = torch.linalg.qr(pairs)
    mended = mended * torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
    filtering, modes = torch.linalg.eigh(symmetric)
    return BilinearVectors(
        routing.clamp_min(0), mended.mT.unflatten(-2, (planes, 2)), filtering.flip(-1), modes.flip(-1).mT
    )


def _parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    core = a @ b.mT
    refuse_nonfinite(core)
    return (core - core.mT) / 2, (core + core.mT) / 2


def refuse_nonfinite(core: Tensor) -> None:
    if not core.isfinite().all():
        raise ValueError("left or right holds NaN or infinite values (or float64 overflows in their products)")
