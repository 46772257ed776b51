"""The page's section on interventions: patches along the probes' directions, behind every block."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from interp.page.numbers import number
from interp.probe_metrics import Estimate
from interp.sudoku.interventions import PATCHES, Effect, LayerPatches, PatchStudy
from interp.sudoku_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section

_SHOWN = ("substructure", "orthogonalised", "other puzzle", "random")
_MEASURES = {
    "drop": ("drop of the first move's logit", "What the clean model would have played."),
    "conflicting": ("drop of conflicting moves' logits", "Other moves that the digit, once placed, forbids."),
    "others": ("drop of unaffected moves' logits", "Moves that stay legal: what of a drop is no effect of the digit."),
    "illegal": ("probability of illegal tokens", "Illegal on the board as it is."),
}


def intervention_section(patches: dict[str, PatchStudy]) -> "Section":
    """Every measure by layer and patch, beside random directions of the same norm; the numbers as a table."""
    from interp.page import Row, Section, Table

    assert set(_SHOWN) == set(PATCHES)
    parts: list[Part] = []
    for name, study in patches.items():
        found = [_figure(name, study, measure) for measure in _MEASURES]
        parts.append(Row([figure for figure in found if figure is not None], least=520))
    rows = [_row(name, layer) for name, study in patches.items() for layer in study.layers]
    head = [
        "model",
        "layer",
        "norm of the patch",
        "share of the stream",
        "drop",
        "drop, random",
        "drop − random",
        "drop − other puzzle",
        "top token changed",
        "changed, random",
        "top token legal",
    ]
    parts.append(Table(head, rows, title="Unit patch beside its controls [95 %]"))
    studied = next(iter(patches.values()))
    lead = (
        f"Does the model play by what the probes read? At END_CLUES the stream is moved along the three directions of "
        f"the model's first move (its digit in its row, column and box) by as much as the stream moves there when the "
        f"move is made; {studied.n:,} puzzles that the probes have not seen, every layer from 1. A model that reads "
        f"its board there takes the digit for placed. Controls have the same norm: the patch of another puzzle, and "
        f"{studied.draws} random directions a puzzle; orthogonalised is the projection on the span, of its own norm."
    )
    return Section("Interventions", parts, lead=lead)


def _figure(name: str, study: PatchStudy, measure: str) -> "Part | None":
    from interp.figures.sudoku_curves import Line, interval_curves
    from interp.page import Figure

    y_title, caption = _MEASURES[measure]
    of: Callable[[Effect], Estimate] = lambda effect: getattr(effect, measure)  # noqa: E731
    lines = [
        Line(patch, [(float(layer.layer), *of(layer.effects[patch])) for layer in study.layers]) for patch in _SHOWN
    ]
    if not any(math.isfinite(point[1]) for line in lines for point in line.points):
        return None  # no puzzle has moves of this kind
    clean = {"unpatched": of(study.clean).value} if measure == "illegal" else {"no effect": 0.0}
    ticks = [layer.layer for layer in study.layers]
    plot = interval_curves(lines, x_title="patched behind block", y_title=y_title, levels=clean, ticks=ticks)
    return Figure(plot, f"{y_title[0].upper()}{y_title[1:]} · {name}", f"{caption} Bands: 95 %, over puzzles.")


def _row(name: str, layer: LayerPatches) -> list[str]:
    own, chance = layer.effects["substructure"], layer.effects["random"]
    return [
        name,
        str(layer.layer),
        number(layer.norm.value, ".2f"),
        number(layer.relative_norm.value, ".2f"),
        interval(own.drop, ".2f"),
        interval(chance.drop, ".2f"),
        interval(layer.excess, "+.2f"),
        interval(layer.excess_other, "+.2f"),
        interval(own.changed, ".2f"),
        interval(chance.changed, ".2f"),
        interval(own.valid, ".2f"),
    ]
