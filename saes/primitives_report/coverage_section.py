"""The page's sections on coverage: what passes under each condition, emotion by emotion, and its cost in fluency."""

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from interp.page.numbers import MISSING, number
from interp.stats import paired_permutation, wilson
from saes.primitives.results import Condition, Coverage
from saes.primitives_report.numbers import GLUE, chance, interval, recipe

if TYPE_CHECKING:
    from interp.figures.attention_style import Look
    from interp.page import Part, Section

_RULES: tuple[Literal["strict", "any_seed", "soft"], ...] = ("strict", "any_seed", "soft")
STEERED, ZERO = "steered", "zero"
SAID = {
    "steered": "the recipe found",
    "zero": "nothing added",
    "random direction": "a random direction of the same length",
    "matched feature": "other features that fire as often, same strengths",
    "flipped": "the recipe with its signs turned",
    "prompt only": "asked for the emotion in words, not steered",
}


def names_of(coverage: Coverage) -> list[str]:
    """Conditions in the order in which they are shown: steered first, then as they come."""
    held = dict.fromkeys(one.name for cell in coverage.cells for one in cell.conditions)
    return sorted(held, key=lambda name: name != STEERED)


def looks_of(coverage: Coverage) -> "dict[str, Look]":
    """How each condition is drawn, the same in every figure of the page."""
    from interp.figures.attention_style import looks

    return looks(names_of(coverage))


def coverage_section(coverage: Coverage) -> "Section":
    """Totals by condition, a row of dots for every emotion, and all numbers."""
    from interp.page import Note, Section

    n = len(coverage.emotions)
    lead = (
        f"{len(coverage.judges)} judges choose one of {n} emotions for every text, options shuffled. A text passes by "
        f"the majority of judges, a seed by the majority of its texts. Strict: each of {coverage.n_seeds} seeds passes "
        f"(chance {chance(coverage.chance_strict)} for judges who guess). Soft: more than half of all answers are yes "
        f"when asked whether the text expresses the emotion (chance {chance(coverage.chance_soft)}). An answer that "
        "cannot be read is a miss."
    )
    if not coverage.cells:
        return Section("Coverage", [Note(f"None of {n} emotions was tried, so there is no coverage to show.")], lead)
    parts: list[Part] = []
    if not coverage.passes("strict"):
        parts.append(Note("No emotion passes strictly. The table below says how near each came, beside its controls."))
    if names := coverage.facts.get("unconfirmed"):
        parts.append(Note("Without a significant naming-gate, so that the search took the leading features by lens, "
                          f"which nothing but the judges' answers here confirms: {', '.join(names)}."))  # fmt: skip
    if cut := coverage.facts.get("cut"):
        parts.append(Note(f"Cut to the time there was: {', '.join(cut)}."))
    parts += [_totals(coverage), _figure(coverage), _cells(coverage)]
    return Section("Coverage", parts, lead=lead)


def fluency_section(coverage: Coverage) -> "Section | None":
    """What each condition costs against writing unsteered, emotion by emotion."""
    from interp.figures.dots import Dots
    from interp.figures.literary_cells import row_dots
    from interp.page import Figure, Row, Section

    kept = [cell for cell in coverage.cells if cell.condition(ZERO) is not None]
    if not kept:
        return None
    rows = [cell.emotion for cell in kept]
    series, repeats, drawn = [], [], looks_of(coverage)
    for name in names_of(coverage):
        found = [(cell.condition(name), cell.condition(ZERO)) for cell in kept]
        costs = [a.fluency - b.fluency if a is not None and b is not None else math.nan for a, b in found]
        if name != ZERO:
            series.append(Dots(name, [(cost, math.nan, math.nan) for cost in costs], drawn[name]))
        repeats.append(
            Dots(name, [(math.nan if a is None else a.repetition, math.nan, math.nan) for a, _ in found], drawn[name])
        )
    lead = (
        "Fluency is the mean log-probability per token of a text under the unsteered model, in nats. A loop is easy to "
        "predict, so fluency that rises together with repetition is no good sign."
    )
    cost = row_dots(rows, series, x_title="fluency less that of nothing added, nats per token", level=(0, "no cost"))
    repetition = row_dots(rows, repeats, x_title="share of repeated word trigrams")
    figures = [
        Figure(cost, "Cost in fluency", "Left of the line: the unsteered model finds these texts less likely."),
        Figure(repetition, "Repetition", "Share of word trigrams that occurred before in the text."),
    ]
    return Section("Cost in fluency", [Row(figures, least=480)], lead=lead)


