"""The definition of `threshold_select`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def threshold_select_reference(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    count: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    kept: Float[Tensor, " n"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """The `count` largest of all pre-activations (times `weight`; none of tokens with `kept` 0), then ReLU."""
    n, f = len(x), len(b_enc)
    pre = (x.to(compute) @ W_enc.to(compute) + b_enc.to(compute)).to(x.dtype) if compute else x @ W_enc + b_enc
    score = pre if weight is None else pre * weight
    if kept is not None:
        score, pre = score.masked_fill(kept[:, None] == 0, -torch.inf), pre * kept[:, None]
    places = score.flatten().topk(count).indices.sort().values
    edges = torch.arange(n + 1, device=x.device) * f
    return pre.flatten()[places].relu(), places % f, torch.searchsorted(places, edges)
