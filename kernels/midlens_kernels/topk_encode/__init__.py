"""Top-k encoding: `acts, idx = relu(top_k(x W_enc + b_enc))`.

The k largest pre-activations of each token, then ReLU: with fewer than k positive ones the rest of the k entries are
zero and send no gradient. The order of the k is not defined, nor is which of equal values is taken.

`W_enc` has the shape `d f`; it is fast where its *transpose* is contiguous (features as rows), which is how `saes.SAE`
stores it. Cost: one `n d x d f` product and a selection, in chunks of tokens, so that at most 2^26 pre-activations
exist at a time; the backward pass touches only the n k entries chosen: O(n k d). `W_enc`'s gradient is dense.
"""

from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for
from midlens_kernels.topk_encode.cpu import topk_encode_cpu
from midlens_kernels.topk_encode.reference import topk_encode_reference


def topk_encode(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Encode tokens to k activations >= 0 and their features; same as `topk_encode_reference`, gradients too."""
    if not 1 <= k <= len(b_enc):
        raise ValueError(f"k must lie between 1 and the number of features ({len(b_enc)}), got {k}")
    if backend_for(x, W_enc, b_enc) == "reference":
        return topk_encode_reference(x, W_enc, b_enc, k)
    return topk_encode_cpu(x, W_enc, b_enc, k)
