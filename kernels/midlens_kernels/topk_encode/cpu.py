"""Production `topk_encode` in plain PyTorch: dense forward in chunks of tokens, sparse backward.

With g = dL/dacts where acts > 0 (the ReLU gate: among the top k there may be negative ones) and 0 elsewhere,

    dL/dx[n]        = sum_j g[n, j] W_enc[:, idx[n, j]]           bags over the rows of W_enc's transpose
    dL/dW_enc[:, i] = sum over entries of feature i: g * x[row]    bags over x, through the reverse index
    dL/db_enc[i]    = sum over entries of feature i: g
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._bags import feature_rows_gradient, weighted_bags

CHUNK = 2**26  # pre-activations alive at a time; chunks of 512 to 2,048 tokens measured alike at width 4,608
GROUP = 8  # columns per group in the first stage of the selection; 8 and 16 measured best from width 4,608 to 131,072


def _select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top k and ReLU, a chunk of tokens at a time."""
    rows = max(1, CHUNK // len(b_enc))
    acts = x.new_empty(len(x), k)
    idx = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        values, places = _largest(torch.addmm(b_enc, x[start : start + rows], W_enc), k)
        acts[start : start + rows] = values.relu_()
        idx[start : start + rows] = places
    return acts, idx


def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`pre.topk(k)` in any order, exactly: the k largest lie in the k groups with the largest maxima.

    Columns i, i + g, i + 2g, ... form group i of g, so that maxima are taken over whole vectors.
    """
    n, f = pre.shape
    g = f // GROUP
    if f % GROUP or g < 4 * k:
        values, places = pre.topk(k, dim=-1, sorted=False)
        return values, places
    grouped = pre.view(n, GROUP, g)
    chosen = grouped.amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = grouped.gather(2, chosen[:, None].expand(n, GROUP, k)).view(n, GROUP * k)
    values, places = candidates.topk(k, dim=-1, sorted=False)
    return values, places // k * g + chosen.gather(1, places % k)


class _TopKEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
        acts, idx = _select(x, W_enc, b_enc, k)
        ctx.save_for_backward(x, W_enc, acts, idx)
        ctx.mark_non_differentiable(idx)
        return acts, idx

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, acts, idx = ctx.saved_tensors
        n, k = idx.shape
        gated = (gradients[0] * (acts > 0)).reshape(-1)
        idx = idx.reshape(-1)
        g_x = g_W = g_b = None
        if ctx.needs_input_grad[0]:
            offsets = torch.arange(n + 1, device=idx.device) * k
            g_x = weighted_bags(W_enc.T.contiguous(), idx, gated, offsets)
        if ctx.needs_input_grad[1]:
            rows = torch.arange(n, device=idx.device).repeat_interleave(k)
            g_W = feature_rows_gradient(x, rows, idx, gated, W_enc.shape[1]).T
        if ctx.needs_input_grad[2]:
            g_b = gated.new_zeros(W_enc.shape[1]).index_add_(0, idx, gated)
        return g_x, g_W, g_b, None


def topk_encode_cpu(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Encode tokens; pre-activations live only for one chunk, and nothing dense is kept for the backward pass."""
    return _TopKEncode.apply(x, W_enc, b_enc, k)
