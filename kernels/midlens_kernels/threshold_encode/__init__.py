"""Encoding by a threshold per feature: the pre-activations `x W_enc + b_enc > floor` and where they are.

The comparison is strict. Values are pre-activations, not gated: what JumpReLU, ReLU and the straight-through
estimators around them start from. Their number depends on the data: the call waits for the device. `floor` gets no
gradient. Entries are grouped by token and ascend in feature.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for
from midlens_kernels.threshold_encode.cpu import threshold_encode_cpu
from midlens_kernels.threshold_encode.reference import threshold_encode_reference


def threshold_encode(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    floor: Float[Tensor, " f"],
    *,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Pre-activations above `floor`, their features, and the n + 1 offsets of the tokens."""
    encode = threshold_encode_reference if backend_for(x, W_enc, b_enc) == "reference" else threshold_encode_cpu
    return encode(x, W_enc, b_enc, floor.detach(), compute=compute)
