"""The definition of `topk_encode`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._reference import pre_activations


def topk_encode_reference(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    k: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest pre-activations (by pre-activation times `weight`) of each token, then ReLU."""
    pre = pre_activations(x, W_enc, b_enc, compute)
    idx = (pre if weight is None else pre * weight).topk(k, dim=-1).indices
    return pre.gather(1, idx).relu(), idx
