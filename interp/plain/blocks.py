"""The parts of a block, each a pure function of tensors: norms, rotary embedding, mask, attention, activations.

    RMSNorm     n(x) = x / √(mean(x²) + ε)                     then γ n(x); Gemma stores γ − 1
    LayerNorm   n(x) = (x − mean x) / √(var x + ε)             then γ n(x) + β
    RoPE        (x_i, x_{i+r/2}) ↦ (x_i cos pω_i − x_{i+r/2} sin pω_i,  x_{i+r/2} cos pω_i + x_i sin pω_i),
                ω_i = θ^{−2i/r}, i < r/2, over the first r of e dimensions, p the position
    llama3      ω ↦ ω, ω/factor, or their blend, by turns over the original length: original · ω / 2π
    scores      S_ts = c(scale q_t · k_s), c(x) = cap · tanh(x / cap) where there is a soft-cap; −inf where masked
    mask        s ≤ t, and t − s < window where the layer slides
    z           z_t = Σ_s softmax_s(S_t)_s v_s;  query head i reads key-value group i // (h // g)

Hugging Face stores query and key rows so that the two turning dimensions are i and i + r/2 (Meta's Llama turns 2i and
2i + 1 of differently ordered rows), hence the pairing above.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.plain.settings import Norm, Rope


def normalized(x: Float[Tensor, "... d"], kind: Norm, eps: float) -> Float[Tensor, "... d"]:
    """The norm before its gain."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def gained(
    n: Float[Tensor, "... d"], kind: Norm, gain: Float[Tensor, " d"], bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "... d"]:
    """The norm's gain, and LayerNorm's bias."""
    y = n * (1 + gain) if kind == "rms_plus_one" else n * gain
    return y if bias is None else y + bias


def frequencies(rope: Rope, *, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " r"]:
    """ω of every turning pair, scaled as the model's configuration says."""
    omegas = []
    for i in range(rope.dims // 2):
        omega = rope.theta ** (-2 * i / rope.dims)
        if rope.kind == "linear":
            omega /= rope.factor
        elif rope.kind == "llama3":
            omega = _llama3(omega, rope)
        omegas.append(omega)
    return torch.tensor(omegas, dtype=dtype, device=device)


def _llama3(omega: float, rope: Rope) -> float:
    turns = rope.original_length * omega / (2 * math.pi)  # how often the pair turns over the original length
    if turns > rope.high:
        return omega
    if turns < rope.low:
        return omega / rope.factor
    keep = (turns - rope.low) / (rope.high - rope.low)
    return keep * omega + (1 - keep) * omega / rope.factor


def rotate(x: Float[Tensor, "b t h e"], rope: Rope) -> Float[Tensor, "b t h e"]:
    """Turn the first `rope.dims` dimensions of every head by position times frequency; the others pass."""
    half = rope.dims // 2
    positions = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
    angle = torch.einsum("t,r->tr", positions, frequencies(rope, dtype=x.dtype, device=x.device))
    cos, sin = angle.cos()[None, :, None, :], angle.sin()[None, :, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def allowed(t: int, window: int | None, *, device: torch.device) -> Bool[Tensor, "t s"]:
    """Which sources a query may read: its own position and earlier ones, the last `window` of them if there is one."""
    query = torch.arange(t, device=device)[:, None]
    source = torch.arange(t, device=device)[None, :]
    causal = source <= query
    return causal if window is None else causal & (query - source < window)


def attention_scores(
    q: Float[Tensor, "b t h e"], k: Float[Tensor, "b s g e"], *, scale: float, cap: float | None, window: int | None
) -> Float[Tensor, "b h t s"]:
    """Scaled, capped and masked scores."""
    b, t, h, e = q.shape
    g = k.shape[2]
    per_group = q.reshape(b, t, g, h // g, e)
    scores = torch.einsum("btgre,bsge->bgrts", per_group, k).reshape(b, h, t, t) * scale
    scores = soft_cap(scores, cap)
    return scores.masked_fill(~allowed(t, window, device=q.device), -math.inf)


def mix(pattern: Float[Tensor, "b h t s"], v: Float[Tensor, "b s g e"]) -> Float[Tensor, "b t h e"]:
    """z: every head's mixture of its group's values."""
    b, h, t, s = pattern.shape
    g = v.shape[2]
    z = torch.einsum("bgrts,bsge->btgre", pattern.reshape(b, g, h // g, t, s), v)
    return z.reshape(b, t, h, v.shape[-1])


def soft_cap(x: Float[Tensor, "..."], cap: float | None) -> Float[Tensor, "..."]:
    """cap · tanh(x / cap), or x where there is no cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def activation(x: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
    """The MLP's nonlinearity by its name in the configuration."""
    if name in ("silu", "swish"):
        return x / (1 + torch.exp(-x))
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if name == "relu":
        return x.clamp_min(0)
    raise InputError(
        f"activation {name!r} has no plain form; known: silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu"
    )
