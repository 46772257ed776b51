"""k-sparse probing: how well a label can be read from the k features that differ most between its classes.

    pooled codes of each text (`saes.pooling`)  ->  features ranked by |mean over class - mean over the others|,
    training texts only  ->  logistic regression on the k first, standardised  ->  accuracy, F1, AUC on test texts

Beside it, on the same split: all coordinates of the mean-pooled activation (the dense probe, an upper baseline), the k
coordinates of the activation chosen the same way (is the dictionary's basis any better than the model's own?), and the
k features again with labels permuted before everything else (`control`; away from 0.5 it would show a leak).

Two classes are one problem. Of more classes each is a problem of its own against equally many texts of the others, so
that 0.5 is chance everywhere. Method: Gurnee et al. 2023, https://arxiv.org/abs/2305.01610; with k of 1, 2 and 5 over
pooled codes as in SAEBench, https://arxiv.org/abs/2503.09532.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.stats import wilson
from saes.labelled import LabelledTexts
from saes.pooling import Pool, Pooled, pool
from saes.sae import SAE

_CONTROLS = 5  # permutations behind the control


@dataclass(frozen=True)
class ProbeScore:
    """One probe on the test texts of one problem; F1 is of the class."""

    accuracy: float
    low: float
    """Of the 95 % Wilson interval of the accuracy."""
    high: float
    f1: float
    auc: float
    n_test: int


@dataclass(frozen=True)
class ClassProbes:
    """One class against the others: scores by k, the features chosen (best first), and the baselines."""

    name: str
    features: tuple[int, ...]
    sparse: dict[int, ProbeScore]
    dense: ProbeScore
    coordinates: dict[int, ProbeScore]
    control: dict[int, float]
    """Mean accuracy over permutations."""


@dataclass(frozen=True)
class SparseProbing:
    """All problems of one data set."""

    task: str
    pool: str
    classes: tuple[ClassProbes, ...]

    def mean(self, kind: str, k: int | None = None) -> float:
        """Mean test accuracy over problems, of `sparse`, `coordinates`, `control` (for a k) or `dense`."""
        if kind == "dense":
            return float(np.mean([probes.dense.accuracy for probes in self.classes]))
        found = [getattr(probes, kind)[k] for probes in self.classes]
        return float(np.mean([score.accuracy if isinstance(score, ProbeScore) else score for score in found]))

    def summary(self) -> dict[str, float]:
        """Mean accuracies by name."""
        named = {
            f"{kind}_k{k}": self.mean(kind, k)
            for k in self.classes[0].sparse
            for kind in ("sparse", "coordinates", "control")
        }
        return named | {"dense": self.mean("dense")}

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the summary."""
        return {"mean_accuracy": self.summary(), **asdict(self)}


def sparse_probing(
    sae: SAE,
    model: HookedModel,
    data: LabelledTexts,
    site: Site | str | Sequence[Site | str] | None = None,
    *,
    ks: Sequence[int] = (1, 2, 5),
    how: Pool = "mean",
    test_share: float = 0.3,
    seed: int = 0,
    force: bool = False,
    show: bool | None = False,
) -> SparseProbing:
    """Pool the texts through model and SAE, and probe."""
    pooled = pool(sae, model, data.texts, site, how=how, force=force, show=show)
    return probe(pooled, data, ks=ks, how=how, test_share=test_share, seed=seed)


def probe(
    pooled: Pooled,
    data: LabelledTexts,
    *,
    ks: Sequence[int] = (1, 2, 5),
    how: str = "mean",
    test_share: float = 0.3,
    seed: int = 0,
) -> SparseProbing:
    """Probe pooled texts."""
    if not ks or min(ks) < 1 or max(ks) > min(pooled.features.shape[1], pooled.residual.shape[1]):
        raise InputError(f"ks={list(ks)}: expected numbers from 1 to {pooled.residual.shape[1]}")
    test = data.is_test(share=test_share, seed=seed)
    rng = np.random.default_rng(seed)
    found = []
    for name, chosen, positive in problems(data, test, rng):
        features, residual, held = pooled.features[chosen], pooled.residual[chosen], test[chosen]
        ranked = rank(features[~held], positive[~held])[: max(ks)]
        axes = rank(residual[~held], positive[~held])[: max(ks)]
        found.append(
            ClassProbes(
                name=name,
                features=tuple(ranked.tolist()),
                sparse={k: _score(_dense(features[:, ranked[:k]]), positive, held) for k in ks},
                dense=_score(residual, positive, held),
                coordinates={k: _score(residual[:, axes[:k]], positive, held) for k in ks},
                control=_control(features, positive, held, ks, rng),
            )
        )
    return SparseProbing(data.name, how, tuple(found))