def _figure(coverage: Coverage) -> "Part":
    from interp.figures.dots import Dots
    from interp.figures.literary_cells import row_dots
    from interp.page import Figure

    series, drawn = [], looks_of(coverage)
    for name in names_of(coverage):
        found = [cell.condition(name) for cell in coverage.cells]
        series.append(Dots(name, [_rate(one) for one in found], drawn[name]))
    options = len(coverage.emotions)
    figure = row_dots(
        [cell.emotion for cell in coverage.cells],
        series,
        x_title="share of judges' answers that name the emotion",
        level=(1 / options, f"chance, 1 in {options}"),
        bounds=(-0.03, 1.03),
    )
    caption = (
        "Filled: steered, with Wilson's 95 % interval, which is too narrow as answers about one text are not "
        "independent. Hollow: controls."
    )
    return Figure(figure, "Hits of every emotion, steered and under each control", caption)


def _rate(one: Condition | None) -> tuple[float, float, float]:
    if one is None or not one.answers:
        return math.nan, math.nan, math.nan
    return one.hits / one.answers, *one.interval


def _totals(coverage: Coverage) -> "Part":
    """A row for each condition, over all emotions, with its difference to the steered texts."""
    from interp.page import Table

    rows = []
    for name in names_of(coverage):
        pairs = [(cell.condition(STEERED), cell.condition(name)) for cell in coverage.cells]
        held = [one for _, one in pairs if one is not None]
        hits, answers = sum(one.hits for one in held), sum(one.answers for one in held)
        gaps = [_rate(a)[0] - _rate(b)[0] for a, b in pairs if a is not None and b is not None]
        gaps = [gap for gap in gaps if math.isfinite(gap)]
        compared = name != STEERED and bool(gaps)
        rows.append(
            [
                name,
                SAID.get(name, ""),
                *(
                    _share(sum(getattr(one, rule) for one in held), len(held))
                    for rule in ("strict", "any_seed", "soft")
                ),
                f"{number(hits / answers)} {interval(wilson(hits, answers))}" if answers else MISSING,
                number(sum(gaps) / len(gaps), "+.2f") if compared else MISSING,
                number(paired_permutation(np.array(gaps)), ".2g") if compared else MISSING,
            ]
        )
    head = [
        "condition",
        "what it is",
        "strict [95 %]",
        "any seed [95 %]",
        "soft [95 %]",
        "hit rate [95 %]",
        "steered − this",
        "p",
    ]
    title = f"Totals over {len(coverage.cells)} emotions; p of a paired permutation of the emotions"
    return Table(head, rows, title=title)


def _share(k: int, n: int) -> str:
    return f"{k}{GLUE}of{GLUE}{n} {interval(wilson(k, n))}"


def _cells(coverage: Coverage) -> "Part":
    """A row for each emotion: what passes, the recipe, and every condition's hits."""
    from interp.page import Table

    names = names_of(coverage)
    rows = []
    for cell in coverage.cells:
        found = [cell.condition(name) for name in names]
        failed = sum(one.failures for one in found if one is not None)
        kind = MISSING if cell.chosen is None else cell.kind
        rows.append([cell.emotion, recipe(cell.chosen), kind, *map(_said, found), str(failed)])
    title = "Every emotion: hit rate; S: passes strictly, s: passes softly; 95 % interval where steered"
    return Table(["emotion", "recipe, in mean norms", "class", *names, "unusable answers"], rows, title=title)


def _said(one: Condition | None) -> str:
    if one is None:
        return MISSING
    rate, low, high = _rate(one)
    bounds = interval((low, high)) if one.name == STEERED else ""
    return " ".join(filter(None, (number(rate), bounds, "S" if one.strict else "", "s" if one.soft else "")))
