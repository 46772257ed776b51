"""AUCs of many neurons for many labels at once, and what the best of them would be by chance.

    AUC(i, j) = P(activation i of a positive of label j > that of a negative) + P(equal) / 2
              = 1/2 + sum over positives of (rank of activation i - (n + 1) / 2) / (P N)

The null draws permute which trace's labels go with which trace's activations (blocks of equally many states, in
order), so that states of one trace stay together and both sides keep their own structure. Of each permutation the
*largest* AUC over neurons is kept: a neuron that was picked as the best of m is compared with the best of m.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from interp.errors import InputError
from interp.sudoku.records import Record

MIN_POSITIVES = 10


def centred_ranks(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Average ranks of each column less their mean, float64."""
    ranks = rankdata(x.numpy(), axis=0)
    return torch.from_numpy(ranks - (len(x) + 1) / 2)


def aucs(ranks: Float[Tensor, "n m"], labels: Bool[Tensor, "n q"]) -> Float[Tensor, "q m"]:
    """From `centred_ranks`; NaN for a label that has fewer than `MIN_POSITIVES` states on either side."""
    positives = labels.sum(0).double()
    negatives = len(labels) - positives
    enough = torch.minimum(positives, negatives) >= MIN_POSITIVES
    found = 0.5 + labels.double().T @ ranks / (positives * negatives)[:, None]
    return torch.where(enough[:, None], found, torch.nan)


@dataclass(frozen=True)
class Ranking(Record):
    """The best neuron of each label, and how much of that is the best of many."""

    neurons: int
    positives: Int[np.ndarray, " q"]
    best: Int[np.ndarray, " q"]
    """The neuron with the highest AUC; -1 for a label with too few states to tell."""
    auc: Float[np.ndarray, " q"]
    p: Float[np.ndarray, " q"]
    """Share of permutations whose best neuron for this label is as good, the observed one among them."""
    threshold: float
    """0.95 quantile of the largest AUC over all neurons and labels of a permutation."""
    draws: int

    @property
    def found(self) -> Bool[np.ndarray, " q"]:
        """Labels whose best neuron is above the threshold."""
        return self.auc > self.threshold

    @property
    def tested(self) -> int:
        """Labels with enough states."""
        return int((self.best >= 0).sum())

    @property
    def distinct(self) -> int:
        """How many different neurons the found labels have."""
        return len(set(self.best[self.found].tolist()))

    @property
    def mean_auc(self) -> float:
        """Of the best neurons, over the labels tested."""
        return float(np.nanmean(self.auc)) if self.tested else float("nan")


def ranking(
    x: Float[Tensor, "n m"], labels: Bool[Tensor, "n q"], *, block: int, draws: int = 100, seed: int = 0
) -> Ranking:
    """Rank m neurons for q labels; `block` consecutive states come from one trace."""
    n = len(x)
    if not n or n % block or len(labels) != n or draws < 1:
        raise InputError(
            f"{n} states of activations, {len(labels)} of labels, blocks of {block}, {draws} draws: expected as many "
            f"labels as activations, whole blocks, and a draw or more"
        )
    ranks = centred_ranks(x)
    observed = aucs(ranks, labels)
    told = ~observed.isnan().any(1)
    filled = torch.where(told[:, None], observed, -1.0)
    best = filled.max(1)
    rng, nulls = np.random.default_rng(seed), []
    for _ in range(draws):
        order = rng.permutation(n // block)[:, None] * block + np.arange(block)
        drawn = aucs(ranks, labels[torch.from_numpy(order.ravel())])
        nulls.append(torch.where(told[:, None], drawn, -1.0).max(1).values)
    null = torch.stack(nulls)
    reached = (null >= best.values).sum(0)
    return Ranking(
        neurons=x.shape[1],
        positives=labels.sum(0).numpy(),
        best=torch.where(told, best.indices, -1).numpy(),
        auc=torch.where(told, best.values, torch.nan).numpy(),
        p=torch.where(told, (reached + 1) / (draws + 1), torch.nan).numpy(),
        threshold=float(null.max(1).values.quantile(0.95)) if bool(told.any()) else float("nan"),
        draws=draws,
    )
