"""The page's section on geometry: cosines of candidate probes and of the unembedding, by group of pairs."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.sudoku.probe_records import LayerGeometry, ProbeStudy
from interp.sudoku_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section


def geometry_section(study: ProbeStudy) -> "Section | None":
    """Grouped cosines beside both predictions, and all layers as a grid."""
    from interp.page import Row, Section

    own = [one for one in study.geometry if one.layer > 0]
    if not own:
        return None
    last = max(one.layer for one in own)
    parts: list[Part] = [
        Row([_dots([one for one in own if one.layer == layer], layer) for layer in range(1, last + 1)], least=520),
        Row([_grid(own, source) for source in dict.fromkeys(one.source for one in own)], least=520),
    ]
    if study.unembedding:
        parts.append(_unembedding(study))
    lead = (
        "Candidate probes of one digit in two cells, by what the cells share. If the probe adds up directions of the "
        "cell's row, column and box, cosines are the share of common units: 2/3, 1/3, 0. If it adds up directions of "
        "the cells that see it, cosines are the share of cells that see both. Where units are shared the two are "
        "close; cells of one band or stack and unrelated cells tell them apart. Penalties and correlated digits bend "
        "the weights of probes, so that known codes only come near their values."
    )
    return Section("Geometry", parts, lead=lead)


def _dots(layers: list[LayerGeometry], layer: int) -> "Part":
    from interp.figures.dots import Dots
    from interp.figures.sudoku_curves import variants
    from interp.figures.sudoku_groups import group_dots
    from interp.page import Figure

    groups = [row.group for row in layers[0].rows]
    sources, models = (list(dict.fromkeys(getattr(one, name) for one in layers)) for name in ("source", "model"))
    drawn = variants(len(sources), len(models))
    series = [
        Dots(
            f"{_said(one.source)}, {one.model}",
            [(row.cosine.value, row.cosine.low, row.cosine.high) for row in one.rows],
            drawn[sources.index(one.source)][models.index(one.model)],
        )
        for one in sorted(layers, key=lambda one: sources.index(one.source))
    ]
    predictions = {
        "predicted by units": [row.substructure for row in layers[0].rows],
        "predicted by cells": [row.cell_wise for row in layers[0].rows],
    }
    plot = group_dots(groups, series, y_title="cosine of candidate probes", predictions=predictions)
    return Figure(plot, f"Layer {layer}", "Means over digits and pairs, intervals over digits.")


def _grid(own: list[LayerGeometry], source: str) -> "Part":
    from interp.figures.sudoku_grids import number_grid
    from interp.page import Figure

    chosen = [one for one in own if one.source == source]
    groups = [row.group for row in chosen[0].rows]
    values = np.array([[row.cosine.value for row in one.rows] for one in chosen])
    notes = [[interval(row.cosine) for row in one.rows] for one in chosen]
    names = [f"{one.model} · {one.layer}" for one in chosen]
    titles: dict[str, Any] = {"x_title": "what two cells share", "y_title": "model · layer"}
    plot = number_grid(values, rows=names, columns=groups, signed=True, bounds=(-1, 1), notes=notes, **titles)
    return Figure(plot, f"All layers, {_said(source)}", "Mean cosine of candidate probes of one digit.")


def _unembedding(study: ProbeStudy) -> "Part":
    from interp.page import Table

    groups = list(dict.fromkeys(row.group for one in study.unembedding for row in one.rows))
    rows = []
    for group in groups:
        found = [next(row for row in one.rows if row.group == group) for one in study.unembedding]
        rows.append([group, f"{found[0].pairs:,}", *(interval(row.cosine) for row in found)])
    head = ["placements with", "pairs", *(f"{_said(one.source)}, {one.model}" for one in study.unembedding)]
    return Table(head, rows, title="Cosines of the unembedding's rows, centred")


def _said(source: str) -> str:
    return {"random": "random weights", "uniform": "uniform attention"}.get(source, source)
