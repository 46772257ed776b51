"""BatchTopK encoding: of all n f pre-activations `x W_enc + b_enc` of a batch the `count` largest, then ReLU.

A token owns as many entries as it has among the winners, possibly none: the m = `count` entries come grouped by token,
with `offsets` of shape `n+1` (token i owns those from `offsets[i]` to `offsets[i + 1]`), ascending in feature. With
`weight` the ranking is by pre-activation times weight; what is returned is not multiplied. Tokens with `kept` 0 own no
entries, unless fewer than `count` others exist: then some of theirs fill up, with the value 0. A value of 0 sends no
gradient. Which of equal values is taken is not defined. Bussmann et al. 2024, https://arxiv.org/abs/2412.06410.

`W_enc` has the shape `d f` and is fast where its *transpose* is contiguous. `compute` is the dtype of the dense product
only. Cost: one `n d x d f` product and an exact selection without sorting, in chunks of tokens, so that at most 2^24
pre-activations exist at a time. No shape depends on the data and nothing waits for the device. Backward: O(count d).
The Triton kernels select from chunks of 2^27.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for, beyond_triton, check_compute
from midlens_kernels.threshold_select.cpu import threshold_select_cpu
from midlens_kernels.threshold_select.reference import threshold_select_reference

LIMIT = 2**30  # the largest count of the Triton kernel: its ranks are 32-bit integers


def threshold_select(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    count: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    kept: Float[Tensor, " n"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Activations >= 0, their features, and the offsets of the tokens; same as `threshold_select_reference`."""
    check_compute(compute)
    if not 0 <= count <= len(x) * len(b_enc):
        size = f"{len(x)} tokens times {len(b_enc)} features"
        raise ValueError(f"count must lie between 0 and the number of pre-activations ({size}), got {count}")
    weight = None if weight is None else weight.detach()
    no_triton = beyond_triton("count", count, LIMIT, compute or x.dtype)
    match backend_for("threshold_select", x, W_enc, b_enc, no_triton=no_triton):
        case "reference":
            select = threshold_select_reference
        case "torch":
            select = threshold_select_cpu
        case "triton":
            from midlens_kernels.threshold_select._triton import threshold_select_triton as select
    return select(x, W_enc, b_enc, count, weight=weight, kept=kept, compute=compute)
