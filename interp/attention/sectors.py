"""The four sectors of a rotary head: content symmetric or skew, offset even or odd; energies per offset and summed.

With M(Δ) as in `interp.attention.rope`, c_Δ the weights of its even part (f² cos Δω_t, and 1 for what passes) and s_Δ
those of its odd part (f² sin Δω_t), every energy is a quadratic form, for the pieces C_t and D_t do not change with Δ:

    ||sym M_even(Δ)||² = c_Δ^T H c_Δ,     H_tu = (<C_t, C_u> + tr C_t C_u) / 2        skew: a minus;  odd: D_t, s_Δ
    routing ||F(Δ)||² = ||skew M_even||² + ||sym M_odd||²,      filtering ||G(Δ)||² = ||sym M_even||² + ||skew M_odd||²

H has a row per pair and one for what passes, and comes from three e x e Gram matrices: an offset costs O(e²) a head, no
decomposition. A sum of squares as a difference is known to 1e-16 of the largest, so a norm to 1e-8.

A head whose static kernel M(0) is symmetric has no content-skew even part and can still route, through the phase
(`odd_symmetric`). The energies at Δ and -Δ are equal, and the four add up to the mean of ||M(Δ)||² and ||M(-Δ)||².
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention.bilinear import Bilinear
from interp.attention.heads import kernel
from interp.attention.rope import Rotation
from interp.model import HookedModel
from interp.progress import bar


class Sectors(NamedTuple):
    """Squared Frobenius norms by offset (last axis; `summed` drops it) for every head."""

    even_symmetric: Float[Tensor, "..."]
    even_skew: Float[Tensor, "..."]
    odd_symmetric: Float[Tensor, "..."]
    odd_skew: Float[Tensor, "..."]

    @property
    def routing(self) -> Float[Tensor, "..."]:
        """||F(Δ)||²."""
        return self.even_skew + self.odd_symmetric

    @property
    def filtering(self) -> Float[Tensor, "..."]:
        """||G(Δ)||²."""
        return self.even_symmetric + self.odd_skew

    @property
    def routing_fraction(self) -> Float[Tensor, "..."]:
        """Share of routing in all; NaN for a zero head."""
        return self.routing / (self.routing + self.filtering)

    @property
    def phase_fraction(self) -> Float[Tensor, "..."]:
        """Share of routing that runs through the phase (content symmetric, odd in the offset); NaN without routing."""
        return self.odd_symmetric / self.routing

    def summed(self) -> "Sectors":
        """The energies summed over the offsets given."""
        return Sectors(*(energy.sum(-1) for energy in self))


class PairNorms(NamedTuple):
    """What each pair can contribute: ||C_t||, ||D_t|| (without attention factor), and ||M_pass||."""

    cos: Float[Tensor, "*h pairs"]
    sin: Float[Tensor, "*h pairs"]
    passing: Float[Tensor, "*h"]

    @property
    def sin_fraction(self) -> Float[Tensor, "*h"]:
        """Σ||D_t|| / (Σ||C_t|| + Σ||D_t||): NaN for a zero head."""
        return self.sin.sum(-1) / (self.cos.sum(-1) + self.sin.sum(-1))


def sectors(m: Bilinear, rotation: Rotation, offsets: Sequence[int] | Int[Tensor, " offsets"]) -> Sectors:
    """Energies of the four sectors of heads `*h` with static kernel m, `*h offsets`: the offset curves."""
    left, right = rotation.check(m).left.double(), m.right.double()
    offset = torch.as_tensor(offsets, dtype=torch.float64, device=left.device)
    angle = offset[:, None] * rotation.omega.to(left.device)
    gain, one = rotation.factor**2, torch.ones_like(offset)[:, None]
    even, odd = torch.cat([gain * angle.cos(), one], -1), torch.cat([gain * angle.sin(), 0 * one], -1)
    first, second, rest = rotation.parts(right)
    quarter = torch.cat([-second, first, torch.zeros_like(rest)], -1)  # a quarter turn of K makes a C_t a D_t
    left = torch.cat(rotation.parts(left), -1)
    found = []
    for key, weights in ((torch.cat([first, second, rest], -1), even), (quarter, odd)):
        inner, trace = _forms(left, key, len(rotation.omega))
        for form in ((inner + trace) / 2, (inner - trace) / 2):
            found.append(torch.einsum("ot,...tu,ou->...o", weights, form, weights).clamp_min(0))
    return Sectors(*found)


def _forms(left: Tensor, right: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """<X_t, X_u> and tr X_t X_u of the pieces X_t of left right^T, columns ordered first, second, passing."""
    e = left.shape[-1]
    column = torch.arange(e, device=left.device)
    piece = torch.where(column < 2 * pairs, column % max(1, pairs), pairs)
    gather = torch.nn.functional.one_hot(piece, pairs + 1).double()
    cross = right.mT @ left
    inner = (left.mT @ left) * (right.mT @ right)
    return gather.mT @ inner @ gather, gather.mT @ (cross * cross.mT) @ gather


def pair_norms(m: Bilinear, rotation: Rotation) -> PairNorms:
    """||C_t||² = |a|²|b|² + |c|²|e|² + 2 (a.c)(b.e) and ||D_t||² = |c|²|b|² + |a|²|e|² - 2 (a.c)(b.e)."""
    a, c, passing_left = rotation.parts(rotation.check(m).left.double())
    b, e, passing_right = rotation.parts(m.right.double())
    aa, cc, bb, ee = (x.square().sum(-2) for x in (a, c, b, e))
    mixed = 2 * (a * c).sum(-2) * (b * e).sum(-2)
    passing = ((passing_left.mT @ passing_left) * (passing_right.mT @ passing_right)).sum((-2, -1))
    return PairNorms(
        (aa * bb + cc * ee + mixed).clamp_min(0).sqrt(),
        (cc * bb + aa * ee - mixed).clamp_min(0).sqrt(),
        passing.clamp_min(0).sqrt(),
    )


def rope_rows(
    model: HookedModel,
    *,
    offsets: Sequence[int] = range(128),
    layers: Sequence[int] | None = None,
    fold_norm: bool = True,
    biases: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per head: shares of the four sectors over `offsets`, each once (both signs have the same energies).

    `rope_<sector>`: its share of the four; `rope_routing_fraction`, `rope_phase_fraction`: see `Sectors`;
    `rope_sin_fraction`: see `PairNorms`; `rope_passing_share`: ||M_pass||² in ||M_pass||² + Σ(||C_t||² + ||D_t||²).
    """
    chosen = range(model.loaded_layers) if layers is None else layers
    rows: list[dict[str, Any]] = []
    with bar(len(chosen), "rotary sectors", unit="layer", show=None if progress else False) as shown:
        for layer in chosen:
            m, rotation = kernel(model, layer, fold_norm=fold_norm, biases=biases).bilinear, Rotation.of(model, layer)
            over, norms = sectors(m, rotation, offsets).summed(), pair_norms(m, rotation)
            total = over.routing + over.filtering
            turning = norms.cos.square().sum(-1) + norms.sin.square().sum(-1)
            columns = {f"rope_{name}": energy / total for name, energy in over._asdict().items()} | {
                "rope_routing_fraction": over.routing_fraction,
                "rope_phase_fraction": over.phase_fraction,
                "rope_sin_fraction": norms.sin_fraction,
                "rope_passing_share": norms.passing.square() / (norms.passing.square() + turning),
            }
            listed = {name: column.tolist() for name, column in columns.items()}
            heads = range(len(total))
            rows += [{"layer": layer, "head": h} | {name: listed[name][h] for name in listed} for h in heads]
            shown.update(1)
    return rows
