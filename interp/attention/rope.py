"""Rotary embeddings: how a head's bilinear form depends on the offset between query and key, and what of it routes.

A query at position i and a key at j score x_i^T M(j - i) x_j, with P = W_Q, K = W_K (d x e) and

    M(Δ) = P R_Δ K^T = M_pass + Σ_t [cos(Δ ω_t) C_t + sin(Δ ω_t) D_t]
    C_t = a b^T + c e^T,   D_t = c b^T - a e^T        a, c: the two columns of P that pair t turns; b, e: those of K

R_Δ turns the pair (t, t + r/2) ("half", as Hugging Face stores every family here) or (2t, 2t + 1) ("adjacent", GPT-J)
of the first r = 2 pairs of a head's e dimensions by Δ ω_t and leaves the others (M_pass). An attention factor (YaRN)
multiplies cos and sin of query and key alike, so the turning part of M by its square.

Two things are called skew. skew(M(Δ)) swaps contents and keeps places. Swapping the two positions with their contents,
(B_ij ± B_ji) / 2 = x_i^T (F or G)(j - i) x_j, gives

    routing    F(Δ) = (M(Δ) - M(-Δ)^T) / 2 = (P R_Δ K^T - K R_Δ P^T) / 2 = skew(M_even) + sym(M_odd)
    filtering  G(Δ) = (M(Δ) + M(-Δ)^T) / 2                               = sym(M_even) + skew(M_odd)

with M_even, M_odd the parts of M even and odd in Δ (the cosines with M_pass, the sines). At Δ = 0 both notions agree;
elsewhere F is not skew, has rank up to 2e and singular values that come in no pairs. F(-Δ) = -F(Δ)^T, so both signs
have the same values. A causal model uses Δ <= 0 only: the half of F it never pairs with the other follows from this
continuation of the form, not from the function it computes.

Sources: Su et al. 2021 (RoPE); Peng et al. 2023 (YaRN). The four parts are derived here, in the manner of Jamil and
Kapadia 2026 (arXiv 2605.18826), whose own treatment of RoPE is not known to us.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.attention.bilinear import Bilinear
from interp.errors import InputError
from interp.model import HookedModel

Pairs = Literal["half", "adjacent"]
Part = Literal["routing", "filtering"]
_HALF = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox")


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotary embedding of one layer; everything it computes is float64."""

    omega: Float[Tensor, " pairs"]
    """Radians per position by which each pair turns."""
    e: int
    """Width of a head; dimensions from 2 * pairs on pass unturned."""
    pairs: Pairs = "half"
    factor: float = 1.0
    """What cos and sin are multiplied by (YaRN's attention factor)."""

    def __post_init__(self) -> None:
        if self.pairs not in get_args(Pairs):
            raise InputError(f"pairs must be 'half' or 'adjacent', got {self.pairs!r}")
        if 2 * len(self.omega) > self.e:
            raise InputError(
                f"{len(self.omega)} pairs turn {2 * len(self.omega)} dimensions, but a head has e={self.e}; "
                "give one frequency per pair"
            )
        object.__setattr__(self, "omega", self.omega.double())

    @classmethod
    def of(cls, model: HookedModel, layer: int) -> "Rotation":
        """What `layer` of a model turns by, from the frequencies its own rotary module holds (rounding included)."""
        spec = model.cfg
        if not spec.rotary:
            raise InputError(
                f"{spec.family} has no rotary embedding: its scores do not depend on the offset beyond what the "
                "residual stream says of positions; `kernel(model, layer)` is the whole form"
            )
        if not 0 <= layer < model.loaded_layers:
            raise InputError(f"layer {layer}: the model has {model.loaded_layers} layers loaded, counted from 0")
        module = getattr(model.anatomy.body(model.hf), "rotary_emb", None)
        if spec.family not in _HALF or not isinstance(module, nn.Module):
            raise InputError(
                f"how {spec.family} turns its queries is not known; expected one of {', '.join(_HALF)}. For another "
                "model write Rotation(omega, e, pairs='half' or 'adjacent') by hand"
            )
        omega, factor = _held_by(module, model, layer)
        return cls(omega, spec.d_head, "half", factor)

    def check(self, m: Bilinear) -> Bilinear:
        """`m`, if its factors are as wide as the heads that turn."""
        if m.left.shape[-1] != self.e:
            raise InputError(
                f"factors of width {m.left.shape[-1]} were given with the rotation of heads of width {self.e}; "
                "expected the static kernel of one layer, as `kernel(model, layer).bilinear` gives it"
            )
        return m

    def parts(self, x: Float[Tensor, "*n e"]) -> tuple[Tensor, Tensor, Tensor]:
        """First and second dimension of every pair, and the dimensions that pass."""
        r = 2 * len(self.omega)
        if x.shape[-1] != self.e:
            raise InputError(f"the last axis must be a head's width, {self.e}, got the shape {tuple(x.shape)}")
        if self.pairs == "half":
            return x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
        return x[..., 0:r:2], x[..., 1:r:2], x[..., r:]

    def turned(self, x: Float[Tensor, "*n e"], positions: Tensor) -> Float[Tensor, "*m e"]:
        """Queries or keys as attention compares them; positions broadcast against all axes of x but the last."""
        return self._turn(x, positions, self.factor)

    def between(self, x: Float[Tensor, "*n e"], offsets: Tensor) -> Float[Tensor, "*m e"]:
        """R_Δ x: `q . between(k, j - i)` is `turned(q, i) . turned(k, j)`, the factor of both included."""
        return self._turn(x, offsets, self.factor**2)

    def _turn(self, x: Tensor, positions: Tensor, gain: float) -> Tensor:
        angle = positions.to(x.device).double()[..., None] * self.omega.to(x.device)
        cos, sin = gain * angle.cos(), gain * angle.sin()
        first, second, rest = self.parts(x.double())
        first, second = first * cos - second * sin, second * cos + first * sin
        rest = rest.expand(*first.shape[:-1], rest.shape[-1])
        if self.pairs == "half":
            return torch.cat([first, second, rest], -1)
        return torch.cat([torch.stack([first, second], -1).flatten(-2), rest], -1)


