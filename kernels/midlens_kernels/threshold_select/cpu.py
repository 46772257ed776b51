"""Production `threshold_select` in plain PyTorch: a running selection over chunks of tokens, sparse backward."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._sparse_product import entries, pre_activations


@torch.no_grad()
def _select(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    count: int,
    weight: Tensor | None,
    kept: Tensor | None,
    compute: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """The values of the `count` best entries and their places in the flattened n f, ascending."""
    f = len(b_enc)
    best = values = x.new_empty(0)
    places = torch.empty(0, dtype=torch.int64, device=x.device)
    for start, pre in pre_activations(x, W_enc, b_enc, compute):
        score = pre if weight is None else pre * weight
        if kept is not None:
            chunk = kept[start : start + len(pre), None]
            score, pre = score.masked_fill(chunk == 0, -torch.inf), pre * chunk
        top, at = score.flatten().topk(min(count, pre.numel()), sorted=False)
        best = torch.cat([best, top.to(x.dtype)])
        values = torch.cat([values, pre.flatten()[at].to(x.dtype)])
        places = torch.cat([places, at + start * f])
        best, at = best.topk(min(count, len(best)), sorted=False)
        values, places = values[at], places[at]
    places, order = places.sort()
    return values[order], places


def threshold_select_cpu(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    count: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    kept: Float[Tensor, " n"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Encode tokens; `m` is `count`."""
    values, places = _select(x, W_enc, b_enc, count, weight, kept, compute)
    idx = places % len(b_enc)
    offsets = torch.searchsorted(places, torch.arange(len(x) + 1, device=x.device) * len(b_enc))
    return entries(x, W_enc, b_enc, values, idx, offsets).relu(), idx, offsets
