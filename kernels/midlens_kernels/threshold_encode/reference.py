"""The definition of `threshold_encode`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def threshold_encode_reference(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    floor: Float[Tensor, " f"],
    *,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """The pre-activations above `floor`, token by token."""
    pre = (x.to(compute) @ W_enc.to(compute) + b_enc.to(compute)).to(x.dtype) if compute else x @ W_enc + b_enc
    rows, idx = (above := pre > floor).nonzero(as_tuple=True)
    offsets = torch.cat([above.new_zeros(1, dtype=torch.int64), above.sum(1).cumsum(0)])
    return pre[rows, idx], idx, offsets
