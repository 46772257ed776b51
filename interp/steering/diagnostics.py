"""What can be known of a fitted edit before it runs: is there a signal, how far does it reach, what does it disturb.

    α = sᵀQs                         squared length of a concept in the metric of the data (Fisher ratio)
    ν = tr(Q Cov₁)/n₁ + tr(Q Cov₀)/n₀     what estimating both means adds: E ŝᵀQŝ = α + ν, with Q = Σ^-1: d(1/n₁ + 1/n₀)
    α̂ − ν                            debiased; the read-out on new source prompts averages (α̂ − ν)/α̂ instead of 1
    ρ = sᵀQt / sᵀQs                  leak: the share of the edit that target prompts get
    η = E|f(X) − X|² / tr Σ          disturbance of neutral activations; grows with β²

ν is estimated from each set's own scatter, so it holds under any Q. n counts prompts. The test of s ≠ 0 permutes the
labels of the prompts (source against reference) and compares ŝᵀQŝ: exact under exchangeability, with p = (1 + how many
draws reach it) / (1 + draws).

Calibration: with α̂ less its noise in place of α̂ in the read-out (`noise=` of the closed forms), new source prompts
average z = 1, with no prompt set aside: that equals the average over all leave-one-out splits. Counted from the
reference mean itself only ν₁ is taken off (new prompts are counted from the same estimate, so its error cancels);
counted from the midpoint of a pair, all of ν.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments, Whitener
from interp.steering.edits import AffineEdit, AnyEdit, ClampEdit, DiagonalEdit


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a prompt (the mean over its positions), and how many positions that was."""

    x: Float[Tensor, "n d"]
    weight: Float[Tensor, " n"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> "Rows":
        """One position a prompt."""
        return cls(x.double(), torch.ones(len(x), dtype=torch.float64, device=x.device))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Over all positions of all prompts."""
        return self.weight @ self.x / self.weight.sum()

    def noise(self, q: Whitener) -> float:
        """tr(Q Cov)/n: what estimating the mean from these prompts adds to a squared length in the metric Q."""
        n = len(self)
        if n < 2:
            return math.nan
        scatter = self.x - self.mean
        lengths = (scatter * q.solve(scatter.T).T).sum(1)
        return float((self.weight / self.weight.sum()).square() @ lengths) * n / (n - 1)


@dataclass(frozen=True)
class Signal:
    """How surely and how strongly source prompts differ from the reference."""

    alpha: float
    noise: float
    p: float
    n_source: int
    n_reference: int

    @property
    def debiased(self) -> float:
        """α̂ − ν."""
        return self.alpha - self.noise

    def significant(self, level: float) -> bool:
        """Whether there is something to steer by."""
        return self.debiased > 0 and self.p <= level


def signal(source: Rows, reference: Rows, q: Whitener, *, draws: int = 999, seed: int = 0) -> Signal:
    """The signal between two sets of prompts."""
    if len(source) < 2 or len(reference) < 2:
        raise InputError(
            f"{len(source)} and {len(reference)} prompts: with one prompt of a kind nothing tells a concept from "
            "chance. Give two or more of each (dozens are sensible), or level=None to go on without the test"
        )
    pooled = torch.cat([source.x, reference.x]).to(q.factor)
    pooled = pooled - pooled.mean(0)
    gram = pooled @ q.solve(pooled.T)
    weight, n = torch.cat([source.weight, reference.weight]).to(gram), len(source)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack(
        [torch.arange(len(gram)), *(torch.randperm(len(gram), generator=generator) for _ in range(draws))]
    )
    alphas = _alphas(gram, weight, orders.to(gram.device), n)
    # the tolerance: a permutation that only exchanges equal rows reaches the same value but for rounding
    reached = int((alphas[1:] >= alphas[0] * (1 - 1e-9)).sum())
    noise = source.noise(q) + reference.noise(q)
    return Signal(float(alphas[0]), noise, (1 + reached) / (1 + draws), n, len(reference))


def _alphas(gram: Tensor, weight: Tensor, orders: Tensor, n: int) -> Float[Tensor, " draws"]:
    """Squared distances between the means of the first n and of the other prompts, in each of the orders."""
    first, rest = orders[:, :n], orders[:, n:]
    contrast = torch.zeros(orders.shape).to(gram)
    contrast.scatter_(1, first, weight[first] / weight[first].sum(1, keepdim=True))
    contrast.scatter_(1, rest, -weight[rest] / weight[rest].sum(1, keepdim=True))
    return ((contrast @ gram) * contrast).sum(1)


def effective_dimension(q: Whitener, moments: Moments) -> float:
    """tr(QΣ): d for Q = Σ^-1, less under shrinkage."""
    return float((q.solve(moments.covariance())).trace())


def neutral_noise(q: Whitener, moments: Moments) -> float:
    """tr(QΣ)/n of the neutral mean, n in prompts."""
    return effective_dimension(q, moments) / max(1, moments.n_groups)


def leak(s: Float[Tensor, "d k"], t: Float[Tensor, "d k"], q: Whitener) -> Float[Tensor, " k"]:
    """ρ of each pair: f moves target prompts by βρ(t − s)."""
    return q.gram(s, t).diagonal() / q.gram(s).diagonal()


def disturbance(edit: AnyEdit, moments: Moments) -> float:
    """η at the edit's β, for affine and diagonal edits; others depend on more than two moments."""
    sigma, mean = moments.covariance(), moments.mean
    if isinstance(edit, DiagonalEdit):
        move = (edit.scale.to(mean) - 1) * edit.beta
        total = move.square() @ sigma.diagonal() + edit.to(dtype=mean.dtype).change(mean).square().sum()
    elif isinstance(edit, AffineEdit):
        u, v = edit.U.to(mean), edit.V.to(mean)
        spread = ((u.T @ u) * (v.T @ sigma @ v)).sum() * edit.beta**2
        total = spread + edit.to(dtype=mean.dtype).change(mean).square().sum()
    else:
        raise InputError(f"the disturbance of a {type(edit).__name__} is no function of moments; measure it on rows")
    return float(total / sigma.trace())


def beta_for(edit: AnyEdit, moments: Moments, eta: float) -> float:
    """The β ≥ 0 at which the edit disturbs by `eta`: one budget for layers of different sizes."""
    return strength_for(eta, disturbance(edit.at(1.0), moments))


def strength_for(eta: float, share: float) -> float:
    """The β ≥ 0 that disturbs by `eta`, for an edit that disturbs by `share` at β = 1."""
    if not eta >= 0:
        raise InputError(f"eta={eta}: expected a disturbance of 0 or more, such as 0.01 of the variance")
    return 0.0 if share == 0 else math.sqrt(eta / share)


def read_out(edit: AffineEdit | ClampEdit, rows: Rows) -> Float[Tensor, " r"]:
    """The mean coordinates z of prompts."""
    return edit.to(dtype=torch.float64).readout(rows.mean[None])[0]


def calibrated(edit: AffineEdit, rows: Rows, expected: float = 1.0) -> AffineEdit:
    """The same edit with its one read-out scaled so that these held-out prompts average `expected`."""
    if edit.rank != 1:
        raise InputError(f"calibrated: expected an edit with one read-out, got {edit.rank}; fit with calibrate=True")
    found = float(read_out(edit, rows))
    if not found / expected > 0.05:
        raise InputError(
            f"held-out prompts read {found:.3g} where {expected:g} is expected: the read-out does not carry over to "
            "new prompts. Give more prompts to fit on, or another site"
        )
    scale = expected / found
    return AffineEdit(edit.U, edit.V * scale, edit.c * scale, edit.delta, edit.beta)
