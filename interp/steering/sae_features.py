"""Steering with dictionary features, from tensors: adding decoder directions, or holding features at a value.

    add_features    x + Σ_i a_i d_i                                  d_i rows of the decoder, at unit length by default
    clamp_features  x + Σ_i (v_i − max(z_i, 0)) d_i,  z_i = w_iᵀx + b_i     the encoder's pre-activation
    clamp_features  without an encoder: z_i the coordinate along d_i in the least-squares sense, set to v_i

Clamping with the encoder is what Templeton et al. 2024 do: the feature's own activation goes out and v_i comes in, the
dictionary's reconstruction error stays. max(z, 0) is a ReLU feature's activation; for JumpReLU it counts as active
between 0 and its threshold as well. A feature's strength is in units of its decoder row: rows of unit length make the
strengths of different dictionaries comparable.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.steering.closed_forms import translation
from interp.steering.edits import AffineEdit, ClampEdit


def add_features(decoder: Float[Tensor, "f d"], features: Mapping[int, float], *, unit: bool = True) -> AffineEdit:
    """Add the given multiples of decoder rows."""
    rows, amounts = _picked(decoder, features, unit)
    return translation(amounts @ rows)


def clamp_features(
    decoder: Float[Tensor, "f d"],
    features: Mapping[int, float],
    *,
    encoder: Float[Tensor, "d f"] | None = None,
    bias: Float[Tensor, " f"] | None = None,
    unit: bool = True,
) -> ClampEdit:
    """Hold features at the given values. `encoder` and `bias` (of x, decoder bias folded in) read their activations.

    With `unit` values are in units of unit-length rows, and so are the activations that are taken out.
    """
    rows, values = _picked(decoder, features, unit)
    if (encoder is None) != (bias is None):
        raise InputError("clamp_features: expected the encoder and its bias together, or neither")
    if encoder is None or bias is None:
        v = torch.linalg.pinv(rows, rtol=1e-10)
        return ClampEdit(rows, v, torch.zeros_like(values), values, values)
    ids = torch.tensor(list(features), device=decoder.device)
    lengths = decoder[ids].double().norm(dim=1) if unit else torch.ones_like(values)
    v, c = encoder[:, ids].double() * lengths, -bias[ids].double() * lengths
    zero = torch.zeros_like(values)
    return ClampEdit(rows, v, c, torch.full_like(zero, -torch.inf), zero, 1.0, values @ rows)


def _picked(decoder: Tensor, features: Mapping[int, float], unit: bool) -> tuple[Tensor, Tensor]:
    if not features or not all(0 <= i < len(decoder) for i in features):
        raise InputError(f"features {sorted(features)}: expected one or more numbers from 0 to {len(decoder) - 1}")
    rows = decoder[torch.tensor(list(features), device=decoder.device)].double()
    lengths = rows.norm(dim=1, keepdim=True)
    if dead := [i for i, length in zip(features, lengths[:, 0].tolist(), strict=True) if not length > 0]:
        raise InputError(f"features {dead} have decoder rows of length 0 (or NaN): nothing can be added along them")
    amounts = torch.tensor(list(features.values()), dtype=torch.float64, device=decoder.device)
    return (rows / lengths if unit else rows), amounts
