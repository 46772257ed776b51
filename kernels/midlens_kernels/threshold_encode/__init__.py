"""Encoding by a threshold per feature: the pre-activations `x W_enc + b_enc > floor`, and where they are.

The comparison is strict. The values are pre-activations, not gated (negative ones occur where `floor` is): what ReLU,
JumpReLU and the straight-through estimators around it start from. Gradients of the values reach `x`, `W_enc` and
`b_enc`; `floor` gets none. The m entries come grouped by token, with `offsets` of shape `n+1` (token i owns those from
`offsets[i]` to `offsets[i + 1]`), ascending in feature.

m depends on the data, so the call **waits for the device**. `W_enc` has the shape `d f` and is fast where its
*transpose* is contiguous. `compute` is the dtype of the dense product only. Cost: one `n d x d f` product and one scan,
in chunks of tokens, so that at most 2^24 pre-activations exist at a time, and on a CPU a mask of 2^18; backward:
O(m d).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for, check_compute
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
    """Pre-activations above `floor`, their features, and the offsets; same as `threshold_encode_reference`."""
    check_compute(compute)
    encode = (
        threshold_encode_reference
        if backend_for("threshold_encode", x, W_enc, b_enc) == "reference"
        else threshold_encode_cpu
    )
    return encode(x, W_enc, b_enc, floor.detach(), compute=compute)
