"""The definition of `threshold_encode`, in plain PyTorch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._reference import pre_activations


def threshold_encode_reference(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    floor: Float[Tensor, " f"],
    *,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """The pre-activations above `floor`, token by token."""
    pre = pre_activations(x, W_enc, b_enc, compute)
    rows, idx = (pre > floor).nonzero(as_tuple=True)
    return pre[rows, idx], idx, torch.searchsorted(rows, torch.arange(len(x) + 1, device=x.device))
