"""How good probes are on rows they were not fitted on: accuracy, exact match, AUC and squared error, with intervals.

    accuracy   share of (row, output) under the mask whose label is right
    exact      share of (row, group of outputs) whose labels are all right
    AUC        P(score of a positive > that of a negative) + P(equal) / 2, the mean over outputs (and over classes, each
               against the rest) that have both among their rows
    MSE        mean of (probability - label)^2, over classes too: the Brier score divided by the number of classes

Outputs of one row are not independent, so intervals are over rows: bootstrapped ratios of what rows add up to, and for
the AUC the normal interval whose variance is sum_i (influence of row i)^2, from the structural components of DeLong,
DeLong and Clarke-Pearson (1988) summed over the outputs of a row.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.errors import InputError
from interp.probes import LinearProbe, decide
from interp.stats import Interval, bootstrap_ratio


class Estimate(NamedTuple):
    """A value with its 95 % interval; NaN where there was nothing to measure."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """What each row adds to a ratio: the parts that were right (or the squared error), and how many there were."""

    right: Float[np.ndarray, " n"]
    counted: Float[np.ndarray, " n"]

    @property
    def value(self) -> float:
        """The ratio."""
        total = float(self.counted.sum())
        return float(self.right.sum()) / total if total else math.nan

    def estimate(self, *, draws: int = 2000, seed: int = 0) -> Estimate:
        """With a bootstrap interval over rows; rows without a part are left out."""
        used = self.counted > 0
        if not used.any():
            return Estimate(math.nan, math.nan, math.nan)
        return Estimate(self.value, *bootstrap_ratio(self.right[used], self.counted[used], draws=draws, seed=seed))


@dataclass(frozen=True)
class ProbeScores:
    """Metrics of one probe on one set of rows."""

    accuracy: Estimate
    exact: Estimate
    auc: Estimate
    mse: Estimate
    n_rows: int


@dataclass(frozen=True)
class Scored:
    """The metrics, and what each row added to accuracy and exact match (for paired comparisons)."""

    scores: ProbeScores
    accuracy: Counts
    exact: Counts


def score(
    probe: LinearProbe,
    x: Float[Tensor, "n d"],
    y: Shaped[Tensor, "n q"],
    *,
    mask: Bool[Tensor, "n q"] | None = None,
    group: int = 1,
    draws: int = 2000,
    seed: int = 0,
) -> Scored:
    """Measure a probe on rows; `group` consecutive outputs are one thing to get exactly right."""
    mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    if y.shape[1] % group or y.shape[1] != probe.weight.shape[0] or mask.shape != y.shape:
        raise InputError(
            f"labels of shape {tuple(y.shape)}, mask {tuple(mask.shape)}, groups of {group}, a probe of "
            f"{probe.weight.shape[0]} outputs; expected n q twice, q a multiple of the group"
        )
    scores = probe.scores(x)
    right = decide(probe.kind, scores) == y
    accuracy, exact = elementwise(right, mask), exactly(right, mask, group)
    hot = one_hot(y, mask, scores.shape[2])
    probabilities = probe.probabilities(x)
    error = Counts(*_sums(((probabilities - hot) ** 2).mean(2), mask))
    spread = scores if scores.shape[2] == 1 else probabilities  # classes compete: as scikit-learn ranks them
    options = {"draws": draws, "seed": seed}
    found = ProbeScores(
        accuracy=accuracy.estimate(**options),
        exact=accuracy.estimate(**options) if group == 1 else exact.estimate(**options),
        auc=macro_auc(spread, hot > 0, mask),
        mse=error.estimate(**options),
        n_rows=int(mask.any(1).sum()),
    )
    return Scored(found, accuracy, exact)


def one_hot(y: Shaped[Tensor, "n q"], mask: Bool[Tensor, "n q"], c: int) -> Float[Tensor, "n q c"]:
    """Labels as 0 and 1, for each class where there are several."""
    if c == 1:
        return y.float()[:, :, None]
    return torch.nn.functional.one_hot(torch.where(mask, y, 0).long(), c).float()


def elementwise(right: Bool[Tensor, "n q"], mask: Bool[Tensor, "n q"]) -> Counts:
    """Right labels of each row, and labels under the mask."""
    return Counts(*_sums(right.double(), mask))


def exactly(right: Bool[Tensor, "n q"], mask: Bool[Tensor, "n q"], group: int) -> Counts:
    """Groups of each row that are right in all outputs under the mask, and groups with any."""
    n = len(right)
    whole, any_ = (right | ~mask).reshape(n, -1, group).all(2), mask.reshape(n, -1, group).any(2)
    return Counts(*_sums(whole.double(), any_))


def macro_auc(
    scores: Float[Tensor, "n q c"], positive: Bool[Tensor, "n q c"], mask: Bool[Tensor, "n q"], *, level: float = 0.95
) -> Estimate:
    """Mean AUC over the outputs and classes that have positives and negatives."""
    n, q, c = scores.shape
    per_output, influence = _aucs(
        scores.reshape(n, q * c), positive.reshape(n, q * c), mask[:, :, None].expand(n, q, c).reshape(n, q * c)
    )
    per_output, influence = per_output.reshape(q, c), influence.reshape(n, q, c)
    there = ~per_output.isnan()
    classes = there.sum(1)  # a mean over the classes of an output, then over outputs
    outputs = int((classes > 0).sum())
    if not outputs:
        return Estimate(math.nan, math.nan, math.nan)
    weight = there.double() / classes.clamp_min(1)[:, None] / outputs
    value = float((per_output.nan_to_num() * weight).sum())
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(float(((influence * weight).sum((1, 2)) ** 2).sum()))
    return Estimate(value, *Interval(max(0.0, value - half), min(1.0, value + half)))


def _aucs(
    scores: Float[Tensor, "n m"], positive: Bool[Tensor, "n m"], mask: Bool[Tensor, "n m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "n m"]]:
    """AUC of each column (NaN for one class alone), and each row's influence on it."""
    s = scores.double().nan_to_num(posinf=1e300, neginf=-1e300).T.contiguous()
    yes, no = (positive & mask).T.contiguous(), (~positive & mask).T.contiguous()
    n_yes, n_no = yes.sum(1), no.sum(1)
    below_yes = _share_below(s, no, n_no)
    below_no = _share_below(s, yes, n_yes)
    auc = (below_yes * yes).sum(1) / n_yes
    auc = torch.where((n_yes > 0) & (n_no > 0), auc, torch.nan)
    a = auc.nan_to_num()[:, None]
    influence = (below_yes - a) * yes / n_yes.clamp_min(1)[:, None]
    influence = influence + (1 - below_no - a) * no / n_no.clamp_min(1)[:, None]
    return auc, torch.where(auc.isnan()[:, None], 0.0, influence).T


def _share_below(s: Float[Tensor, "m n"], among: Bool[Tensor, "m n"], count: Int[Tensor, " m"]) -> Tensor:
    """For each entry, the share of `among` that is smaller, equal ones counted half."""
    pool = torch.where(among, s, torch.inf).sort(1).values
    less, at_most = torch.searchsorted(pool, s, right=False), torch.searchsorted(pool, s, right=True)
    return (less + at_most).double() / (2 * count.clamp_min(1)[:, None])


def _sums(values: Float[Tensor, "n q"], mask: Bool[Tensor, "n q"]) -> tuple[np.ndarray, np.ndarray]:
    counted = mask.sum(1).double().cpu().numpy()
    return torch.where(mask, values, 0.0).double().sum(1).cpu().numpy(), counted