def _held_by(module: nn.Module, model: HookedModel, layer: int) -> tuple[Tensor, float]:
    """Frequencies and attention factor; Gemma 3 holds them once per kind of layer."""
    kind = getattr(module, "rope_type", "default")
    prefix = ""
    if isinstance(kind, dict):
        config: Any = model.hf.config
        layer_type = config.layer_types[layer]
        kind, prefix = kind[layer_type], f"{layer_type}_"
    if kind in ("dynamic", "longrope"):
        raise InputError(
            f"rope_type {kind!r} changes its frequencies with the length of the sequence, so no one M(Δ) holds; "
            "use the operating interaction, which is exact, or give a Rotation by hand"
        )
    # The model reads its frequencies in float32, whatever they were rounded to when it was cast.
    omega = getattr(module, f"{prefix}inv_freq").detach().float()
    return omega, float(getattr(module, f"{prefix}attention_scaling", 1.0))


def at_offset(m: Bilinear, rotation: Rotation, offset: float) -> Bilinear:
    """M(Δ) = P R_Δ K^T, for heads with static kernel P K^T (factors `*h d e`)."""
    return Bilinear(rotation.check(m).left.double(), rotation.between(m.right, _tensor(offset)))


def offset_part(m: Bilinear, rotation: Rotation, offset: float, part: Part = "routing") -> Bilinear:
    """F(Δ) or G(Δ), of width 2e: (P R_Δ K^T - K R_Δ P^T) / 2, or with a plus."""
    sign = _sign(part)
    left, right = rotation.check(m).left.double(), m.right.double()
    turned = rotation.between(torch.stack([right, sign * left]), _tensor(offset))
    return Bilinear(torch.cat([left, right], -1) / 2, torch.cat([turned[0], turned[1]], -1))


def offset_spectrum(
    m: Bilinear, rotation: Rotation, offsets: Sequence[int] | Int[Tensor, " offsets"], part: Part = "routing"
) -> Float[Tensor, "*h offsets p"]:
    """Singular values of F(Δ) or G(Δ), descending, each listed as often as it occurs; p = min(d, 2e).

    One reduction of [P K] to 2e x 2e serves every offset; each costs O(e^3) a head.
    """
    sign = _sign(part)
    a, b = rotation.check(m).core
    values = []
    for offset in _each(offsets):
        turned = a @ rotation.between(b, _tensor(offset)).mT + sign * b @ rotation.between(a, _tensor(offset)).mT
        values.append(torch.linalg.svdvals(turned / 2))
    return torch.stack(values, -2) if values else a.new_zeros(*a.shape[:-2], 0, a.shape[-2])


def _sign(part: Part) -> int:
    if part not in get_args(Part):
        raise InputError(f"part must be 'routing' or 'filtering', got {part!r}")
    return -1 if part == "routing" else 1


def _each(offsets: Sequence[int] | Tensor) -> Iterator[float]:
    yield from (offsets.tolist() if isinstance(offsets, Tensor) else offsets)


def _tensor(offset: float) -> Tensor:
    return torch.tensor(float(offset), dtype=torch.float64)
