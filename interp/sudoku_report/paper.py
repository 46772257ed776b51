"""The page's section beside the paper's figures (arXiv 2605.18847), whose numbers were read off its plots."""

from typing import TYPE_CHECKING

from interp.page.numbers import number
from interp.sudoku.interventions import PatchStudy
from interp.sudoku.probe_records import ProbeStudy
from interp.sudoku_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section

PROBES = {
    ("cell state", "accuracy"): (0.518, 0.511, 0.642, 0.797, 0.809, 0.804, 0.791, 0.769),
    ("candidates", "exact"): (0.065, 0.069, 0.353, 1.000, 1.000, 0.999, 0.981, 0.339),
    ("candidates", "accuracy"): (0.741, 0.743, 0.881, 1.000, 1.000, 1.000, 0.998, 0.875),
    ("substructure", "exact"): (0.347, 0.355, 0.744, 1.000, 1.000, 1.000, 1.000, 0.967),
    ("substructure", "accuracy"): (0.876, 0.879, 0.963, 1.000, 1.000, 1.000, 1.000, 0.996),
    ("cell state", "auc"): (0.901, 0.897, 0.941, 0.980, 0.983, 0.982, 0.980, 0.975),
    ("candidates", "auc"): (0.825, 0.828, 0.948, 1.000, 1.000, 1.000, 1.000, 0.948),
    ("substructure", "auc"): (0.926, 0.930, 0.988, 1.000, 1.000, 1.000, 1.000, 1.000),
}
"""By layer 1 to 8; ±0.005."""
DROPS = (14.0, 8.7, 15.1, 23.9, 24.9, 22.3, 21.9, 19.3)
"""Of the clean top logit under the unit patch, by layer 1 to 8; no random control was published."""
_COSINES = {
    "shares 2 units": ".61 to .67",
    "shares 1 unit": ".30 to .35",
    "band or stack": ".04 to .08",
    "none": "−.03 to .01",
}
_GROUPS = {
    "shares 2 units": ("row & box", "column & box"),
    "shares 1 unit": ("row", "column", "box"),
    "band or stack": ("band", "stack"),
    "none": ("none",),
}
_NAMES = {"cell state": "cell states", "candidates": "candidates", "substructure": "units"}
_METRICS = {"accuracy": "accuracy", "exact": "exact match", "auc": "AUC"}


def paper_section(study: ProbeStudy | None, patches: dict[str, PatchStudy]) -> "Section":
    """The paper's numbers by layer, and what was measured here beneath them."""
    from interp.page import Note, Section

    layers = [str(layer) for layer in range(1, 9)]
    parts: list[Part] = [Note(_CAVEAT), _probe_table(study, layers), _drop_table(patches, layers)]
    if study is not None and study.geometry:
        parts.append(_cosine_table(study))
    return Section("Beside the paper", parts, lead="arXiv 2605.18847: 9 × 9 boards, 8 layers, 43.6 million weights.")


_CAVEAT = """The paper's numbers were read off its published plots, to about ±0.005 on lines. They are of 9 × 9 boards
of about 24 clues. A model of another board with other layers cannot be compared with them level by level, only in
shape: whether structure rises over the layers, whether cell states stay at the ceiling of the unit code. No ceilings
and no controls with random weights, shuffled labels or random directions were found beside the published plots."""


def _probe_table(study: ProbeStudy | None, layers: list[str]) -> "Part":
    from interp.page import Table

    rows = []
    for (target, metric), values in PROBES.items():
        said = f"{_NAMES[target]}, {_METRICS[metric]}"
        rows.append([said, "paper, 9 × 9", *(number(value) for value in values)])
        if study is None or target not in study.config.targets:
            continue
        for model in study.models:
            found = {
                r.layer: getattr(r, metric).value
                for r in study.rows
                if (r.model, r.source, r.target, r.probe) == (model, "trained", target, "logistic")
            }
            rows.append([said, f"{model}, {study.n} × {study.n}", *(number(found.get(int(layer))) for layer in layers)])
    return Table(["probe", "model", *(f"layer {layer}" for layer in layers)], rows, title="Probes by layer")


def _drop_table(patches: dict[str, PatchStudy], layers: list[str]) -> "Part":
    from interp.page import Table

    rows = [["paper, 9 × 9", "units", *(number(value, ".1f") for value in DROPS)]]
    for name, study in patches.items():
        held = {layer.layer: layer for layer in study.layers}
        for patch, said in (("substructure", "units"), ("random", "random directions")):
            values = [number(held[int(k)].effects[patch].drop.value, ".1f") if int(k) in held else "−" for k in layers]
            rows.append([name, said, *values])
    head = ["model", "patch", *(f"layer {layer}" for layer in layers)]
    return Table(head, rows, title="Drop of the first move's logit under the patch")


def _cosine_table(study: ProbeStudy) -> "Part":
    from interp.page import Table

    rows = [["paper, 9 × 9 (one digit and cell, layer 6)", *_COSINES.values()]]
    for one in study.geometry:
        if one.source == "trained" and one.layer > 0:
            held = {row.group: row for row in one.rows}
            cells = []
            for groups in _GROUPS.values():
                found = [held[group] for group in groups if group in held]
                cells.append("; ".join(f"{row.group} {interval(row.cosine, '.2f')}" for row in found) or "−")
            rows.append([f"{one.model}, layer {one.layer}", *cells])
    return Table(["candidate probes", *_COSINES], rows, title="Cosines of candidate probes of one digit")
