"""BatchTopK encoding: the `count` largest of all n f pre-activations of a batch, then ReLU.

A token owns as many entries as it has among the winners, possibly none. With `weight` the ranking is by pre-activation
times weight; what is returned is not multiplied. Tokens with `kept` 0 own no entries unless fewer than `count` others
exist; those then have the value 0. Which of equal values is taken is not defined. Entries are grouped by token.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for
from midlens_kernels.threshold_select.cpu import threshold_select_cpu
from midlens_kernels.threshold_select.reference import threshold_select_reference


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
    """Activations >= 0, their features, and the n + 1 offsets of the tokens; same as `threshold_select_reference`."""
    if not 1 <= count <= len(x) * len(b_enc):
        size = f"{len(x)} tokens times {len(b_enc)} features"
        raise ValueError(f"count must lie between 1 and the number of pre-activations ({size}), got {count}")
    select = threshold_select_reference if backend_for(x, W_enc, b_enc) == "reference" else threshold_select_cpu
    weight = None if weight is None else weight.detach()
    return select(x, W_enc, b_enc, count, weight=weight, kept=kept, compute=compute)
