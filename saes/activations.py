"""Which features of a token are active, and how strongly: the rules that make an SAE sparse.

A rule maps tokens and encoder weights to `Codes`, without keeping a dense matrix of activations. With
z = x W_enc + b_enc:

    ReLU       z where z > 0
    TopK       relu(the k largest z of each token)
    JumpReLU   z where z > threshold, one threshold >= 0 per feature                  https://arxiv.org/abs/2407.14435
    Gated      relu((z - b_enc) exp(r_mag) + b_mag) where z > 0                       https://arxiv.org/abs/2404.16014

(Gated: `b_enc` is the gate's bias, SAELens's `b_gate`; gate and magnitude share the directions of `W_enc`.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from midlens_kernels import threshold_encode, topk_encode
from torch import Tensor

from saes.codes import Codes


@dataclass(frozen=True)
class ReLU:
    """Every positive pre-activation."""

    def __call__(self, x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"]) -> Codes:
        """Encode; gradients reach all three tensors."""
        return Codes(*threshold_encode(x, W_enc, b_enc, torch.zeros_like(b_enc)), len(b_enc))


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token, then ReLU; always k entries per token, some may be zero."""

    k: int

    def __call__(self, x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"]) -> Codes:
        """Encode; gradients reach all three tensors."""
        return Codes.of_fixed_k(*topk_encode(x, W_enc, b_enc, self.k), len(b_enc))


@dataclass(frozen=True)
class JumpReLU:
    """Every pre-activation above its feature's threshold; no gradient reaches the threshold (see `saes.jump`)."""

    threshold: Float[Tensor, " f"]

    def __call__(self, x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"]) -> Codes:
        """Encode; gradients reach all three tensors."""
        return Codes(*threshold_encode(x, W_enc, b_enc, self.threshold.detach()), len(b_enc))


@dataclass(frozen=True)
class Gated:
    """Features whose gate is open, with a magnitude of its own scale and bias; the magnitude may be zero."""

    r_mag: Float[Tensor, " f"]
    b_mag: Float[Tensor, " f"]

    def __call__(self, x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"]) -> Codes:
        """Encode; gradients reach the magnitude's tensors, `x` and `W_enc` (the gate's bias gets none)."""
        gate, indices, offsets = threshold_encode(x, W_enc, b_enc, torch.zeros_like(b_enc))
        shared = gate - b_enc[indices]
        values = (shared * self.r_mag.exp()[indices] + self.b_mag[indices]).relu()
        return Codes(values, indices, offsets, len(b_enc))


Rule = ReLU | TopK | JumpReLU | Gated
