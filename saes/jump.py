"""JumpReLU's straight-through estimators: gradients for a threshold that the loss depends on by jumps.

    jump(z, t) = z H(z - t)          step(z, t) = H(z - t)

With K(u) = 1 for |u| < 1/2 (else 0) and bandwidth e, the derivative of H is taken as K((z - t) / e) / e:

    d jump / dt = -(t / e) K       d jump / dz = H      [+ (t / e) K   with `through`]
    d step / dt = -(1 / e) K       d step / dz = 0      [+ (1 / e) K   with `through`]

Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435 (gradient to the thresholds alone); `through` is the variant
that sends it to the encoder as well, as Anthropic's of January 2025 does. Entries farther than e / 2 below their
threshold have neither value nor gradient and may be left out.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _Jump(torch.autograd.Function):
    """Value `z^a H(z - t)` with a = 1 (jump) or 0 (step)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, bandwidth: float, through: bool, keeps_value: bool) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.settings = bandwidth, through, keeps_value
        above = (z > t).to(z.dtype)
        return z * above if keeps_value else above

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        z, t = ctx.saved_tensors
        bandwidth, through, keeps_value = ctx.settings
        near = g * ((z - t).abs() < bandwidth / 2) / bandwidth
        if keeps_value:
            near = near * t
        g_z = g * (z > t) if keeps_value else torch.zeros_like(g)
        return (g_z + near if through else g_z), (-near).sum_to_size(t.shape), None, None, None


def jump(
    z: Float[Tensor, "*entries"], t: Float[Tensor, "..."], *, bandwidth: float, through: bool = False
) -> Float[Tensor, "*entries"]:
    """JumpReLU of the pre-activations `z` with thresholds `t` (broadcast against `z`)."""
    return _Jump.apply(z, t, bandwidth, through, True)


def step(
    z: Float[Tensor, "*entries"], t: Float[Tensor, "..."], *, bandwidth: float, through: bool = False
) -> Float[Tensor, "*entries"]:
    """1 where `z` exceeds its threshold: summed, L0."""
    return _Jump.apply(z, t, bandwidth, through, False)
