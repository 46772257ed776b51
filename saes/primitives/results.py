"""What a search for steering recipes found, emotion by emotion, beside its controls: values that are kept as JSON.

    Coverage            all emotions: strict and soft passes with intervals, agreement of the judges, shuffled labels
      Cell              one emotion: the recipe, every trial of the search, and the conditions
        Condition       one way of writing ("steered", "zero", ...): passes, hits, fluency, repetition
        Sample          one text, and what each judge said of it

A text passes if a majority of the judges choose the emotion, a seed if a majority of its texts pass:

    strict     every seed passes            chance: P(Binomial(t, p) > t/2)^seeds,  p = P(Binomial(j, 1/c) > j/2)
    any_seed   one seed or more passes      chance: 1 - (1 - P(Binomial(t, p) > t/2))^seeds
    soft       more than half of all answers to "does it express ...?" are yes
                                            chance: P(Binomial(j t seeds, 1/2) > j t seeds / 2)

with j judges, c emotions to choose from and t texts a seed. An answer that cannot be read is a miss. One text a seed,
five judges and two seeds are the strict criterion of Presa and de Oliveira 2026 (arXiv 2605.18808) as far as its public
descriptions say; the rest is our own. The chances are those of judges who guess independently: judges that share a
liking for an emotion pass it more often, which the control conditions and the shuffled labels show.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import InputError
from interp.stats import Interval, binomial_tail, wilson
from interp.typed import built
from saes.primitives.specs import SteeringSpec
from saes.primitives.specs import Term as Term

CellKind = Literal["naming", "self", "recipe"]
CONDITIONS = ("steered", "zero", "random direction", "matched feature", "flipped", "prompt only")
UNSTEERED = ("zero", "prompt only")
"""What is left of them where there is no recipe."""


@dataclass(frozen=True)
class Sample:
    """One text."""

    condition: str
    seed: int
    prompt: str
    text: str
    votes: dict[str, str | None]
    """By judge, the emotion it chose; None where its answer could not be read."""
    yes: dict[str, bool | None]
    """By judge, whether the text expresses the emotion of the cell."""
    fluency: float
    """Mean log-probability of its tokens under the unsteered model, nats."""
    repetition: float
    """Share of word trigrams that occurred before in the text."""

    def passes(self, emotion: str) -> bool:
        """Whether a majority of the judges chose the emotion."""
        return 2 * sum(vote == emotion for vote in self.votes.values()) > len(self.votes)


@dataclass(frozen=True)
class Condition:
    """One way of writing texts, and what the judges said of them."""

    name: str
    spec: SteeringSpec | None
    """None where no features were steered: prompts alone, a random direction."""
    strict: bool
    soft: bool
    hits: int
    """Forced choices that are the emotion."""
    answers: int
    failures: int
    """Forced choices that could not be read."""
    interval: tuple[float, float]
    """Wilson's, of hits among answers. Answers about one text are not independent, so it is somewhat too narrow."""
    fluency: float
    repetition: float
    any_seed: bool = False
    yes: int = 0
    """Answers "yes" among as many answers again."""
    note: str = ""
    """What else there is to say: the length and seed of a random direction, the words of an instruction."""

    @classmethod
    def of(
        cls, name: str, emotion: str, samples: Iterable[Sample], spec: SteeringSpec | None, note: str = ""
    ) -> "Condition":
        """Counted from its texts."""
        own = [sample for sample in samples if sample.condition == name]
        if not own:
            raise InputError(f"the condition {name!r} of {emotion} has no texts")
        votes = [vote for sample in own for vote in sample.votes.values()]
        yes = sum(answer is True for sample in own for answer in sample.yes.values())
        asked = sum(len(sample.yes) for sample in own)
        seeds = sorted({sample.seed for sample in own})
        passed = [_more_than_half([s.passes(emotion) for s in own if s.seed == seed]) for seed in seeds]
        hits = sum(vote == emotion for vote in votes)
        low, high = wilson(hits, len(votes))
        return cls(
            name=name, spec=spec, strict=all(passed), any_seed=any(passed), soft=2 * yes > asked, hits=hits,
            answers=len(votes), failures=sum(vote is None for vote in votes), interval=(low, high),
            fluency=math.fsum(s.fluency for s in own) / len(own), yes=yes, note=note,
            repetition=math.fsum(s.repetition for s in own) / len(own),
        )  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One recipe that the search tried."""

    spec: SteeringSpec
    score: float
    """The panel's mean weight of the emotion, less what fluency and repetition cost."""
    hit: float = math.nan
    """The panel's mean weight of the emotion alone."""
    fluency: float = math.nan
    repetition: float = math.nan


