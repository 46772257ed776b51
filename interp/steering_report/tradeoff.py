"""Sections of figures: what methods achieve against what they cost, and side effects side by side."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from interp.steering.evaluation import UNSTEERED, Estimate, Point, SteeringEvaluation

if TYPE_CHECKING:
    from interp.page import Part, Section


def fronts(found: SteeringEvaluation) -> "Section":
    """Score against KL, and changes of source against target prompts, for each judge."""
    from interp.figures.steering_fronts import change_plot, front_plot
    from interp.page import Figure, Row, Section

    rows: list[Part] = []
    bars = f"Bars are {100 * found.facts['config']['level']:g} % intervals."
    for judge in found.judges:
        front = Figure(
            front_plot(found, judge),
            f"Score against KL · {judge}",
            f"Up and left is better; along a line β rises. {bars}",
        )
        change = Figure(
            change_plot(found, judge),
            f"Source against target prompts · {judge}",
            f"Right is what was asked for; what lies off the horizontal line was not. {bars}",
        )
        rows.append(Row([front, change], least=480))
    return Section("Trade-off", rows, lead="What each method achieves along its strengths, and what it costs.")


def side_effects(found: SteeringEvaluation, chosen: Mapping[str, Point], budget: float) -> "Section":
    """A small figure of bars for each side effect."""
    from interp.page import Row, Section

    base = found.of(UNSTEERED)[0]
    steered = [point for name, point in chosen.items() if name != UNSTEERED]
    figures = [
        _bars("KL on neutral text, nats per token", steered, lambda point: point.kl),
        _bars("Change of cross-entropy on neutral text, nats", steered, lambda point: point.delta_ce),
    ]
    for kind in ("source", "unrelated"):
        for title, pick in (
            (f"Repetition, {kind} prompts", lambda point, kind=kind: point.sets[kind].repetition),
            (f"Perplexity, {kind} prompts", lambda point, kind=kind: point.sets[kind].perplexity),
        ):
            figures.append(_bars(title, steered, pick, pick(base).value))
    asked = [(point, point.accuracy) for point in steered if point.accuracy is not None]
    if asked:
        title = f"Change of accuracy on {asked[0][1].n} questions, from {asked[0][1].unsteered:.2f}"
        figures.append(_bars(title, [point for point, _ in asked], _accuracy_change))
    lead = f"At the strengths of the summary, chosen within a KL of {budget:.3g}."
    return Section("Side effects", [Row(figures, least=390)], lead=lead)


def _accuracy_change(point: Point) -> Estimate:
    assert point.accuracy is not None
    return point.accuracy.change


def _bars(title: str, points: list[Point], pick: Callable[[Point], Estimate], level: float | None = None) -> "Part":
    from interp.figures.steering_effects import effect_bars
    from interp.page import Figure

    line = None if level is None else (level, f"unsteered, {level:.3g}")
    return Figure(effect_bars({point.name: pick(point) for point in points}, x_title=title, level=line), title)
