"""The sparse backward pass of the encoders with Triton's bags: `_sparse_product.entries`, each sum in a fixed order.

The equations are those of `midlens_kernels._sparse_product`. The bias gradient is a bag as well, over a table of one 1:
summed in float32, where adding to the places of a low-precision tensor rounds every time.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from midlens_kernels._bags import reverse_index, rows_of
from midlens_kernels.topk_decode._triton import weighted_bags


class _Entries(torch.autograd.Function):
    """The identity on `pre`; backward sends its gradient to what it was computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        pre: Tensor,
        idx: Tensor,
        offsets: Tensor,
        longest: int | None,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, idx, offsets)
        ctx.longest = longest
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W_enc, idx, offsets = ctx.saved_tensors
        (g,) = gradients
        g_x = g_W = g_b = None
        if ctx.needs_input_grad[0]:
            g_x = weighted_bags(W_enc.T, idx, g, offsets, longest=ctx.longest)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            order, edges = reverse_index(idx, W_enc.shape[1])
            g = g[order]
            if ctx.needs_input_grad[1]:
                g_W = weighted_bags(x, rows_of(offsets, len(idx))[order], g, edges).T
            if ctx.needs_input_grad[2]:
                g_b = weighted_bags(x.new_ones(1, 1), torch.zeros_like(order), g, edges)[:, 0]
        return g_x, g_W, g_b, None, None, None, None


def entries(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    pre: Float[Tensor, " m"],
    idx: Int[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
    *,
    longest: int | None = None,
) -> Float[Tensor, " m"]:
    """`pre` as a function of x, W_enc and b_enc: gradients reach all three. `longest`: no token has more entries."""
    return _Entries.apply(x, W_enc, b_enc, pre, idx, offsets, longest)
