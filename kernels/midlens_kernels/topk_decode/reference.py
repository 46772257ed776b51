"""The definition of `topk_decode`, in plain PyTorch: scatter the codes into a dense matrix, then multiply."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk_decode_reference(
    acts: Float[Tensor, " m"], idx: Int[Tensor, " m"], offsets: Int[Tensor, " bags"], W_dec: Float[Tensor, "f d"]
) -> Float[Tensor, "n d"]:
    """Decode flat codes: token i owns the entries from `offsets[i]` to `offsets[i + 1]`."""
    n = len(offsets) - 1
    rows = torch.repeat_interleave(torch.arange(n, device=idx.device), offsets.diff().long(), output_size=len(acts))
    dense = acts.new_zeros(n, len(W_dec)).index_put((rows, idx.long()), acts, accumulate=True)
    return dense @ W_dec
