"""Several judges: the vote, how far they agree, and how likely a pass is by chance.

    a text passes a seed     if at least `majority` of the judges give the expected answer (by default more than half)
    strict                   it passes every seed            chance: p^s,  p = P(Binomial(judges, 1/c) >= majority)
    soft                     it passes one seed or more      chance: 1 - (1 - p)^s

A seed is one generation of the text under judgement: `texts[s][i]` is the text of case i written with seed s. An
answer that cannot be read is a miss. Agreement is Fleiss' kappa over all texts, unusable answers being a category of
their own. The chances hold for judges who guess uniformly and independently; judges that share a bias do not.

Forced choice among many labels by a majority of five judges on every one of two seeds is the criterion of Presa and de
Oliveira 2026 (arXiv 2605.18808) as far as its public description says; the soft rule is our own reading.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from interp.errors import InputError
from interp.judging.question import Judge, Question, Scores, index_of
from interp.stats import Interval, binomial_tail, fleiss_kappa, wilson


@dataclass(frozen=True)
class Verdict:
    """What a panel says about n cases, each written with s seeds."""

    judges: tuple[str, ...]
    answer: str
    choices: Int[np.ndarray, "s n j"]
    """Option chosen by each judge; -1 where it gave no usable answer."""
    hits: Bool[np.ndarray, "s n j"]
    majority: int
    n_options: int

    @property
    def passed(self) -> Bool[np.ndarray, "s n"]:
        """Which texts got the majority."""
        return self.hits.sum(2) >= self.majority

    @property
    def strict(self) -> Bool[np.ndarray, " n"]:
        """Which cases pass on every seed."""
        return np.asarray(self.passed.all(0))

    @property
    def soft(self) -> Bool[np.ndarray, " n"]:
        """Which cases pass on one seed or more."""
        return np.asarray(self.passed.any(0))

    @property
    def hit_rate(self) -> tuple[float, Interval]:
        """The share of single answers that hit, with Wilson's interval (answers about one text are not independent:
        with few texts it is too narrow)."""
        hits, n = int(self.hits.sum()), self.hits.size
        return hits / n, wilson(hits, n)

    @property
    def failures(self) -> dict[str, int]:
        """Unusable answers of each judge."""
        return {name: int((self.choices[:, :, j] < 0).sum()) for j, name in enumerate(self.judges)}

    @property
    def kappa(self) -> float:
        """Fleiss' kappa over all texts of all seeds; NaN for one judge."""
        if len(self.judges) < 2:
            return math.nan
        rows = self.choices.reshape(-1, len(self.judges))
        return fleiss_kappa(np.stack([(rows == c).sum(1) for c in range(-1, self.n_options)], axis=1))

    @property
    def chance(self) -> tuple[float, float]:
        """The probability that judges who guess would pass a case strictly, and softly."""
        p, seeds = binomial_tail(len(self.judges), self.majority, 1 / self.n_options), len(self.hits)
        return p**seeds, 1 - (1 - p) ** seeds


@dataclass(frozen=True)
class Panel:
    """Judges who answer the same question; itself a judge, whose weights are the shares of the votes."""

    judges: tuple[Judge, ...]
    majority: int | None = None
    """Votes that pass a text; None for more than half of the judges."""
    name: str = "panel"

    def __post_init__(self) -> None:
        names = [judge.name for judge in self.judges]
        if not names or len(set(names)) != len(names):
            raise InputError(f"a panel needs one judge or more, of different names; got {names}")
        if not 1 <= self.votes_needed <= len(names):
            raise InputError(f"a majority of {self.majority} of {len(names)} judges: expected 1 to {len(names)}")

    @property
    def votes_needed(self) -> int:
        """How many judges must agree."""
        return len(self.judges) // 2 + 1 if self.majority is None else self.majority

    def choices(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Int[np.ndarray, "n j"]:
        """Every judge's answer to every text."""
        return np.stack([judge.score(texts, question, seed=seed).choice for judge in self.judges], axis=1)

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Shares of the usable votes; no usable answer where no judge has one."""
        choices = self.choices(texts, question, seed=seed)
        votes = np.stack([(choices == c).sum(1) for c in range(len(question.options))], axis=1).astype(float)
        voters = votes.sum(1, keepdims=True)
        weights = np.divide(votes, voters, out=np.full_like(votes, math.nan), where=voters > 0)
        return Scores(self.name, question, weights)

    def verdict(self, texts: Sequence[Sequence[str]], question: Question, answer: str) -> Verdict:
        """Whether the cases pass: `texts[s][i]` is case i as written with seed s."""
        if not texts or len({len(some) for some in texts}) != 1:
            raise InputError(
                f"a verdict needs the texts of one seed or more, equally many of each; got {[len(t) for t in texts]}"
            )
        right = index_of(answer, question)
        choices = np.stack([self.choices(some, question, seed=s) for s, some in enumerate(texts)])
        names = tuple(judge.name for judge in self.judges)
        return Verdict(names, answer, choices, choices == right, self.votes_needed, len(question.options))
