"""Sparse decoding: `y[n] = sum_j acts[n, j] * W_dec[idx[n, j]]`.

Codes come with a fixed k per token (`acts` and `idx` of shape `n k`), or ragged (`acts` and `idx` flat, shape `m`, with
`offsets` of shape `n+1`: token i owns the entries from `offsets[i]` to `offsets[i + 1]`). An index may repeat, a token
may own nothing. Gradients reach `acts` and `W_dec` (dense, `f d`, zero rows for features that did not occur).

Cost: O(m d) work and memory traffic in the forward pass and in each gradient, plus one sort of the m indices; no `n f`
and no `m d` temporary. See README.md for the derivation and the measurements.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._dispatch import backend_for
from midlens_kernels.topk_decode.cpu import topk_decode_cpu
from midlens_kernels.topk_decode.reference import topk_decode_reference


def topk_decode(
    acts: Float[Tensor, "*codes"],
    idx: Int[Tensor, "*codes"],
    W_dec: Float[Tensor, "f d"],
    *,
    offsets: Int[Tensor, " bags"] | None = None,
) -> Float[Tensor, "n d"]:
    """Decode sparse codes; same value and gradients as `topk_decode_reference`."""
    longest = None
    if offsets is None:
        if acts.ndim != 2:
            raise ValueError(f"codes without offsets have the shape (n, k), got {tuple(acts.shape)}")
        n, longest = acts.shape
        offsets = torch.arange(n + 1, device=idx.device, dtype=idx.dtype) * longest
    elif acts.ndim != 1:
        raise ValueError(f"codes with offsets are flat, got the shape {tuple(acts.shape)}")
    acts, idx = acts.reshape(-1), idx.reshape(-1)
    match backend_for("topk_decode", acts, W_dec):
        case "reference":
            return topk_decode_reference(acts, idx, offsets, W_dec)
        case "torch":
            return topk_decode_cpu(acts, idx, offsets, W_dec)
        case "triton":
            from midlens_kernels.topk_decode._triton import topk_decode_triton

            return topk_decode_triton(acts, idx, offsets, W_dec, longest=longest)
