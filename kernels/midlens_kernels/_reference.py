"""What the definitions of all encoders start from."""

import torch
from jaxtyping import Float
from torch import Tensor


def pre_activations(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"], compute: torch.dtype | None
) -> Float[Tensor, "n f"]:
    """`x W_enc + b_enc`, computed in the dtype `compute` (None: that of x), returned in that of x."""
    x_low, W_low, b_low = (t.to(compute or x.dtype) for t in (x, W_enc, b_enc))
    return (x_low @ W_low + b_low).to(x.dtype)
