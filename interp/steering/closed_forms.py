"""The affine maps that meet a covariance constraint while disturbing activations least: one theorem, many names.

X has mean μ and covariance Σ, S and T [d k] are concept vectors with S in the range of Σ. Among all f(x) = A x + b with
A S = T and E f(X) = μ + δ, and at once for every metric M ≥ 0 in E |f(X) − X|²_M, the least disturbing one is

    f(x) = x + R G (x − μ) + δ,    R = T − S,    G = (Sᵀ Q S)^+ Sᵀ Q,    Q = Σ^-1

feasible if and only if ker S ⊂ ker T, at the cost tr(M R (Sᵀ Q S)^+ Rᵀ) + δᵀ M δ. z = G (x − μ) is the generalised
least-squares estimate of concept coordinates: the edit takes S z out and puts T z in. For any other positive Q (shrunk,
diagonal, identity) A S = T still holds exactly, only the disturbance grows. Strength β has A S = (1 − β) S + β T.

    erase      T = 0                  LEACE, Belrose et al. 2023
    flip       T = −S                 LEACE-Switch of MidSteer (arXiv 2605.05220); about the midpoint of a pair
    midsteer   s → t                  MidSteer
    swap       [s t] → [t s]          our own, as are `keep` and `protect`
    set_value  T = 0, δ = value · r   affine concept editing, ACE (Marshall, Scherlis and Belrose 2024), whitened
    ace        the same, Q = I        ACE itself
    vanilla    T = 0, Q = I, μ = 0    projection on the unit vector (CASteer, arXiv 2503.09630); β = 2 reflects
    add        δ alone                activation addition, mean matching: optimal where only the mean is asked for

The theorem was derived from the statements of those papers and is checked, with its converses, in `tests/steering`.
`keep` (read side): z takes no part in the directions N, so that A N = N; with a finite `keep_strength` λ, softly: Σ
becomes Σ + λ N Nᵀ. `protect` (write side): the read-outs Cᵀx never move. `noise` is what estimation adds to SᵀQS:
without it z is too small on new prompts, see `interp.steering.diagnostics`.
"""

import math
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.moments import Whitener
from interp.steering.edits import AffineEdit

DROPPED = 1e-10
"""Eigenvalues of SᵀQS (columns scaled to one length) below this share of the largest are taken for zero."""
WARNED = 1e-6
"""Below this share of the largest a warning is given: the concepts are almost the same."""


def constrained(
    s: Float[Tensor, "d k"],
    t: Float[Tensor, "d k"],
    q: Whitener,
    center: Float[Tensor, " d"],
    *,
    delta: Float[Tensor, " d"] | None = None,
    keep: Float[Tensor, "d m"] | None = None,
    keep_strength: float = math.inf,
    noise: Float[Tensor, "r r"] | None = None,
) -> AffineEdit:
    """The optimal map with A S = T; see the module's docstring. Zero columns of S stay as they are, with a warning.

    `noise` is of the columns of S, or of those of [S N] if hard-kept directions are estimates as well.
    """
    s, t, center = (x.to(q.factor) for x in (s, t, center))
    _require_finite(s, t, center)
    r = t - s
    if zero := torch.nonzero(s.square().sum(0) == 0)[:, 0].tolist():
        warnings.warn(
            f"concept {zero} has a source vector of length 0: nothing can be read from it, so it is left as it is. "
            "Are the prompts of both sets the same?",
            stacklevel=2,
        )
        r = r.index_fill(1, torch.tensor(zero, device=r.device), 0.0)
    v = _readout(s, r, q, keep, keep_strength, noise)
    return AffineEdit(r, v, v.T @ center, None if delta is None else delta.to(q.factor))


def _readout(
    s: Tensor, r: Tensor, q: Whitener, keep: Tensor | None, strength: float, noise: Tensor | None
) -> Float[Tensor, "d k"]:
    """Gᵀ, the columns that read the concept coordinates."""
    k = s.shape[1]
    whole, solved = s, q.solve(s)
    if keep is not None and keep.shape[1]:
        keep = keep.to(q.factor)
        solved_keep = q.solve(keep)
        if math.isinf(strength):
            whole, solved = torch.cat([s, keep], 1), torch.cat([solved, solved_keep], 1)
        else:
            inner = torch.eye(keep.shape[1]).to(keep) / strength + keep.T @ solved_keep  # Woodbury
            solved = solved - solved_keep @ torch.linalg.solve(inner, keep.T @ solved)
    gram = whole.T @ solved
    _require_variance(s, gram.diagonal()[:k])
    exact = solved @ _inverse(gram)[:, :k]
    missed = (r - r @ (exact.T @ s)).norm() / r.norm().clamp(min=1e-300)
    if float(missed) > 1e-6:
        raise InputError(
            "no affine map does this: source vectors depend linearly on each other (or on the kept directions), and "
            "the targets do not in the same way. Take one of them out, or use a finite keep_strength"
        )
    return exact if noise is None else solved @ _inverse(_debiased(gram, noise))[:, :k]


