"""The page's section on transfer: probes of one layer on the others, and on later positions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.sudoku.probe_records import ProbeStudy, TransferRow
from interp.sudoku_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section


def transfer_section(study: ProbeStudy) -> "Section | None":
    """Heat maps of units' probes between layers, and curves over the puzzle."""
    from interp.page import Row, Section

    if not study.transfer:
        return None
    parts: list[Part] = []
    for target, title in (("substructure", "units"), ("candidates", "candidates")):
        rows = [row for row in study.transfer if row.target == target]
        if rows:
            figures = [_layers(model, rows, title) for model in study.models]
            figures += [_times(model, rows, title) for model in study.models]
            parts.append(Row([figure for figure in figures if figure is not None], least=520))
    lead = (
        "Logistic probes fitted at END_CLUES on one layer, scored on another, or further on in the model's own "
        "solutions of the test puzzles. Where a probe carries over, both places use the same directions."
    )
    return Section("Transfer", parts, lead=lead) if parts else None


def _layers(model: str, rows: list[TransferRow], title: str) -> "Part":
    from interp.figures.sudoku_grids import number_grid
    from interp.page import Figure

    own = {(r.layer, r.to_layer): r.exact for r in rows if r.model == model and r.empties is None}
    layers = sorted({layer for layer, _ in own})
    values = np.array([[own[a, b].value for b in layers] for a in layers])
    notes = [[interval(own[a, b]) for b in layers] for a in layers]
    names = [str(layer) for layer in layers]
    titles: dict[str, Any] = {"x_title": "scored on layer", "y_title": "fitted on layer"}
    plot = number_grid(values, rows=names, columns=names, bounds=(0, 1), notes=notes, **titles)
    return Figure(plot, f"Between layers: {title} · {model}", "Exact match; intervals where the pointer stands.")


def _times(model: str, rows: list[TransferRow], title: str) -> "Part | None":
    from interp.figures.sudoku_curves import Line, interval_curves
    from interp.page import Figure

    own = [r for r in rows if r.model == model and r.empties is not None]
    if not own:
        return None
    lines = [
        Line(
            f"layer {layer}",
            sorted((float(r.empties or 0), r.exact.value, r.exact.low, r.exact.high) for r in own if r.layer == layer),
        )
        for layer in sorted({r.layer for r in own})
        if layer > 0
    ]
    plot = interval_curves(
        lines, x_title="empty cells left", y_title="exact match", bounds=(0, 1.02), reverse=True, height=320
    )
    fewest = min(r.n for r in own)
    caption = f"Fitted at END_CLUES, scored at the first position with so many empty cells; {fewest:,} boards or more."
    return Figure(plot, f"Over the puzzle: {title} · {model}", caption)
