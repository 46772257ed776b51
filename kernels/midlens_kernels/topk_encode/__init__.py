"""Top-k encoding: `acts, idx = relu(top_k(x W_enc + b_enc))`.

The k largest pre-activations of each token, then ReLU: with fewer than k positive ones the rest of the k entries are
zero and send no gradient. With `weight` the ranking is by pre-activation times weight; what is returned is not
multiplied. The order of the k is not defined, nor is which of equal values is taken.

`W_enc` has the shape `d f`; it is fast where its *transpose* is contiguous (features as rows), which is how `saes.SAE`
stores it. `compute` is the dtype of the dense product only; results and gradients have that of x. Cost: one
`n d x d f` product and a selection, in chunks of tokens, so that at most 2^24 pre-activations exist at a time; the
backward pass touches only the n k entries chosen: O(n k d). `W_enc`'s gradient is dense. The Triton kernel (k up to
2,048; products in float32, float16 or bfloat16) keeps no pre-activations but lists of the best, at most 512 MiB.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for, beyond_triton, check_compute
from midlens_kernels.topk_encode.cpu import topk_encode_cpu
from midlens_kernels.topk_encode.reference import topk_encode_reference

LIMIT = 2048  # the largest k of the Triton kernel: of 8 k entries its second pass finds the k highest in registers


def topk_encode(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    k: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Encode tokens to k activations >= 0 and their features; same as `topk_encode_reference`, gradients too."""
    check_compute(compute)
    if not 1 <= k <= len(b_enc):
        raise ValueError(f"k must lie between 1 and the number of features ({len(b_enc)}), got {k}")
    weight = None if weight is None else weight.detach()
    no_triton = beyond_triton("k", k, LIMIT, compute or x.dtype)
    match backend_for("topk_encode", x, W_enc, b_enc, no_triton=no_triton):
        case "reference":
            encode = topk_encode_reference
        case "torch":
            encode = topk_encode_cpu
        case "triton":
            from midlens_kernels.topk_encode._triton import topk_encode_triton as encode
    return encode(x, W_enc, b_enc, k, weight=weight, compute=compute)
