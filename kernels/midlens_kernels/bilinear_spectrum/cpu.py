"""Production `bilinear_spectrum` in plain PyTorch: QR decomposition and core, batched, float64; gradients by vectors.

With g = dL/d(filtering_i) and h = dL/d(routing_i), u_i the modes and x_i, y_i the planes of the core,

    dL/dC = sum_i g_i u_i u_i^T  +  sum_i h_i (x_i y_i^T - y_i x_i^T) / 2,     dL/dleft = U (dL/dC) b,
                                                                             dL/dright = U (dL/dC)^T a

which needs vectors, unlike the values: they are computed in the backward pass, from left and right.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from midlens_kernels.bilinear_spectrum.core import (
    BilinearSpectrum,
    core_and_basis,
    core_of_factors,
    spectrum_of_core,
    vectors_of_core,
)

PIECE = 2**24  # numbers of [left right] in float64 at a time (128 MiB), whatever the number of heads


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few matrices of each tensor at a time, leading axes flattened; at least one piece, if an empty one."""
    d, e = tensors[0].shape[-2:]
    flat = [t.reshape(t.shape[:-2].numel(), *t.shape[-2:]) for t in tensors]
    yield from zip(*(t.split(max(1, PIECE // (2 * d * e))) for t in flat), strict=True)


class Spectrum(torch.autograd.Function):
    """Values by whatever `forward_by` computes for flat heads; gradients always by QR, which loses no digits."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, forward_by: Callable[..., BilinearSpectrum]) -> Any:
        ctx.save_for_backward(left, right)
        found = [forward_by(*piece) for piece in pieces(left, right)]
        return tuple(torch.cat(t).view(*left.shape[:-2], t[0].shape[-1]) for t in zip(*found, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = ctx.saved_tensors
        g_routing, g_filtering = (g[..., None] for g in gradients)
        found = [_gradients(*piece) for piece in pieces(left, right, g_routing, g_filtering)]
        g_left, g_right = (torch.cat(t).reshape(left.shape) for t in zip(*found, strict=True))
        return g_left, g_right, None


def _gradients(left: Tensor, right: Tensor, g_routing: Tensor, g_filtering: Tensor) -> tuple[Tensor, Tensor]:
    a, b, basis = core_and_basis(left, right)
    vectors = vectors_of_core(a, b)
    x, y = vectors.planes.unbind(-2)
    turned = x.mT @ (g_routing * y)
    g_core = vectors.modes.mT @ (g_filtering * vectors.modes) + (turned - turned.mT) / 2
    return (basis @ (g_core @ b)).to(left.dtype), (basis @ (g_core.mT @ a)).to(right.dtype)


def by_qr(left: Tensor, right: Tensor) -> BilinearSpectrum:
    return spectrum_of_core(*core_of_factors(left, right))


def bilinear_spectrum_cpu(left: Float[Tensor, "*h d e"], right: Float[Tensor, "*h d e"]) -> BilinearSpectrum:
    """Spectra from the core of a QR decomposition; float64 exists for a piece of the heads at a time."""
    return BilinearSpectrum(*Spectrum.apply(left, right, by_qr))
