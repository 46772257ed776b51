"""Production `topk_decode` in plain PyTorch: embedding bags forward, a reverse index for the weight gradient.

The forward pass and the gradient of `acts` are PyTorch's own embedding bag over a detached `W_dec`; only the gradient
of `W_dec` is ours: the bags of the reversed index over the rows of the incoming gradient.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from midlens_kernels._bags import feature_rows_gradient, rows_of, weighted_bags


class _DecoderGradient(torch.autograd.Function):
    """The identity on y; backward also sends `dL/dW_dec[i] = sum over entries of i: acts * dL/dy[row]`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, acts: Tensor, idx: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(acts, idx, offsets)
        ctx.n_features = len(W_dec)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (g_y,) = gradients
        acts, idx, offsets = ctx.saved_tensors
        g_W = feature_rows_gradient(g_y, rows_of(offsets, len(idx)), idx, acts, ctx.n_features)
        return g_y, None, None, None, g_W


def topk_decode_cpu(
    acts: Float[Tensor, " m"], idx: Int[Tensor, " m"], offsets: Int[Tensor, " bags"], W_dec: Float[Tensor, "f d"]
) -> Float[Tensor, "n d"]:
    """Decode flat codes without a dense temporary."""
    y = weighted_bags(W_dec.detach(), idx, acts, offsets)
    if W_dec.requires_grad and torch.is_grad_enabled():
        y = _DecoderGradient.apply(y, acts.detach(), idx, offsets, W_dec)
    return y
