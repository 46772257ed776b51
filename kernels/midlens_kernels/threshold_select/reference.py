"""The definition of `threshold_select`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._reference import pre_activations


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
    """The `count` largest of all pre-activations (times `weight`; of tokens with `kept` 0 last), then ReLU."""
    pre = pre_activations(x, W_enc, b_enc, compute)
    score = pre if weight is None else pre * weight
    if kept is not None:
        score, pre = (t.masked_fill(kept[:, None] == 0, out) for t, out in ((score, -torch.inf), (pre, 0)))
    places = score.flatten().topk(count).indices.sort().values
    edges = torch.arange(len(x) + 1, device=x.device) * len(b_enc)
    return pre.flatten()[places].relu(), places % len(b_enc), torch.searchsorted(places, edges)
