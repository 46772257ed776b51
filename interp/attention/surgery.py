"""What to do to attention: a `Surgery` says which heads are to compute α S + β A, of how many modes and planes.

For a head let z_i = [s q_i ; k_i] (2e numbers; s the scale, k of the head's group). With the constant matrices J, which
takes k from the second half to the first, J_S = (J + Jᵀ) / 2 and J_A = (J - Jᵀ) / 2, scores before the softmax are

    B_ij = z_iᵀ J z_j = s q_i · k_j       S = (B + Bᵀ) / 2 = z_iᵀ J_S z_j       A = (B - Bᵀ) / 2 = z_iᵀ J_A z_j

so that both parts, and α S + β A = (α+β)/2 B + (α-β)/2 Bᵀ, are products of widened queries and keys:

    q' = [(α+β)/2 s q ; (α-β)/2 k]        k' = [k ; s q]                                               width 2e

Two levels, the same one where there is no rotary embedding:

- `position`: q and k as attention compares them, rotated. Bᵀ swaps contents and places: B_ji.
- `kernel`: M(Δ) = P R_Δ Kᵀ at every offset Δ = j - i. M(Δ)ᵀ swaps contents and leaves places as they are; in the second
  half of q' and k' the rotation is then the inverse one. Only for kernels that are bilinear: not behind per-head norms.

**Truncation** keeps the strongest planes of A and modes of S, found once, from a Gram matrix of z, and the same for
every input. With Z the rows that the Gram matrix was summed over, A = Z J_A Zᵀ has planes (x, y) of strength μ and
S = Z J_S Zᵀ modes u of eigenvalue λ; let w_x = Zᵀ x and so on (2e numbers each). Projecting rows on what is kept is

    z -> T z,       T_A = Σ (w_y w_xᵀ - w_x w_yᵀ) J_A / μ,       T_S = Σ w_u w_uᵀ J_S / λ,       T² = T

and q', k' are those of α S from T_S z beside those of β A from T_A z: width 4e. Of the rows of Z themselves this is the
truncation of the n x n parts, exactly; and because T is a constant, a score uses no token but the two it is about: it
is causal, as truncating each sequence's own n x n matrix is not. The rows are the tokens of a corpus (`position`: see
`interp.attention.corpus_gram`; many times 2e of them, for what they do not span is projected obliquely) or the axes of
the residual stream (`kernel`: Z = [P K]; M(0) is truncated exactly, and M(Δ) taken between the same directions).

**Key means.** Taking a constant vector c from all (rotated) keys of a head changes no attention, for it adds -s q_i · c
to all scores of query i, but it does change the split. Under a soft-cap it would change attention: refused there.

Sources: the algebra is worked out here; Jamil and Kapadia 2026 (arXiv 2605.18826) do surgery of this kind by means that
are not known to us.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from midlens_kernels.bilinear_spectrum import bilinear_vectors
from midlens_kernels.bilinear_spectrum.core import core_of_gram, vectors_of_core
from torch import Tensor

from interp.errors import InputError

Level = Literal["position", "kernel"]
LEVELS: tuple[Level, ...] = get_args(Level)
_NOTHING = 1e-8
"""Strengths below this share of the strongest are noise in a Gram matrix; their directions have no meaning."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Planes and modes of one layer's heads, strongest first, as w = Zᵀ x: float64, in the coordinates of z."""

    level: Level
    planes: Float[Tensor, "h planes 2 two_e"]
    routing: Float[Tensor, "h planes"]
    """Strengths μ, descending."""
    modes: Float[Tensor, "h modes two_e"]
    filtering: Float[Tensor, "h modes"]
    """Eigenvalues λ, signed, by falling size."""
    key_mean: Float[Tensor, "h e"] | None = None
    """What the keys were lessened by."""

    def routing_projector(self, planes: int) -> Float[Tensor, "h two_e two_e"]:
        """T_A of the `planes` strongest planes."""
        x, y = self.planes[:, :planes].unbind(2)
        turn = torch.einsum("hr,hra,hrb->hab", _inverse(self.routing)[:, :planes], y, x)
        first, second = (turn - turn.mT).chunk(2, -1)
        return torch.cat([-second, first], -1) / 2  # times J_A = [[0, 1], [-1, 0]] / 2

    def filtering_projector(self, modes: int) -> Float[Tensor, "h two_e two_e"]:
        """T_S of the `modes` strongest modes."""
        u = self.modes[:, :modes]
        first, second = torch.einsum("hr,hra,hrb->hab", _inverse(self.filtering)[:, :modes], u, u).chunk(2, -1)
        return torch.cat([second, first], -1) / 2  # times J_S = [[0, 1], [1, 0]] / 2


def _inverse(strength: Tensor) -> Tensor:
    size = strength.abs()
    counts = size > _NOTHING * size.amax(-1, keepdim=True)
    return torch.where(counts, 1 / torch.where(counts, strength, 1), 0)


