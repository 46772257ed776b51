"""Chosen entries of `x W_enc + b_enc`: the dense product in chunks of tokens, and the sparse backward pass.

Every encoder of this package computes all pre-activations, chunk by chunk, and keeps m of them. Entry j belongs to
token row[j] and feature idx[j]; with g = dL/dpre of the m entries

    dL/dx[n]        = sum over entries of token n:   g W_enc[:, idx]     bags over the rows of W_enc's transpose
    dL/dW_enc[:, i] = sum over entries of feature i: g x[row]            bags over x, through the reverse index
    dL/db_enc[i]    = sum over entries of feature i: g          bags of numbers, in float32 at least

Every sum has a fixed order: no atomics on any device. Where W_enc is the transpose of a stored `f d` matrix, the bags
read and write that matrix's own rows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from midlens_kernels._bags import bag_sums, reverse_index, rows_of, weighted_bags

CHUNK = 2**24  # pre-activations alive at a time; 2^22 to 2^26 measured alike, as long as a chunk has 256 tokens


def pre_activations(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"], compute: torch.dtype | None
) -> Iterator[tuple[int, Float[Tensor, "r f"]]]:
    """The first token of each chunk and the chunk's pre-activations, in the dtype `compute` (None: that of x).

    All chunks are written to the same place: each is valid until the next is asked for."""
    x, W_enc, b_enc = (t.detach().to(compute or x.dtype) for t in (x, W_enc, b_enc))
    rows = max(1, CHUNK // len(b_enc))
    out = x.new_empty(min(rows, len(x)), len(b_enc))
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        yield start, torch.addmm(b_enc, chunk, W_enc, out=out[: len(chunk)])


class _Entries(torch.autograd.Function):
    """The identity on `pre`; backward sends its gradient to what it was computed from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, pre: Tensor, idx: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x, W_enc, idx, offsets)
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W_enc, idx, offsets = ctx.saved_tensors
        (g,) = gradients
        g_x = g_W = g_b = None
        if ctx.needs_input_grad[0]:
            g_x = weighted_bags(W_enc.T.contiguous(), idx, g, offsets)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            order, edges = reverse_index(idx, W_enc.shape[1])
            g = g[order]
            if ctx.needs_input_grad[1]:
                g_W = weighted_bags(x.contiguous(), rows_of(offsets, len(idx))[order], g, edges).T
            if ctx.needs_input_grad[2]:
                g_b = bag_sums(g, edges)
        return g_x, g_W, g_b, None, None, None


def entries(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    pre: Float[Tensor, " m"],
    idx: Int[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
) -> Float[Tensor, " m"]:
    """`pre`, computed already, as a function of x, W_enc and b_enc: gradients reach all three."""
    return _Entries.apply(x, W_enc, b_enc, pre, idx, offsets)
