"""The result of an evaluation of steerings: points (method, strength) with what they achieve and what they cost.

    change_i = score(steered text of prompt i) - score(unsteered text of prompt i)   the same prompt, the same seed
    score    = weight of the target concept - weight of the source concept, by one judge     -1 ... 1

Intervals are percentile bootstraps over prompts (of paired changes) and over documents (KL, ΔCE); p-values are paired
permutation tests; the share moved the wrong way, change_i < 0, has Wilson's interval. Everything is JSON; scores of
single prompts are kept, so that any other statistic can be had without generating again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InputError
from interp.sealing import read_json, write_json
from interp.stats import bootstrap_ratio, paired_permutation, wilson
from interp.steering.generation import Generated
from interp.steering.neutral import NeutralEffect
from interp.typed import built

FORMAT, VERSION = "midlens-steering-evaluation", 1
UNSTEERED, PROMPTED = "unsteered", "prompt"


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def ratio(cls, sums: Sequence[float], sizes: Sequence[float] | None = None, *, level: float = 0.95) -> "Estimate":
        """Σ sums / Σ sizes over cases; a plain mean without sizes."""
        x = np.asarray(sums, np.float64)
        n = np.ones(len(x)) if sizes is None else np.asarray(sizes, np.float64)
        low, high = bootstrap_ratio(x, n, level=level)
        return cls(float(x.sum() / n.sum()), low, high)

    def map(self, function: Any) -> "Estimate":
        """The same through a rising function."""
        return Estimate(*(float(function(x)) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Change:
    """Steered against unsteered on the same prompts, by one judge."""

    mean: Estimate
    p: float
    """Of the paired permutation test of no change."""
    wrong_way: Estimate
    """The share of prompts whose score went down."""

    @classmethod
    def of(cls, steered: Sequence[float], unsteered: Sequence[float], *, level: float) -> "Change":
        """From scores of the same prompts."""
        difference = np.asarray(steered, np.float64) - np.asarray(unsteered, np.float64)
        down = int((difference < -1e-9).sum())
        low, high = wilson(down, len(difference), level=level)
        share = Estimate(down / len(difference), low, high)
        return cls(Estimate.ratio(difference.tolist(), level=level), paired_permutation(difference), share)


@dataclass(frozen=True)
class SetResult:
    """One point on one set of prompts; dictionaries are by judge."""

    scores: dict[str, list[float]]
    """Of each prompt's text; 0 where the judge had nothing to say about it."""
    silent: dict[str, int]
    """Texts about which the judge gave no usable answer."""
    mean: dict[str, Estimate]
    change: dict[str, Change]
    perplexity: Estimate
    """Under the unsteered model."""
    repetition: Estimate
    zlib: Estimate
    n_tokens: float

    @classmethod
    def of(
        cls,
        generated: Generated,
        judged: Mapping[str, Mapping[str, Any]],
        unsteered: Mapping[str, Mapping[str, Any]],
        *,
        level: float,
    ) -> "SetResult":
        """From texts and what judges said of them and of the unsteered texts."""
        loss = Estimate.ratio(generated.losses, generated.n_tokens, level=level)
        return cls(
            {name: list(one["scores"]) for name, one in judged.items()},
            {name: int(one["silent"]) for name, one in judged.items()},
            {name: Estimate.ratio(one["scores"], level=level) for name, one in judged.items()},
            {name: Change.of(one["scores"], unsteered[name]["scores"], level=level) for name, one in judged.items()},
            loss.map(math.exp),
            Estimate.ratio(generated.repetition, level=level),
            Estimate.ratio(generated.zlib, level=level),
            float(np.mean(generated.n_tokens)),
        )


@dataclass(frozen=True)
class Accuracy:
    """Multiple-choice questions answered rightly, beside the unsteered model on the same questions."""

    n: int
    correct: Estimate
    unsteered: float
    change: Estimate
    """Paired."""


