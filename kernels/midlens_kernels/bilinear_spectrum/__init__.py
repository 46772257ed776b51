"""Routing and filtering spectra of M = left right^T, which is d x d and of rank e, without forming it.

    routing    (M - M^T) / 2, skew-symmetric: planes that rotate, with singular values in equal pairs
    filtering  (M + M^T) / 2, symmetric: modes with signed eigenvalues

`left` and `right` have the shape `*h d e`: e columns (a head's width), d rows (the width of the residual stream for
weights, W_Q and W_K; the positions for activations, q and k), and any leading axes (heads, layers). Both parts have
rank 2e at most and the spectra of one p x p core, p = min(d, 2e). Results are float64, whatever left and right are.

    spectrum = bilinear_spectrum(left, right)      # .routing (p // 2), .filtering (p); .routing_energy, ...
    bilinear_energies(left, right)                 # three e x e Gram matrices, no decomposition
    bilinear_eigenvalues(left, right)              # of M itself: min(d, e) complex numbers
    bilinear_vectors(left, right)                  # planes and modes as well
    bilinear_core(left, right)                     # the factors in p dimensions: a b^T has all of M's spectra
    gram_spectrum(gram)                            # from a 2e x 2e Gram matrix summed elsewhere

Cost per head: O(d e^2) for the reduction, O(e^3) for the rest; dense, O(d^3). See README.md for the derivation, what
the Gram matrix loses, and the measurements.
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

from midlens_kernels._dispatch import backend_for
from midlens_kernels.bilinear_spectrum.core import BilinearSpectrum as BilinearSpectrum
from midlens_kernels.bilinear_spectrum.core import BilinearVectors as BilinearVectors
from midlens_kernels.bilinear_spectrum.core import (
    core_and_basis,
    core_of_factors,
    core_of_gram,
    refuse_nonfinite,
    spectrum_of_core,
    vectors_of_core,
)
from midlens_kernels.bilinear_spectrum.cpu import bilinear_spectrum_cpu
from midlens_kernels.bilinear_spectrum.reference import bilinear_spectrum_reference

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_Any = Shaped[Tensor, "..."]  # of the shape `*h d e`; what is not is refused in words


class BilinearEnergies(NamedTuple):
    """Squared Frobenius norms of the two parts; they add up to that of M."""

    routing: Float[Tensor, "*h"]
    filtering: Float[Tensor, "*h"]


def bilinear_spectrum(left: _Any, right: _Any) -> BilinearSpectrum:
    """Both spectra; same values and gradients as `bilinear_spectrum_reference`.

    A value that repeats, or a routing value that is zero, has no gradient of its own; functions in which equal values
    count alike (the energies, any sum over all values of a smooth function) do have theirs. Second derivatives are
    refused.

    The Triton kernel, which has to be asked for, goes through the Gram matrix: values below 1e-8 of |left| |right|
    are then noise.
    """
    _check(left, right)
    match backend_for("bilinear_spectrum", left, right):
        case "reference":
            return bilinear_spectrum_reference(left, right)
        case "triton":
            from midlens_kernels.bilinear_spectrum._triton import bilinear_spectrum_triton

            return bilinear_spectrum_triton(left, right)
        case "torch":
            return bilinear_spectrum_cpu(left, right)


def bilinear_energies(left: _Any, right: _Any) -> BilinearEnergies:
    """||M||^2 = <left^T left, right^T right> and tr(M^2) = tr((right^T left)^2), half their sum and difference.

    The cheapest measure, with derivatives of any order. The difference cancels: an energy below 1e-15 |left|^2
    |right|^2 is noise, so a part's norm is known to 1e-8 only. `bilinear_spectrum(...).routing_energy` does not cancel.
    """
    _check(left, right)
    left, right = left.double(), right.double()
    cross = right.mT @ left
    square = ((left.mT @ left) * (right.mT @ right)).sum((-2, -1))
    trace = (cross * cross.mT).sum((-2, -1))
    return BilinearEnergies(((square - trace) / 2).clamp_min(0), ((square + trace) / 2).clamp_min(0))


def bilinear_eigenvalues(left: _Any, right: _Any) -> Complex[Tensor, "*h small"]:
    """Eigenvalues of M itself, complex128, in no order: min(d, e) of them, those of right^T left; the rest are zero.

    Differentiable where they are distinct. M is not normal in general: its eigenvalues may be far more sensitive to
    rounding than the two spectra are.
    """
    _check(left, right)
    left, right = left.double(), right.double()
    product = right.mT @ left if left.shape[-2] > left.shape[-1] else left @ right.mT
    refuse_nonfinite(product)
    return torch.linalg.eigvals(product)


def bilinear_vectors(left: _Any, right: _Any) -> BilinearVectors:
    """Planes and modes with their values; the vectors are d long and carry no gradient."""
    _check(left, right)
    _refuse_gradient("bilinear_vectors", left, right)
    a, b, basis = core_and_basis(left, right)
    routing, planes, filtering, modes = vectors_of_core(a, b)
    planes = (planes.flatten(-3, -2) @ basis.mT).unflatten(-2, planes.shape[-3:-1])
    return BilinearVectors(routing, planes, filtering, modes @ basis.mT)


def bilinear_core(left: _Any, right: _Any) -> tuple[Float[Tensor, "*h p e"], Float[Tensor, "*h p e"]]:
    """a and b (float64) with left = U a, right = U b for one orthonormal U: left A right^T = U (a A b^T) U^T, any A.

    For parts of M that share its factors, as the offsets of rotary embeddings do. No gradient.
    """
    _check(left, right)
    _refuse_gradient("bilinear_core", left, right)
    return core_of_factors(left, right)


def gram_spectrum(gram: _Any) -> BilinearSpectrum:
    """Both spectra (e and 2e values) from [left right]^T [left right], `*h 2e 2e`, summed as rows stream by, say.

    Values below 1e-8 of |left| |right| are noise, however exact the sum was; it has no gradient.
    """
    if gram.ndim < 2 or gram.shape[-1] % 2 or gram.shape[-1] != gram.shape[-2] or not gram.shape[-1]:
        raise ValueError(f"gram must be square and of even size, [left right]^T [left right], got {tuple(gram.shape)}")
    if gram.dtype != torch.float64:
        raise ValueError(f"gram must be summed in float64, got {gram.dtype}: in float32 half its digits are too few")
    _refuse_gradient("gram_spectrum", gram)
    return spectrum_of_core(*core_of_gram(gram, gram.shape[-1]))


def _refuse_gradient(name: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError(
            f"{name} has no gradient, and what it was given requires one: detach it, or call under torch.no_grad(); "
            "bilinear_spectrum, bilinear_energies and bilinear_eigenvalues are differentiable"
        )


def _check(left: Tensor, right: Tensor) -> None:
    shapes = f"got {tuple(left.shape)} and {tuple(right.shape)}"
    if left.ndim < 2 or left.shape != right.shape:
        hint = "; repeat the keys of a group for each of its heads first" if left.shape[-2:] == right.shape[-2:] else ""
        raise ValueError(f"left and right must have one and the same shape (..., d, e), {shapes}{hint}")
    if not left.shape[-1] or not left.shape[-2]:
        raise ValueError(f"left and right must have at least one row and one column, {shapes}")
    if left.dtype != right.dtype or left.dtype not in _DTYPES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise ValueError(f"left and right must have the same dtype, one of {names}, got {left.dtype} and {right.dtype}")
    if left.device != right.device:
        raise ValueError(f"left and right must be on one device, got {left.device} and {right.device}")
