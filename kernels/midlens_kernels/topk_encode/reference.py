"""The definition of `topk_encode`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk_encode_reference(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    k: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest pre-activations (times `weight`) of each token, then ReLU."""
    pre = (x.to(compute) @ W_enc.to(compute) + b_enc.to(compute)).to(x.dtype) if compute else x @ W_enc + b_enc
    idx = (pre if weight is None else pre * weight).topk(k, dim=-1).indices
    return pre.gather(1, idx).relu(), idx
