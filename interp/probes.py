"""Linear probes of activations, all outputs at once, with the controls that give their accuracy a meaning.

    logistic   min  C sum_i loss(w . x_i + b, y_i) + ||w||^2 / 2     scikit-learn's LogisticRegression(C)
    ridge      min    sum_i (w . x_i + b - y_i)^2  + alpha ||w||^2   in closed form, on labels 0 and 1

Labels `y: n q`: booleans are q binary outputs, integers q outputs of `classes` classes (softmax; every class has a w of
its own, as in scikit-learn). `mask: n q` says which rows count for which output. Intercepts are not penalised and
activations not standardised.

All outputs share the activations, so an evaluation is two matrix products. `fit_logistic` minimises in the coordinates
v = L^T w, with L L^T = cov(x) / 4 + 1 / (C n): there the Hessian is at most about 1 (Böhning 1992), whatever the scales
of the activations, and the minimum is the same.

A probe's accuracy says little by itself. `shuffled` gives each row the labels of another (what is left is what the
label frequencies give away); `control_labels` gives each *type* of row a random label, which a probe can only memorise,
and `selectivity` is the accuracy on the task minus that on the control (Hewitt and Liang 2019,
https://arxiv.org/abs/1909.03368).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.errors import InputError
from interp.logistic import Problems, prepared
from interp.separable import minimise
from interp.stats import Interval, bootstrap_ratio

ProbeKind = Literal["logistic", "ridge"]
PROBE_KINDS = ("logistic", "ridge")


@dataclass(frozen=True)
class LinearProbe:
    """Weights of q outputs; c is 1 for binary outputs, else the number of classes."""

    kind: ProbeKind
    weight: Float[Tensor, "q c d"]
    bias: Float[Tensor, "q c"]
    gradient: Float[Tensor, " q"]
    """Largest entry of the gradient of the mean loss with penalty at the end of the fit; 0 in closed form."""
    iterations: int = 0

    @property
    def classes(self) -> int | None:
        """How many classes an output has; none for binary outputs."""
        return None if self.weight.shape[1] == 1 else self.weight.shape[1]

    def converged(self, tol: float) -> bool:
        """Whether every output's gradient is at most `tol`."""
        return bool((self.gradient <= tol).all())

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n q c"]:
        """w . x + b: log-odds (logistic), or the predicted label (ridge)."""
        if x.shape[1] != self.weight.shape[2]:
            raise InputError(f"activations of width {x.shape[1]} for a probe of width {self.weight.shape[2]}")
        q, c, d = self.weight.shape
        flat = torch.addmm(self.bias.reshape(-1), x.to(self.weight.dtype), self.weight.reshape(q * c, d).T)
        return flat.reshape(len(x), q, c)

    def probabilities(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n q c"]:
        """Of the positive label (c = 1) or of each class; a ridge probe's score, kept in [0, 1]."""
        scores = self.scores(x)
        if self.kind == "ridge":
            return scores.clamp(0, 1)
        return scores.sigmoid() if scores.shape[2] == 1 else scores.softmax(2)

    def predict(self, x: Float[Tensor, "n d"]) -> Shaped[Tensor, "n q"]:
        """Booleans, or the class with the highest score."""
        return decide(self.kind, self.scores(x))


def decide(kind: ProbeKind, scores: Float[Tensor, "n q c"]) -> Shaped[Tensor, "n q"]:
    """The label that a probe's scores stand for."""
    if scores.shape[2] > 1:
        return scores.argmax(2)
    return scores[:, :, 0] > (0.5 if kind == "ridge" else 0.0)


def fit_logistic(
    x: Float[Tensor, "n d"],
    y: Shaped[Tensor, "n q"],
    *,
    mask: Bool[Tensor, "n q"] | None = None,
    classes: int | None = None,
    C: float = 1.0,
    dtype: torch.dtype = torch.float64,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> LinearProbe:
    """Fit all outputs together; `tol` bounds the largest entry of each one's gradient, as in scikit-learn.

    An output whose rows all have one label has no minimum: its weights are 0 and its probabilities 0 and 1.
    """
    if not C > 0:
        raise InputError(f"C={C}: expected a number above 0 (the inverse of the penalty)")
    x, hot, mask = prepared(x, y, mask, classes, dtype)
    problems = Problems(x, hot, mask, C)
    found = minimise(problems, problems.start(), tol=tol, max_iter=max_iter)
    weight, bias = problems.original(found.v)
    return LinearProbe("logistic", weight, bias, found.distance, found.iterations)


def fit_ridge(
    x: Float[Tensor, "n d"],
    y: Shaped[Tensor, "n q"],
    *,
    mask: Bool[Tensor, "n q"] | None = None,
    classes: int | None = None,
    alpha: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LinearProbe:
    """Least squares on labels 0 and 1; one Cholesky for all outputs with equal masks."""
    if not alpha > 0:
        raise InputError(f"alpha={alpha}: expected a number above 0")
    x, hot, mask = prepared(x, y, mask, classes, dtype)
    q, c = hot.shape[1:]
    weight, bias = x.new_zeros(q, c, x.shape[1]), x.new_zeros(q, c)
    kinds, group = torch.unique(mask, dim=1, return_inverse=True)
    for i in range(kinds.shape[1]):
        rows, of = kinds[:, i], group == i
        own = x if bool(rows.all()) else x[rows]
        targets = (hot if own is x else hot[rows])[:, of].reshape(len(own), -1)
        middle, level = own.mean(0), targets.mean(0)
        centred = own - middle
        gram = centred.T @ centred
        gram.diagonal().add_(alpha)
        w = torch.cholesky_solve(centred.T @ (targets - level), torch.linalg.cholesky(gram)).T
        weight[of], bias[of] = w.reshape(-1, c, x.shape[1]), (level - w @ middle).reshape(-1, c)
    return LinearProbe("ridge", weight, bias, x.new_zeros(q))


def fit_probe(kind: str, x: Float[Tensor, "n d"], y: Shaped[Tensor, "n q"], **options: Any) -> LinearProbe:
    """`fit_logistic` or `fit_ridge` by name."""
    if kind not in PROBE_KINDS:
        raise InputError(f"{kind!r} is no kind of probe; expected one of {', '.join(PROBE_KINDS)}")
    return (fit_ridge if kind == "ridge" else fit_logistic)(x, y, **options)


def shuffled(n: int, *, seed: int) -> Int[np.ndarray, " n"]:
    """Row i is given the labels (and mask) of row `shuffled(n)[i]`, never its own: a cyclic order of random rows."""
    if n < 2:
        raise InputError(f"{n} rows: expected at least 2, so that each can have another's labels")
    order = np.random.default_rng(seed).permutation(n)
    given = np.empty(n, np.int64)
    given[order] = np.roll(order, 1)
    return given


def control_labels(types: Int[np.ndarray, " n"], y: Shaped[Tensor, "n q"], *, seed: int) -> Shaped[Tensor, "n q"]:
    """Labels that are a random function of the type: those of a random row for each distinct type."""
    if len(types) != len(y):
        raise InputError(f"{len(types)} types for {len(y)} rows of labels; expected one for each")
    distinct, which = np.unique(types, return_inverse=True)
    rows = np.random.default_rng(seed).integers(0, len(y), size=len(distinct))
    return y[torch.from_numpy(rows[which]).to(y.device)]


@dataclass(frozen=True)
class Selectivity:
    """Accuracy on a task, on its control, and their difference."""

    task: float
    control: float
    value: float
    interval: Interval


def selectivity(
    task: Bool[np.ndarray, " n"], control: Bool[np.ndarray, " n"], *, draws: int = 2000, seed: int = 0
) -> Selectivity:
    """From whether each test row was right on the task and on the control; rows are drawn in pairs."""
    if task.shape != control.shape or not len(task):
        raise InputError(f"{len(task)} rows of the task and {len(control)} of the control; expected as many, and some")
    difference = task.astype(float) - control
    interval = bootstrap_ratio(difference, np.ones(len(task)), draws=draws, seed=seed)
    return Selectivity(float(task.mean()), float(control.mean()), float(difference.mean()), interval)
