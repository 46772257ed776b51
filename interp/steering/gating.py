"""Edits that act where a probe sees the concept, and the one among them that is optimal.

Over all functions f, not only affine ones, with Cov(f(X), Z) = T, and again for every metric at once, the least
disturbing is

    f(x) = x + R Cov(η)^+ (η(x) − E η(X)),    η(x) = E[Z | X = x],    R = T − S, S = Cov(X, Z)

Cov(f, Z) = Cov(f, η) by the tower rule; any other feasible change is this one plus an h with E[h (η − Eη)ᵀ] = 0, and
the squares add (Pythagoras). The best affine map reads the best linear predictor of Z instead of η and disturbs at
least as much, most visibly the inputs without the concept. This extends free-form LEACE (EleutherAI 2024) from erasure
to any target; extension and proof are our own. η has to be calibrated: `probe_of` is the Gaussian discriminant
w = Q(μ₁ − μ₀), with scale and offset refitted as a logistic regression of the labels on it (Platt 1999).

`gated` puts any edit behind a probe, hard (as in CAST, Lee et al. 2024) or soft; `clipped` acts on one side of zero
only (CASteer's max(z, 0)).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.moments import Whitener
from interp.steering.edits import AffineEdit, ClampEdit, DiagonalEdit, GatedEdit, GateKind

_STEPS = 50


class Probe(NamedTuple):
    """Logits wᵀx + b, one column a concept; σ of them are probabilities."""

    w: Float[Tensor, "d k"]
    b: Float[Tensor, " k"]

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """wᵀx + b."""
        return x.to(self.w) @ self.w + self.b

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """η(x) = σ(wᵀx + b)."""
        return self.logits(x).sigmoid()


def probe_of(positive: Float[Tensor, "n d"], negative: Float[Tensor, "j d"], q: Whitener) -> Probe:
    """The discriminant of two sets of rows, calibrated on a half of them that it was not fitted on, and the reverse.

    The scale and offset come from out-of-half logits, so that fitting few rows does not make the probe too sure.
    """
    a, b = positive.to(q.factor), negative.to(q.factor)
    if len(a) < 4 or len(b) < 4:
        raise InputError(f"a probe needs four prompts or more of each kind, got {len(a)} and {len(b)}")
    out, labels = [], []
    for fit, held in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        half = _discriminant(a[fit], b[fit], q)
        out += [half.logits(a[held]), half.logits(b[held])]
        labels += [torch.ones(len(a[held])), torch.zeros(len(b[held]))]
    scale, offset = platt(torch.cat(out)[:, 0], torch.cat(labels).to(a))
    whole = _discriminant(a, b, q)
    return Probe(whole.w * scale, whole.b * scale + offset)


def _discriminant(a: Tensor, b: Tensor, q: Whitener) -> Probe:
    mean, difference = (a.mean(0) + b.mean(0)) / 2, (a.mean(0) - b.mean(0))[:, None]
    w = q.solve(difference)
    return Probe(w, -(w.T @ mean))


def platt(logits: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> tuple[float, float]:
    """(scale, offset) of the logistic regression of labels on logits, by Newton's method.

    The labels are Platt's smoothed ones, (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), so that separable data have an optimum.
    """
    yes = labels > 0.5
    n_yes, n_no = int(yes.sum()), int((~yes).sum())
    target = torch.where(yes, (n_yes + 1) / (n_yes + 2), 1 / (n_no + 2)).to(logits)
    spread = logits.std().clamp(min=1e-300)
    design = torch.stack([logits / spread, torch.ones_like(logits)], 1)
    at = torch.zeros(2).to(logits)
    for _ in range(_STEPS):
        p = (design @ at).sigmoid()
        gradient = design.T @ (p - target)
        hessian = (design.T * (p * (1 - p))) @ design + 1e-9 * torch.eye(2).to(logits)
        step = torch.linalg.solve(hessian, gradient)
        at = at - step * min(1.0, 2.0 / float(step.abs().max().clamp(min=1e-300)))
        if float(step.abs().max()) < 1e-10:
            break
    return float(at[0] / spread), float(at[1])


def free_form(
    r: Float[Tensor, "d k"], probe: Probe, rows: Float[Tensor, "n d"], *, center: Float[Tensor, " k"] | None = None
) -> GatedEdit:
    """x + R Cov(η)^+ (η(x) − E η): Cov and E over `rows`, a sample of what the model sees; R = T − S as covariances.

    `center` in place of E η moves all inputs by a constant: η of negative examples leaves those where they are.
    """
    eta = probe(rows.to(probe.w))
    mean = eta.mean(0)
    covariance = (eta - mean).T @ (eta - mean) / len(eta)
    if bool((covariance.diagonal() <= (1e-12 * mean).square()).any()):
        raise InputError("the probe says the same of all rows: give rows with the concept and rows without it")
    u = r.to(probe.w) @ torch.linalg.pinv(covariance, rtol=1e-10, hermitian=True)
    return GatedEdit(AffineEdit(u, probe.w, mean if center is None else center.to(mean)), probe.w, probe.b, "free")


def gated(edit: AffineEdit | DiagonalEdit | ClampEdit, probe: Probe, kind: GateKind = "hard") -> GatedEdit:
    """`edit` where the probe sees one of its concepts."""
    return GatedEdit(edit, probe.w, probe.b, kind)


def clipped(edit: AffineEdit) -> ClampEdit:
    """The same edit with max(z, 0) in place of its read-out z: it acts only where the concept is present."""
    zero = torch.zeros_like(edit.c)
    return ClampEdit(-edit.U.T, edit.V, edit.c, torch.full_like(zero, -torch.inf), zero, edit.beta, edit.delta)
