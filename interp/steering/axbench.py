"""AxBench's score of steering: the harmonic mean of three ratings, its strength chosen on one half of the prompts.

    score(c, i, f) = 3 / (1/c + 1/i + 1/f)        c, i, f in 0..2: concept, instruction, fluency; 0 if any of them is 0
    chosen factor  = argmax over factors of the mean score on the choosing half
    reported       = mean score of that factor on the other half

Source: Wu et al. 2025, "AxBench" (arXiv 2501.17148): ratings of a judge that reads the text, ten instructions for each
concept. Their judge is a large model behind an endpoint and their wording of the questions is not used here: scores
made with another judge are on the same scale and not comparable with published tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from interp.errors import InputError
from interp.judging.question import Judge, Question
from interp.stats import Interval, bootstrap_ratio

HIGHEST = 2.0


@dataclass(frozen=True)
class AxBenchScore:
    """What was chosen, and what it scored where it was not chosen."""

    factor: float
    score: float
    interval: Interval
    """Bootstrap over the reporting half's prompts, at the chosen factor."""
    n: int
    """Prompts of the reporting half with usable ratings."""
    chosen_by: float
    """The mean on the choosing half: above the reported one by the luck of choosing."""


def harmonic(
    concept: Shaped[np.ndarray, "*n"], instruction: Shaped[np.ndarray, "*n"], fluency: Shaped[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Harmonic mean of three ratings from 0 to 2; NaN where one is missing."""
    ratings = np.stack([np.asarray(part, np.float64) for part in (concept, instruction, fluency)])
    if ((ratings < 0) | (ratings > HIGHEST)).any():
        raise InputError(f"ratings from {np.nanmin(ratings)} to {np.nanmax(ratings)}: expected 0 to {HIGHEST:g}")
    whole = np.where(ratings == 0, 1.0, ratings)  # NaN stays NaN
    score = 3 / (1 / whole).sum(0)
    return np.where((ratings == 0).any(0) & ~np.isnan(ratings).any(0), 0.0, score)


def choose_and_report(
    factors: Sequence[float], scores: Float[np.ndarray, "f n"], *, seed: int = 0, level: float = 0.95
) -> AxBenchScore:
    """Pick the factor on a random half of the prompts (columns), report it on the other; NaN scores are left out."""
    if scores.shape[0] != len(factors) or scores.shape[1] < 2:
        raise InputError(
            f"scores of shape {scores.shape} for {len(factors)} factors: expected a row for each factor and two "
            "prompts or more, one to choose on and one to report"
        )
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    choosing, reporting = scores[:, order[: len(order) // 2]], scores[:, order[len(order) // 2 :]]
    usable = ~np.isnan(choosing)
    if not usable.any():
        raise InputError("no prompt of the choosing half has usable ratings; does the judge read them at all?")
    means = np.where(usable, choosing, 0).sum(1) / np.maximum(usable.sum(1), 1)
    best = int(np.argmax(np.where(usable.any(1), means, -np.inf)))
    held = reporting[best][~np.isnan(reporting[best])]
    if not len(held):
        raise InputError("no prompt of the reporting half has usable ratings; does the judge read them at all?")
    interval = bootstrap_ratio(held, np.ones(len(held)), level=level)
    return AxBenchScore(float(factors[best]), float(held.mean()), interval, len(held), float(means[best]))


def rate(
    judge: Judge, prompts: Sequence[str], texts: Sequence[str], concept: str, *, seed: int = 0
) -> dict[str, Float[np.ndarray, " n"]]:
    """The judge's three ratings of each text, NaN where it gave no usable answer."""
    shown = [f"Instruction: {prompt}\n\nAnswer: {text}" for prompt, text in zip(prompts, texts, strict=True)]
    questions = {
        "concept": (texts, f"How far is the text about, or written with, {concept}? 0: not at all, 2: clearly."),
        "instruction": (shown, "How far does the answer do what the instruction asks? 0: not at all, 2: fully."),
        "fluency": (texts, "How fluent is the text? 0: broken or repeating, 2: fluent."),
    }
    asked = {name: Question.rating(question, low=0, high=2) for name, (_, question) in questions.items()}
    return {name: judge.score(some, asked[name], seed=seed).values for name, (some, _) in questions.items()}
