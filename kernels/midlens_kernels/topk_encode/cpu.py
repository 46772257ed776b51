"""Production `topk_encode` in plain PyTorch: dense forward in chunks of tokens, sparse backward.

ReLU comes after the sparse product: among the k largest there may be negative ones, their gradient is cut with them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._sparse_product import entries, pre_activations

GROUP = 8  # columns per group in the first stage of the selection; 8 and 16 measured best from width 4,608 to 131,072


def _largest(pre: Tensor, k: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`pre.topk(k)` in any order, exactly: the k largest lie in the k groups with the largest maxima.

    Columns i, i + g, i + 2g, ... form group i of g, so that maxima are taken over whole vectors.
    """
    if weight is not None:
        places = (pre * weight).topk(k, dim=-1, sorted=False).indices
        return pre.gather(1, places), places
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


@torch.no_grad()
def _select(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, weight: Tensor | None, compute: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each token and their features, a chunk of tokens at a time."""
    values = x.new_empty(len(x), k)
    idx = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for start, pre in pre_activations(x, W_enc, b_enc, compute):
        values[start : start + len(pre)], idx[start : start + len(pre)] = _largest(pre, k, weight)
    return values, idx


def topk_encode_cpu(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    k: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Encode tokens; pre-activations live only for one chunk, and nothing dense is kept for the backward pass."""
    values, idx = _select(x, W_enc, b_enc, k, weight, compute)
    offsets = torch.arange(len(x) + 1, device=x.device) * k
    return entries(x, W_enc, b_enc, values.view(-1), idx.view(-1), offsets).view_as(values).relu(), idx
