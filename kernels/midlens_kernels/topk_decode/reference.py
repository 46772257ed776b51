"""The definition of `topk_decode`, in plain PyTorch: scatter the codes into a dense matrix, then multiply."""

from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._bags import rows_of


def topk_decode_reference(
    acts: Float[Tensor, " m"], idx: Int[Tensor, " m"], offsets: Int[Tensor, " bags"], W_dec: Float[Tensor, "f d"]
) -> Float[Tensor, "n d"]:
    """Decode flat codes: token i owns the entries from `offsets[i]` to `offsets[i + 1]`."""
    rows = rows_of(offsets, len(acts))
    dense = acts.new_zeros(len(offsets) - 1, len(W_dec)).index_put((rows, idx.long()), acts, accumulate=True)
    return dense @ W_dec