def gram_basis(
    gram: Float[Tensor, "h two_e two_e"], *, level: Level = "position", key_mean: Float[Tensor, "h e"] | None = None
) -> Basis:
    """From Zᵀ Z of the rows z = [s q ; k - key_mean], float64, per query head; it may be singular."""
    if gram.ndim != 3 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] % 2 or gram.dtype != torch.float64:
        raise InputError(
            f"a Gram matrix of shape {tuple(gram.shape)}, {gram.dtype}: expected float64, (heads, 2e, 2e), of [s q ; k]"
        )
    if key_mean is not None and key_mean.shape != (len(gram), gram.shape[-1] // 2):
        raise InputError(
            f"key_mean of shape {tuple(key_mean.shape)}: expected ({len(gram)}, {gram.shape[-1] // 2}), one per head"
        )
    a, b = core_of_gram(gram, gram.shape[-1])
    routing, planes, filtering, modes = vectors_of_core(a, b)
    # The core's columns are balanced; Zᵀ's rows have the norms that stand on the diagonal of the Gram matrix.
    rows = torch.cat([a, b], -1).mT
    norms = rows.norm(dim=-1, keepdim=True)
    rows = rows * torch.where(norms > 0, gram.diagonal(dim1=-2, dim2=-1)[..., None].sqrt() / norms, 0)
    return _basis(level, rows, routing, planes, filtering, modes, key_mean)


def factor_basis(left: Float[Tensor, "h d e"], right: Float[Tensor, "h d e"], *, level: Level = "kernel") -> Basis:
    """From Z = [left right] itself, which is exact: of a kernel P and K, with the scale in P."""
    routing, planes, filtering, modes = bilinear_vectors(left, right)
    rows = torch.cat([left, right], -1).double().mT
    return _basis(level, rows, routing, planes, filtering, modes, None)


def _basis(
    level: Level,
    rows: Float[Tensor, "h two_e d"],
    routing: Tensor,
    planes: Tensor,
    filtering: Tensor,
    modes: Tensor,
    key_mean: Tensor | None,
) -> Basis:
    order = filtering.abs().argsort(-1, descending=True)
    modes = modes.gather(-2, order[..., None].expand_as(modes))
    return Basis(
        level,
        torch.einsum("hzd,hrcd->hrcz", rows, planes),
        routing,
        modes @ rows.mT,
        filtering.gather(-1, order),
        key_mean,
    )


class Part(NamedTuple):
    """One stretch of the widened queries and keys: z projected by T, and the factors of its two halves in q'."""

    projector: Float[Tensor, "h two_e two_e"] | None
    straight: float
    """Of q' = q, k' = k."""
    swapped: float
    """Of q' = k, k' = q."""


@dataclass(frozen=True, eq=False)
class Surgery:
    """α S + β A in place of the interaction of some heads; run a model with it in `interp.attention.operated`.

    Truncation at the position level needs `bases`, at the kernel level it finds them in the weights if none are given.
    """

    heads: Literal["all"] | Sequence[tuple[int, int]] = "all"
    """(layer, head) pairs, heads counted as query heads; or all that are loaded."""
    alpha: float = 1.0
    """Of the symmetric part, filtering; 0 takes it out."""
    beta: float = 1.0
    """Of the skew-symmetric part, routing."""
    planes: int | None = None
    """Routing planes kept, the strongest; `None`: all."""
    modes: int | None = None
    """Filtering modes kept, those of the largest eigenvalues in absolute value; `None`: all."""
    level: Level = "position"
    bases: Mapping[int, Basis] | None = field(default=None, repr=False)
    """By layer."""
    key_means: Mapping[int, Float[Tensor, "h e"]] | None = field(default=None, repr=False)
    """By layer: what is taken from the rotated keys of every query head. Constants, never the mean of the input."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"level={self.level!r}: expected one of {', '.join(LEVELS)}")
        for name in ("alpha", "beta"):
            if not math.isfinite(value := getattr(self, name)):
                raise InputError(f"{name}={value}: expected a finite number (1 leaves the part as it is, 0 removes it)")
        for name in ("planes", "modes"):
            count: Any = getattr(self, name)
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
                raise InputError(f"{name}={count!r}: expected how many to keep, 0 or more, or None for all")
        if self.heads != "all":
            object.__setattr__(self, "heads", _pairs(self.heads))
        if self.key_means is not None and self.level == "kernel":
            raise InputError(
                "key_means at the kernel level: a constant taken from the keys there is turned by each key's position, "
                "and so is none any more. Expected level='position'"
            )

    def parts(self, e: int, basis: Basis | None, heads: Sequence[int]) -> list[Part]:
        """What to compute for these heads (of width e) of a layer with this basis."""
        planes = None if self.planes is not None and self.planes >= e else self.planes
        modes = None if self.modes is not None and self.modes >= 2 * e else self.modes
        if planes is None and modes is None:
            return [Part(None, (self.alpha + self.beta) / 2, (self.alpha - self.beta) / 2)]
        found: list[Part] = []
        if self.alpha and modes != 0:
            projector = None if modes is None else _held(basis).filtering_projector(modes)[list(heads)]
            found.append(Part(projector, self.alpha / 2, self.alpha / 2))
        if self.beta and planes != 0:
            projector = None if planes is None else _held(basis).routing_projector(planes)[list(heads)]
            found.append(Part(projector, self.beta / 2, -self.beta / 2))
        return found or [Part(None, 0.0, 0.0)]


def _pairs(heads: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    pairs = tuple(heads)
    if not pairs:
        raise InputError("heads is empty: expected (layer, head) pairs, or 'all'")
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(x, int) and x >= 0 for x in pair):
            raise InputError(f"heads holds {pair!r}: expected pairs (layer, head) of whole numbers from 0")
    return tuple(sorted(set(pairs)))


def _held(basis: Basis | None) -> Basis:
    if basis is None:
        raise InputError(
            "keeping some planes or modes at the position level needs `bases`: which ones are strongest depends on the "
            "tokens. Make them from a corpus: position_bases(corpus_grams(model, tokens))"
        )
    return basis
