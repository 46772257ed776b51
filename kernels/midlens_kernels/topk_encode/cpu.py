"""Production `topk_encode` in plain PyTorch: dense forward in chunks of tokens, sparse backward.

ReLU comes after the sparse product: among the k largest there may be negative ones, their gradient is cut with them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._groups import BLOCK, GROUP, group_maxima, left_over, members
from midlens_kernels._sparse_product import entries, pre_activations


def _largest(pre: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The pre-activations and features that rank highest in each row, in any order, exactly."""
    n, f = pre.shape
    if f // GROUP < 2 * k:
        return _largest_of_all(pre, k, weight)
    chosen = group_maxima(pre, weight).topk(k, sorted=False).indices
    columns = torch.cat([members(chosen, f).flatten(1), left_over(f, pre.device).expand(n, -1)], dim=1)
    candidates = pre.gather(1, columns)
    scores = candidates if weight is None else candidates * weight[columns]
    places = scores.topk(k, sorted=False).indices
    return candidates.gather(1, places), columns.gather(1, places)


def _largest_of_all(pre: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same without groups, for k near f; scores exist for a block of rows at a time."""
    if weight is None:
        values, idx = pre.topk(k, sorted=False)
        return values, idx
    blocks = pre.split(max(1, BLOCK // pre.shape[1]))
    idx = torch.cat([(block * weight).topk(k, sorted=False).indices for block in blocks])
    return pre.gather(1, idx), idx


@torch.no_grad()
def _select(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, weight: Tensor | None, compute: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The k highest of each token and their features, a chunk of tokens at a time."""
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