class Problem(NamedTuple):
    """The texts of one binary problem and which of them are of the class."""

    name: str
    chosen: Int[np.ndarray, " n"]
    positive: Bool[np.ndarray, " n"]


def problems(data: LabelledTexts, test: Bool[np.ndarray, " n"], rng: np.random.Generator) -> Iterator[Problem]:
    """One problem for two classes; for more, each against an equal number of the others on either side of the split."""
    labels = np.array(data.labels)
    if len(data.classes) == 2:
        yield Problem(data.classes[1], np.arange(len(labels)), labels == data.classes[1])
        return
    for name in data.classes:
        parts = []
        for side in (~test, test):
            own, others = np.flatnonzero(side & (labels == name)), np.flatnonzero(side & (labels != name))
            size = min(len(own), len(others))
            parts += [rng.permutation(own)[:size], rng.permutation(others)[:size]]
        chosen = np.sort(np.concatenate(parts))
        yield Problem(name, chosen, labels[chosen] == name)


def rank(rows: Any, positive: Bool[np.ndarray, " n"], *, signed: bool = False) -> Int[np.ndarray, " f"]:
    """Columns by the absolute difference of their class means (or, `signed`, by the difference), largest first."""
    difference = np.asarray(rows[positive].mean(0)).ravel() - np.asarray(rows[~positive].mean(0)).ravel()
    return np.argsort(-difference if signed else -np.abs(difference), kind="stable")


def fit_logistic(rows: Float[np.ndarray, "n k"], positive: Bool[np.ndarray, " n"]) -> Any:
    """Standardised logistic regression with scikit-learn's default penalty; columns that do not vary count nothing."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000, class_weight="balanced"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return pipeline.fit(rows, positive)
        except ConvergenceWarning as warning:
            raise InputError(
                f"a logistic probe on {rows.shape[0]} rows of {rows.shape[1]} columns did not converge in 10,000 "
                f"iterations ({str(warning).splitlines()[0]}); expected a better posed problem: give more texts"
            ) from None


def _score(
    rows: Float[np.ndarray, "n k"], positive: Bool[np.ndarray, " n"], held: Bool[np.ndarray, " n"]
) -> ProbeScore:
    """Fit on what is not held out, score on what is."""
    from sklearn.metrics import f1_score, roc_auc_score

    rows = np.asarray(rows, np.float64)
    model = fit_logistic(rows[~held], positive[~held])
    guess, truth = model.predict(rows[held]), positive[held]
    right, n = int((guess == truth).sum()), len(truth)
    auc = float(roc_auc_score(truth, model.decision_function(rows[held]))) if len(set(truth)) == 2 else math.nan
    return ProbeScore(
        accuracy=right / n,
        low=wilson(right, n).low,
        high=wilson(right, n).high,
        f1=float(f1_score(truth, guess, zero_division=0.0)),  # pyright: ignore[reportArgumentType]
        auc=auc,
        n_test=n,
    )


def _control(
    features: Any, positive: Bool[np.ndarray, " n"], held: Bool[np.ndarray, " n"], ks: Sequence[int], rng: Any
) -> dict[int, float]:
    """Accuracy with labels permuted before selection, training and test; each side keeps its class sizes."""
    found: dict[int, list[float]] = {k: [] for k in ks}
    for _ in range(_CONTROLS):
        mixed = positive.copy()
        for side in (held, ~held):
            mixed[side] = rng.permutation(mixed[side])
        ranked = rank(features[~held], mixed[~held])
        for k in ks:
            found[k].append(_score(_dense(features[:, ranked[:k]]), mixed, held).accuracy)
    return {k: float(np.mean(values)) for k, values in found.items()}


def _dense(rows: Any) -> Float[np.ndarray, "n k"]:
    return rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
