"""Search for a recipe: a few features and strengths, tried on the panel; what wins is confirmed elsewhere.

    score(recipe) = mean over texts and judges of the weight of the emotion
                    - a · max(0, fluency of unsteered text - fluency - slack) - b · max(0, repetition - its unsteered)

    1  each candidate alone at each of a few strengths
    2  the best few of them with every partner (the other candidates; selves and a denial feature) added or suppressed;
       where nothing of 1 gained anything, every pair of candidates instead, at the least strength
    3  the strengths of the best changed one at a time

The recipe of the best score is chosen if it gains more than `least_gain` on unsteered text of the same prompts and
seeds. That score is biased upwards, as a maximum is: `saes.primitives.coverage` writes the winner anew on seeds that
the search never saw, and counts only those. A candidate list in the order of the catalogue makes the search greedy in
the right place; with `trials` used up it ends where it stands. Presa and de Oliveira found their recipes by hand, as
far as public descriptions say; the search is our own.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from interp.errors import InputError
from saes.primitives.controls import Way
from saes.primitives.panel_runs import PanelRun
from saes.primitives.results import Trial
from saes.primitives.specs import SteeringSpec, Term
from saes.primitives.writing import Request, Writer, Written


@dataclass(frozen=True)
class Candidates:
    """Features to try for one emotion, best first: naming-gates, selves, and others that may help when added or
    suppressed (a feature of denial, registers)."""

    naming: tuple[int, ...] = ()
    selves: tuple[int, ...] = ()
    partners: tuple[int, ...] = ()

    @property
    def alone(self) -> tuple[int, ...]:
        """What is tried alone."""
        return tuple(dict.fromkeys((*self.naming, *self.selves)))

    @property
    def all(self) -> tuple[int, ...]:
        """Every feature once."""
        return tuple(dict.fromkeys((*self.naming, *self.selves, *self.partners)))


@dataclass(frozen=True)
class SearchConfig:
    """How much is tried, and what a recipe has to be worth."""

    strengths: tuple[float, ...] = (0.35, 0.6)
    """Of features alone, as fractions of the mean norm; the field finds about half the norm best."""
    partner_strengths: tuple[float, ...] = (0.35, -0.35)
    factors: tuple[float, ...] = (0.7, 1.4)
    """By which the best recipe's strengths are changed at last."""
    beam: int = 2
    """Recipes that are given partners."""
    trials: int = 24
    seeds: tuple[int, ...] = (1000,)
    """Of the search; the seeds of the confirmation must be others."""
    fluency_cost: float = 0.1
    """Of a nat per token more than `fluency_slack` below unsteered text."""
    fluency_slack: float = 1.0
    repetition_cost: float = 0.5
    least_gain: float = 0.05

    def __post_init__(self) -> None:
        strengths = (*self.strengths, *self.partner_strengths, *self.factors)
        if not self.strengths or not all(math.isfinite(s) and s for s in strengths) or not self.seeds:
            raise InputError(f"a search needs strengths other than 0 and one seed or more; got {self}")
        if min(self.beam, self.trials) < 1:
            raise InputError(f"beam={self.beam} and trials={self.trials}: expected 1 or more of both")


def most_trials(candidates: Candidates, config: SearchConfig | None = None) -> int:
    """How many recipes the candidates allow at most, whatever `trials` says; 0 without a candidate."""
    config, n = config or SearchConfig(), len(candidates.all)
    if not n:
        return 0
    partners = config.beam * (n - 1) * len(config.partner_strengths)
    return len(candidates.alone) * len(config.strengths) + max(partners, 3 * comb(n, 2)) + 2 * len(config.factors)


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    chosen: SteeringSpec | None
    trials: tuple[Trial, ...]
    """In the order in which they were tried."""
    unsteered: float
    """The panel's mean weight of the emotion for unsteered text of the same prompts and seeds."""