@dataclass(frozen=True)
class Cell:
    """One emotion."""

    emotion: str
    kind: CellKind
    """Of the chosen recipe: one naming-gate, one self, or anything else ("recipe", also where there is none)."""
    chosen: SteeringSpec | None
    """None where no candidate was found or nothing tried was better than unsteered text."""
    conditions: tuple[Condition, ...]
    samples: tuple[Sample, ...]
    search: tuple[Trial, ...]

    def condition(self, name: str) -> Condition | None:
        """One condition by its name; None where the cell has none of it."""
        return next((one for one in self.conditions if one.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        rows = [dataclasses.asdict(one) | {"spec": one.spec and one.spec.to_json()} for one in self.conditions]
        trials = [_without_nan(dataclasses.asdict(t)) | {"spec": t.spec.to_json()} for t in self.search]
        return {
            "emotion": self.emotion, "kind": self.kind, "chosen": self.chosen and self.chosen.to_json(),
            "conditions": rows, "samples": [dataclasses.asdict(sample) for sample in self.samples], "search": trials,
        }  # fmt: skip


@dataclass(frozen=True)
class Shuffled:
    """The steered texts of all cells, judged as ever and held against emotions dealt out at random."""

    hits: float
    """Mean number of forced choices that are the emotion dealt out, over the draws."""
    answers: int
    strict: float
    """Mean number of cells that pass strictly."""
    cells: int
    draws: int


@dataclass(frozen=True)
class Coverage:
    """All emotions that were tried, and the circumstances."""

    categories: str
    judges: tuple[str, ...]
    emotions: tuple[str, ...]
    """All that the judges choose from, tried or not."""
    cells: tuple[Cell, ...]
    n_seeds: int
    chance_strict: float
    chance_soft: float
    kappa: float
    """Fleiss' kappa of the forced choices over all texts; NaN where it is undefined."""
    shuffled: Shuffled | None
    facts: dict[str, Any]

    def passes(self, rule: Literal["strict", "soft", "any_seed"], condition: str = "steered") -> int:
        """How many cells pass by a rule under a condition."""
        found = (cell.condition(condition) for cell in self.cells)
        return sum(one is not None and getattr(one, rule) for one in found)

    @property
    def strict(self) -> tuple[int, Interval]:
        """Cells that pass strictly when steered, and Wilson's interval of their share."""
        count = self.passes("strict")
        return count, wilson(count, len(self.cells))

    @property
    def soft(self) -> tuple[int, Interval]:
        """Cells that pass softly when steered, and Wilson's interval of their share."""
        count = self.passes("soft")
        return count, wilson(count, len(self.cells))

    @property
    def unusable(self) -> dict[str, tuple[int, int]]:
        """Of each judge: how many of its answers about the texts of all conditions, forced choices and yes or no, could
        not be read or named no option, and how many it gave."""
        found = {}
        for judge in self.judges:
            answers = [a.get(judge) for cell in self.cells for one in cell.samples for a in (one.votes, one.yes)]
            found[judge] = (sum(answer is None for answer in answers), len(answers))
        return found

    def table(self) -> list[dict[str, Any]]:
        """One row for each cell and condition."""
        return [
            {"emotion": cell.emotion, "kind": cell.kind, "recipe": cell.chosen.describe() if cell.chosen else "none"}
            | {"condition": one.name}
            | {key: value for key, value in dataclasses.asdict(one).items() if key not in ("name", "spec")}
            for cell in self.cells
            for one in cell.conditions
        ]

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shuffled = None if self.shuffled is None else dataclasses.asdict(self.shuffled)
        own = {"judges": list(self.judges), "emotions": list(self.emotions), "shuffled": shuffled}
        return _without_nan(fields | own) | {"cells": [cell.to_json() for cell in self.cells]}

    @classmethod
    def from_json(cls, value: Any) -> "Coverage":
        """What `to_json` gave; refuses anything else."""
        return built(cls, value, "a coverage of emotions", null_is_nan=True)


def chances(n_judges: int, n_options: int, n_seeds: int, *, texts: int = 1) -> dict[str, float]:
    """Of strict, any_seed and soft, for judges who guess; see the module's docstring."""
    if min(n_judges, n_seeds, texts) < 1 or n_options < 2:
        raise InputError(
            f"chances of {n_judges} judges, {n_options} options, {n_seeds} seeds and {texts} texts: expected one or "
            "more of each, and two options"
        )
    text = binomial_tail(n_judges, n_judges // 2 + 1, 1 / n_options)
    seed = binomial_tail(texts, texts // 2 + 1, text)
    asked = n_judges * n_seeds * texts
    return {"strict": seed**n_seeds, "any_seed": 1 - (1 - seed) ** n_seeds,
            "soft": binomial_tail(asked, asked // 2 + 1, 0.5)}  # fmt: skip


def _more_than_half(flags: list[bool]) -> bool:
    return 2 * sum(flags) > len(flags)


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in fields.items()}