@dataclass(frozen=True)
class Point:
    """One method at one strength."""

    method: str
    beta: float
    sets: dict[str, SetResult]
    kl: Estimate
    """KL(unsteered || steered) on neutral text, nats per token."""
    delta_ce: Estimate
    accuracy: Accuracy | None = None
    analytic: dict[str, dict[str, float]] = field(default_factory=dict)
    """By site: what the closed form says of it, without running the model (alpha, rho, eta, ...)."""

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.method if self.method in (UNSTEERED, PROMPTED) else f"{self.method}, β = {self.beta:g}"


@dataclass(frozen=True)
class SteeringEvaluation:
    """All points of one evaluation."""

    facts: dict[str, Any]
    """Model, contrast set, concepts, judges, settings."""
    points: tuple[Point, ...]
    samples: tuple[dict[str, Any], ...] = ()
    """Texts: {"set", "prompt", "texts": {point: text}}."""
    axbench: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By method, where a judge rated."""

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges."""
        return tuple(self.facts["judges"])

    @property
    def methods(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    def of(self, method: str) -> tuple[Point, ...]:
        """The points of a method by rising strength."""
        found = sorted((point for point in self.points if point.method == method), key=lambda point: point.beta)
        if not found:
            raise InputError(f"no points of {method!r}; there are {', '.join(self.methods)}")
        return tuple(found)

    def front(self, judge: str, *, prompts: str = "source", methods: Sequence[str] | None = None) -> tuple[Point, ...]:
        """The points no other dominates: less KL, or more score on those prompts; by rising KL."""
        chosen = [point for point in self.points if methods is None or point.method in methods]
        chosen.sort(key=lambda point: (point.kl.value, -point.sets[prompts].mean[judge].value))
        found: list[Point] = []
        for point in chosen:
            if not found or point.sets[prompts].mean[judge].value > found[-1].sets[prompts].mean[judge].value:
                found.append(point)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def save(self, path: Path) -> Path:
        """Write it as one file."""
        write_json(path, self.to_json())
        return path

    @classmethod
    def from_json(cls, value: Any) -> "SteeringEvaluation":
        """What `to_json` wrote; refuses anything else."""
        if not isinstance(value, Mapping) or value.get("format") != FORMAT or value.get("version") != VERSION:
            found = (
                (value.get("format"), value.get("version")) if isinstance(value, Mapping) else (f"{value!r:.80}", None)
            )
            raise InputError(f"this is {found[0]!r} version {found[1]!r}, expected {FORMAT} version {VERSION}")
        rest = {name: one for name, one in value.items() if name not in ("format", "version")}
        found = built(cls, rest, "an evaluation of steering")
        judges = found.facts.get("judges")
        if not isinstance(judges, list | dict) or not all(isinstance(name, str) for name in judges):
            raise InputError(f"an evaluation of steering names its judges in facts; got {judges!r:.80}")
        return found

    @classmethod
    def load(cls, path: Path) -> "SteeringEvaluation":
        """Read one file."""
        return cls.from_json(read_json(path, "evaluation of steering"))


def kl_and_ce(effect: NeutralEffect | None, *, level: float) -> tuple[Estimate, Estimate]:
    """Means per token with intervals over documents; zeros for the unsteered model."""
    if effect is None:
        return Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0)
    return (
        Estimate.ratio(effect.kl, effect.n, level=level),
        Estimate.ratio(effect.delta_ce.tolist(), effect.n, level=level),
    )


def accuracy(correct: Sequence[bool], unsteered: Sequence[bool], *, level: float) -> Accuracy:
    """From answers to the same questions."""
    low, high = wilson(sum(correct), len(correct), level=level)
    share = Estimate(sum(correct) / len(correct), low, high)
    change = [float(a) - float(b) for a, b in zip(correct, unsteered, strict=True)]
    return Accuracy(len(correct), share, sum(unsteered) / len(unsteered), Estimate.ratio(change, level=level))
