"""The page of an evaluation of steerings: what was achieved at what cost, texts to read, and where all of it is from.

write_report("evaluation.html", SteeringEvaluation.load("runs/horses/evaluation.json"))
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.steering.evaluation import UNSTEERED, Point, SteeringEvaluation
from interp.steering_report.layers import layer_section
from interp.steering_report.tables import MISSING, axbench_table, every_point, number, said, texts
from interp.steering_report.tradeoff import fronts, side_effects

if TYPE_CHECKING:
    from interp.page import Part, Section

_READING = (
    "A score is the judge's weight of the target concept minus that of the source concept, from −1 to 1; a text about "
    "which a judge has nothing to say counts 0 and is counted under silent. Judges see the texts alone and were not "
    "fitted on the contrast set. Changes are paired: steered minus unsteered text of the same prompt. p is of a paired "
    "permutation test, not corrected for the number of points. Intervals are of the prompts and documents drawn; "
    "held-out prompts share a few templates, so they are narrower than new templates would make them.",
    "KL is of the unsteered from the steered model, per token of neutral text: a strength changes it and the score "
    "together, so methods compare along a front, not at equal β. Perplexity is of the generated text under the "
    "unsteered model; a loop is easy to predict, so a low one next to high repetition is no good sign.",
)
_WORDS = {
    "α": "squared length of the mean difference in the metric of the data, less its bias; where it is near 0 the "
    "concept cannot be read there",
    "ρ": "how far the target concept is read as the source concept: target prompts move by β ρ of the difference",
    "η": "predicted disturbance of neutral activations, as a share of their variance, at β = 1",
    "wrong way": "share of prompts whose score went down",
    "repetition": "share of word trigrams that occurred before in the text",
    "zlib": "compressed bytes per byte",
}


def write_report(path: str | os.PathLike[str], found: SteeringEvaluation, *, budget: float | None = None) -> Path:
    """Write the page. `budget` is the KL (nats per token) up to which each method's best strength is compared; by
    default the median over the steered points."""
    from interp.page import Note, Page, Section

    costs = sorted(point.kl.value for point in found.points if point.method != UNSTEERED)
    if not costs:
        raise InputError("this evaluation has no steered point, so there is nothing to report")
    budget = costs[len(costs) // 2] if budget is None else budget
    chosen = best_within(found, found.judges[0], budget)
    facts = found.facts
    sections: list[Section | None] = [
        _summary(found, chosen, budget),
        Section("How to read this", [Note(text) for text in _READING]),
        fronts(found),
        side_effects(found, chosen, budget),
        layer_section(found),
        texts(found, chosen),
        every_point(found),
        _provenance(found),
    ]
    subtitle = f"{facts['model']} · {facts['source']} → {facts['target']} ({facts['contrast']})"
    return Page("Evaluation of steering", subtitle, [one for one in sections if one is not None]).write(path)


def best_within(found: SteeringEvaluation, judge: str, budget: float) -> dict[str, Point]:
    """Of each method the point of highest score on source prompts among those within the KL budget; of methods that
    have none, the one of least KL."""
    best: dict[str, Point] = {}
    for method in found.methods:
        points = found.of(method)
        within = [point for point in points if point.kl.value <= budget]
        best[method] = (
            max(within, key=lambda point: point.sets["source"].mean[judge].value)
            if within
            else min(points, key=lambda point: point.kl.value)
        )
    return best


def _summary(found: SteeringEvaluation, chosen: Mapping[str, Point], budget: float) -> "Section":
    from interp.page import Section, Table

    judge = found.judges[0]
    kinds = list(found.points[0].sets)
    head = ["method", *(f"change, {kind}" for kind in kinds), "KL", "p, source", "wrong way, source", "repetition"]
    rows = [_summary_row(point, judge, kinds, budget) for point in chosen.values()]
    lead = (
        f"Each method at its best strength of KL {budget:.3g} nats per token or less on neutral text, by the judge "
        f"{judge}: a score goes up towards the target, {found.facts['target']}. Choosing the best of several strengths "
        "on the same prompts flatters every method alike."
    )
    parts: list[Part] = [Table(head, rows, title=f"Best strength within the budget, by {judge}")]
    return Section("Summary", [*parts, axbench_table(found)] if found.axbench else parts, lead=lead)


def _summary_row(point: Point, judge: str, kinds: Sequence[str], budget: float) -> list[str]:
    source = point.sets["source"]
    steered = point.method != UNSTEERED
    return [
        point.name + (" (above the budget)" if point.kl.value > budget else ""),
        *(said(point.sets[kind].change[judge].mean) if steered else MISSING for kind in kinds),
        number(point.kl.value, ".3g"),
        number(source.change[judge].p, ".2g") if steered else MISSING,
        f"{100 * source.change[judge].wrong_way.value:.0f} %" if steered else MISSING,
        number(source.repetition.value, ".2f"),
    ]


def _provenance(found: SteeringEvaluation) -> "Section":
    from interp.page import KeyValues, Section

    facts = found.facts
    groups: dict[str, Any] = {
        "Evaluation": {
            "model": facts["model"],
            "revision": facts["revision"] or "–",
            "contrast set": facts["contrast"],
            "judges": ", ".join(facts["judges"]),
            "question": f"{facts['question']['text']} {' / '.join(facts['question']['options'])}",
            "instruction in the prompt": facts["instruction"] or "–",
            "prompts": ", ".join(f"{n} {name}" for name, n in facts["prompts"].items()),
            **{name: _short(value) for name, value in facts["config"].items() if name != "instruction"},
        }
    }
    for name, one in facts["methods"].items():
        held = {key: _short(value) for key, value in one["provenance"].items() if key != "sites"}
        groups[name] = {"scope": one["scope"], "sites": ", ".join(one["sites"]), **held, "method": one["method"]}
    return Section("Provenance", [KeyValues({**groups, "What the words mean": _WORDS})])


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items() if one is not None)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