def _debiased(gram: Tensor, noise: Tensor) -> Tensor:
    k = len(noise)
    out = gram.clone()
    out[:k, :k] -= noise.to(gram)
    if float(torch.linalg.eigvalsh(_scaled(out, gram.diagonal())[0]).min()) <= 0:
        raise InputError(
            "the concept is not larger than what estimation from so few prompts adds to it: no calibrated read-out "
            "exists. Give more prompts, leave this site out, or set calibrate=False"
        )
    return out


def _scaled(gram: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """`gram` with its columns at one length, so that no concept counts less for being measured in larger units."""
    positive = diagonal > 0
    scale = torch.where(positive, diagonal.clamp(min=1e-300).rsqrt(), 0.0)
    return scale[:, None] * gram * scale, scale


def _inverse(gram: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """A generalised inverse with a relative tolerance; on feasible constraints all of them give the same map."""
    if not len(gram):
        return gram
    unit, scale = _scaled(gram, gram.diagonal())
    values, vectors = torch.linalg.eigh((unit + unit.T) / 2)
    kept = values > DROPPED * values.max()
    if kept.any() and float(values[kept].min() / values.max()) < WARNED:
        warnings.warn(
            f"the concepts are almost linearly dependent (condition {float(values.max() / values[kept].min()):.1e}): "
            "their read-outs are ill-determined",
            stacklevel=4,
        )
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return scale[:, None] * ((vectors * inverse) @ vectors.T) * scale


def _require_variance(s: Tensor, alpha: Tensor) -> None:
    if bool(((alpha <= 0) & (s.square().sum(0) > 0)).any()):
        raise InputError(
            "a concept vector lies where the neutral activations do not vary at all, so nothing reads it; use "
            "whiten='shrink', or more neutral prompts"
        )


def _require_finite(*tensors: Tensor) -> None:
    if not all(bool(x.isfinite().all()) for x in tensors):
        raise InputError("concept vectors or means hold NaN or infinite values; did the model overflow its dtype?")


def identity_metric(like: Float[Tensor, "d ..."]) -> Whitener:
    """Q = I, for the methods that do not whiten."""
    return Whitener("none", torch.ones(len(like), dtype=torch.float64, device=like.device))


def erase(s: Float[Tensor, "d k"], q: Whitener, center: Float[Tensor, " d"], **options: Any) -> AffineEdit:
    """LEACE: after it no linear read-out tells the concepts S (cross-covariances or mean differences)."""
    return constrained(s, torch.zeros_like(s), q, center, **options)


def flip(source: Float[Tensor, " d"], target: Float[Tensor, " d"], q: Whitener, **options: Any) -> AffineEdit:
    """LEACE-Switch of two class means about their midpoint: source goes to target and target to source."""
    s = (source - target)[:, None]
    return constrained(s, -s, q, (source + target) / 2, **options)


def midsteer(
    s: Float[Tensor, "d k"],
    t: Float[Tensor, "d k"],
    q: Whitener,
    center: Float[Tensor, " d"],
    **options: Any,
) -> AffineEdit:
    """MidSteer: concepts S become T, one way. Options as in `constrained`."""
    return constrained(s, t, q, center, **options)


def swap(
    s: Float[Tensor, "d k"],
    t: Float[Tensor, "d k"],
    q: Whitener,
    center: Float[Tensor, " d"],
    **options: Any,
) -> AffineEdit:
    """Both ways: [S T] become [T S]."""
    both, back = torch.cat([s, t], 1), torch.cat([t, s], 1)
    return constrained(both, back, q, center, **options)


def preserve(
    s: Float[Tensor, "d k"],
    t: Float[Tensor, "d k"],
    keep: Float[Tensor, "d m"],
    q: Whitener,
    center: Float[Tensor, " d"],
    *,
    strength: float = math.inf,
    **options: Any,
) -> AffineEdit:
    """S become T while the directions `keep` are left alone (A N = N; softly for a finite strength); rank k still."""
    return constrained(s, t, q, center, keep=keep, keep_strength=strength, **options)


def set_value(
    r: Float[Tensor, "d k"],
    value: float | Float[Tensor, " k"],
    q: Whitener,
    center: Float[Tensor, " d"],
    **options: Any,
) -> AffineEdit:
    """Sets the coordinates along R, counted from `center` in units of R, to `value`: whitened ACE."""
    amount = torch.as_tensor(value, dtype=torch.float64, device=r.device).expand(r.shape[1])
    zero, delta = torch.zeros_like(r), r.to(q.factor) @ amount.to(q.factor)
    return constrained(r, zero, q, center, delta=delta, **options)


def ace(plus: Float[Tensor, " d"], minus: Float[Tensor, " d"], value: float = 1.0) -> AffineEdit:
    """Affine concept editing as published: the coordinate along r = plus − minus becomes that of `minus` + value."""
    r = (plus - minus)[:, None]
    return set_value(r, value, identity_metric(plus), minus)


def vanilla(s: Float[Tensor, " d"], center: Float[Tensor, " d"] | None = None) -> AffineEdit:
    """x − β ⟨x, ŝ⟩ ŝ with ŝ of unit length: β = 1 projects, β = 2 reflects (Householder)."""
    return erase(s[:, None], identity_metric(s), torch.zeros_like(s) if center is None else center)


def translation(v: Float[Tensor, " d"]) -> AffineEdit:
    """x + β v."""
    _require_finite(v)
    empty = v.new_zeros(len(v), 0)
    return AffineEdit(empty, empty, v.new_zeros(0), v)


def add(plus: Float[Tensor, " d"], minus: Float[Tensor, " d"]) -> AffineEdit:
    """Difference of means (CAA, activation addition; mean matching from `minus` to `plus`)."""
    return translation(plus - minus)


def aligned_direction(
    g: Float[Tensor, " d"],
    c: Float[Tensor, "d m"],
    sigma: Float[Tensor, "d d"] | None = None,
    *,
    radius: float = 1.0,
) -> Float[Tensor, " d"]:
    """The v with the largest gᵀv among Cᵀv = 0 and vᵀΣ^-1 v ≤ radius²: the way to add without moving Cᵀx.

    v ∝ Σg − ΣC (CᵀΣC)^+ CᵀΣg, the covariance of x with gᵀx given Cᵀx; without Σ it is the projection of g.
    """
    moved = g if sigma is None else sigma @ g
    blocked = c if sigma is None else sigma @ c
    v = moved - blocked @ (_inverse(c.T @ blocked) @ (c.T @ moved))
    reached = float(g @ v)
    if reached <= 1e-12 * float(g @ moved):
        raise InputError("the direction lies within the protected ones: nothing of it can be added without moving them")
    return v * (radius / math.sqrt(reached))


class Protected(NamedTuple):
    """An edit that does not move the protected read-outs, and how much of it that took."""

    edit: AffineEdit
    lost: float
    """|ĈᵀR| / |R|, Ĉ an orthonormal basis of the protected read-outs: 0 nothing, 1 all of what was to be written."""


def protect(edit: AffineEdit, c: Float[Tensor, "d m"], spread: Float[Tensor, "d d"] | None = None) -> Protected:
    """Never move the read-outs Cᵀx: R becomes Π R, Π = I − M^-1 C (CᵀM^-1C)^+ Cᵀ, with M^-1 = `spread` (default I).

    ΠR is the reachable target closest to R in the metric M.
    """
    written = edit.U if edit.delta is None else torch.cat([edit.U, edit.delta[:, None]], 1)
    c = c.to(written)
    blocked = c if spread is None else spread.to(written) @ c
    part = blocked @ (_inverse(c.T @ blocked) @ (c.T @ written))
    vectors, values, _ = torch.linalg.svd(c, full_matrices=False)
    basis = vectors[:, values > DROPPED * values.max()]
    kept = written - part
    r = edit.rank
    delta = None if edit.delta is None else kept[:, r]
    lost = float((basis.T @ written).norm() / written.norm().clamp(min=1e-300))
    return Protected(AffineEdit(kept[:, :r], edit.V, edit.c, delta, edit.beta), lost)