def search_recipe(
    emotion: str,
    candidates: Candidates,
    template: SteeringSpec,
    writer: Writer,
    panel: PanelRun,
    prompts: Sequence[str],
    config: SearchConfig | None = None,
) -> Found:
    """The best recipe found; `template` has the mean norm, mode and scope (its terms are not used)."""
    run = _Run(emotion, template, writer, panel, tuple(prompts), config or SearchConfig())
    config, names = run.config, candidates.all
    if not names:
        return Found(None, (), run.base)
    singles = run.tried([run.spec(((i, s),)) for i in candidates.alone for s in config.strengths])
    gained = [trial for trial in singles if trial.score > run.base + config.least_gain]
    if gained:
        best = sorted(_best_by_feature(gained), key=lambda t: -t.score)[: config.beam]
        run.tried(run.extended(trial.spec, i, s) for trial in best for i in names for s in config.partner_strengths
                  if i not in trial.spec.features)  # fmt: skip
    else:
        least = min(config.strengths, key=abs)  # two features push further than one
        run.tried(run.spec(((i, a * least), (j, b * least))) for a, b in ((1, 1), (1, -1), (-1, 1))
                  for i, j in combinations(names, 2))  # fmt: skip
    if run.trials and (top := run.best).score > run.base + config.least_gain:
        run.tried(_changed(top.spec, i, factor) for i in range(len(top.spec.terms)) for factor in config.factors)
    chosen = run.best if run.trials and run.best.score > run.base + config.least_gain else None
    return Found(chosen and chosen.spec, tuple(run.trials.values()), run.base)


class _Run:
    """One search: what has been tried, and the unsteered texts it is held against."""

    def __init__(
        self, emotion: str, template: SteeringSpec, writer: Writer, panel: PanelRun, prompts: tuple[str, ...],
        config: SearchConfig,
    ) -> None:  # fmt: skip
        if not prompts:
            raise InputError("a search needs one prompt or more to write from")
        self.at = panel.emotions.index(emotion)
        self.template, self.writer, self.panel, self.prompts, self.config = template, writer, panel, prompts, config
        self.trials: dict[SteeringSpec, Trial] = {}
        plain = self._texts([Way("zero")])
        self.fluency = float(np.mean([one.fluency for one in plain]))
        self.repetition = float(np.mean([one.repetition for one in plain]))
        self.base = float(self._weight(plain))

    @property
    def best(self) -> Trial:
        """The first of the best."""
        return max(self.trials.values(), key=lambda trial: trial.score)

    def spec(self, terms: Sequence[tuple[int, float]]) -> SteeringSpec:
        """The template with these features."""
        return dataclasses.replace(self.template, terms=tuple(Term(i, s) for i, s in terms))

    def extended(self, spec: SteeringSpec, feature: int, strength: float) -> SteeringSpec:
        """A recipe with one feature more."""
        return dataclasses.replace(spec, terms=(*spec.terms, Term(feature, strength)))

    def tried(self, specs: Iterable[SteeringSpec]) -> list[Trial]:
        """Try those that are new, as far as trials are left, all in one go."""
        left = self.config.trials - len(self.trials)
        new = [spec for spec in dict.fromkeys(specs) if spec not in self.trials][:left]
        texts = self._texts([Way("trial", spec) for spec in new])
        n = len(self.prompts) * len(self.config.seeds)
        trials = [self._trial(spec, texts[k * n : (k + 1) * n]) for k, spec in enumerate(new)]
        self.trials |= dict(zip(new, trials, strict=True))
        return trials

    def _trial(self, spec: SteeringSpec, texts: Sequence[Written]) -> Trial:
        hit = self._weight(texts)
        fluency = float(np.mean([one.fluency for one in texts]))
        repetition = float(np.mean([one.repetition for one in texts]))
        cost = self.config.fluency_cost * max(0.0, self.fluency - fluency - self.config.fluency_slack)
        cost += self.config.repetition_cost * max(0.0, repetition - self.repetition)
        return Trial(spec, hit - cost, hit, fluency, repetition)

    def _texts(self, ways: Sequence[Way]) -> list[Written]:
        return self.writer.write([Request(way, p, seed) for way in ways for seed in self.config.seeds
                                  for p in self.prompts])  # fmt: skip

    def _weight(self, texts: Sequence[Written]) -> float:
        """Mean weight of the emotion; an unusable answer has none."""
        weights = self.panel.weights([one.text for one in texts], seed=self.config.seeds[0])[:, :, self.at]
        return float(np.nan_to_num(weights).mean())


def _best_by_feature(trials: Sequence[Trial]) -> list[Trial]:
    best: dict[tuple[int, ...], Trial] = {}
    for trial in trials:
        if (held := best.get(trial.spec.features)) is None or trial.score > held.score:
            best[trial.spec.features] = trial
    return list(best.values())


def _changed(spec: SteeringSpec, place: int, factor: float) -> SteeringSpec:
    terms = list(spec.terms)
    terms[place] = Term(terms[place].feature, round(terms[place].strength * factor, 4))
    return dataclasses.replace(spec, terms=tuple(terms))
