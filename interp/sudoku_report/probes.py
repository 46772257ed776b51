"""The page's sections on probes: accuracy by layer beside controls and ceilings, the crossing, the verdict."""

from typing import TYPE_CHECKING

from interp.page.numbers import number
from interp.sudoku.probe_records import ORACLES, ProbeStudy
from interp.sudoku_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section

TARGETS = {
    "cell state": ("accuracy", "Cell states", "Which digit stands in a filled cell."),
    "substructure": ("exact", "Units, all digits right", "Which digits a row, column or box holds."),
    "candidates": ("exact", "Candidates, all digits right", "Which digits an empty cell may take."),
    "filled": ("accuracy", "Filled or empty", "Whether a cell is filled."),
}
_SOURCES = {
    "trained": "trained",
    "random": "random weights",
    "uniform": "uniform attention",
    "shuffled": "shuffled labels",
}
AGAINST = {"random": "random weights", "uniform": "uniform attention"}
_CODES = {
    "substructure": "unit bits",
    "cell": "cell one-hot",
    "substructure projected": "unit bits, projected",
    "cell projected": "cell one-hot, projected",
}
_WHY = """Only the cell-state curve can tell the hypotheses apart. A model that holds which digits each row, column and
box has (a board of units) yields perfect probes for units and candidates; but so does one that holds every cell by
itself, for a linear probe can add up the cells of a unit. Cells, however, cannot be read off units beyond a ceiling,
because different boards have the same units. So high unit and candidate accuracy shows that the information is there,
not in which form; a cell-state accuracy at the ceiling of the unit code speaks for units, one well above it against
them. The ceilings are probes of codes whose form is known, fitted and scored on the same puzzles."""
_NOISE = """Low cell-state accuracy alone proves nothing, for a damaged code lowers it in either case: a model with
random weights can be below the ceiling without any board of units. The verdict below therefore compares each layer with
codes of either form, damaged until they give the same AUC for units."""


def probe_section(study: ProbeStudy) -> "Section":
    """A figure for each target, and the table of ceilings."""
    from interp.page import Figure, Note, Row, Section

    kind = _kind(study)
    figures: list[Part] = []
    for target, (metric, title, about) in TARGETS.items():
        if target in study.config.targets:
            caption = f"{about} Bands: 95 %, bootstrap over puzzles. Level 0 is what enters the first block."
            figures.append(Figure(_by_layer(study, target, metric, kind), title, caption))
    lead = (
        f"Linear probes ({kind}) of the residual stream at END_CLUES, fitted on {study.fitted_on:,} unseen puzzles and "
        f"scored on {study.scored_on:,} others; {number(study.mean_filled, '.1f')} of {study.n**2} cells are filled on "
        "average. Controls: models of the same shape that were never trained, as they are and with uniform attention; "
        "labels of other puzzles; codes of known form (ceilings, thin lines)."
    )
    notes: list[Part] = [Note(one) for one in (_left_out(study), _WHY, _NOISE) if one]
    return Section("What can be read", [*notes, Row(figures, least=520), _ceilings(study, kind)], lead=lead)


def _kind(study: ProbeStudy) -> str:
    """The probes that are drawn: logistic ones, or what the study has in their place."""
    return "logistic" if "logistic" in study.config.probes else study.config.probes[0]


def _left_out(study: ProbeStudy) -> str:
    """What the page lacks because the study was made without some targets or probes; nothing if it has all."""
    targets, logistic = study.config.targets, "logistic" in study.config.probes
    absent = [f"no probes of {target}" for target in TARGETS if target not in targets]
    absent += [] if logistic else ["no logistic probes"]
    needs = {
        "the crossing": ("cell state", "substructure", "candidates"),
        "the verdict between cells and units": ("cell state", "substructure"),
        "the geometry of candidates": ("candidates",),
    }
    lost = [part for part, wanted in needs.items() if not logistic or not set(wanted) <= set(targets)]
    if not absent:
        return ""
    without = f"; without them there is no part on {', '.join(lost)}" if lost else ""
    return (
        f"This study has {', '.join(absent)}{without}. "
        "`midlens sudoku probe` makes all of them unless --targets or --probes leaves some out."
    )


def _by_layer(study: ProbeStudy, target: str, metric: str, kind: str):
    from interp.figures.sudoku_curves import Line, interval_curves, variants

    models = study.models
    looks = dict(zip(_SOURCES, variants(len(_SOURCES), len(models)), strict=True))
    lines = []
    for source, said in _SOURCES.items():
        for i, model in enumerate(models):
            rows = [r for r in study.rows if (r.model, r.source, r.target) == (model, source, target)]
            points = [(float(r.layer), *getattr(r, metric)) for r in rows if r.probe == kind]
            lines.append(Line(f"{said}, {model}", sorted(points), looks[source][i]))
    levels = {
        f"code: {_CODES[code]}": getattr(study.row("oracle", code, 0, target, kind), metric).value
        for code in ("substructure", "cell", "cell projected")
    }
    layers = sorted({row.layer for row in study.rows if row.model != "oracle"})
    y_title = "accuracy" if metric == "accuracy" else "exact match"
    return interval_curves(
        lines, x_title="layer", y_title=y_title, levels=levels, bounds=(0, 1.02), ticks=layers, height=360
    )


def _ceilings(study: ProbeStudy, kind: str) -> "Part":
    from interp.page import Table

    targets = [target for target in TARGETS if target in study.config.targets]
    rows = [
        [_CODES[code], *(interval(getattr(study.row("oracle", code, 0, t, kind), TARGETS[t][0])) for t in targets)]
        for code in ORACLES
    ]
    head = ["code", *(TARGETS[target][1].lower() for target in targets)]
    return Table(head, rows, title="Ceilings: probes of codes of known form (projected: in the models' width)")


def crossing_section(study: ProbeStudy) -> "Section | None":
    """What training changed, by layer, against each kind of untrained model."""
    from interp.page import Note, Section, Table

    if not study.crossings:
        return None
    rows = [
        [
            AGAINST[row.reference],
            row.model,
            str(row.layer),
            interval(row.cell_state, "+.3f"),
            interval(row.from_ceiling, "+.3f"),
            interval(row.substructure, "+.3f"),
            interval(row.candidates, "+.3f"),
        ]
        for met in study.crossings
        for row in met.rows
    ]
    head = [
        "untrained model",
        "model",
        "layer",
        "cell states",
        "cell states − ceiling of units",
        "units exactly",
        "candidates exactly",
    ]
    lead = (
        "Trained less untrained model, on the same puzzles. A crossing is a layer in which training lowers what is "
        "read of cells and raises what is read of units and candidates, all intervals clear of 0, in every model; it "
        "is claimed for two models or more. It depends on the untrained model: with random queries and keys the clues "
        "reach END_CLUES with uneven weights, with queries of 0 every head takes their mean, which keeps the cells."
    )
    notes: list[Part] = [Note(met.statement) for met in study.crossings]
    return Section("The crossing", [*notes, Table(head, rows, title="Differences [95 %]")], lead=lead)


def verdict_section(study: ProbeStudy) -> "Section | None":
    """Cells or units, layer by layer, codes of known form first."""
    from interp.page import Section, Table

    if not study.verdicts:
        return None
    rows = [
        [
            _CODES.get(v.source, v.source) if v.model == "oracle" else v.model,
            "known code" if v.model == "oracle" else _SOURCES[v.source],
            str(v.layer) if v.model != "oracle" else "−",
            interval(v.cell_state),
            number(v.substructure_auc),
            number(v.if_substructure),
            number(v.if_cell_wise),
            interval(v.position, ".2f"),
            v.verdict,
        ]
        for v in study.verdicts
    ]
    head = [
        "activations",
        "source",
        "layer",
        "cell states",
        "AUC of units",
        "a damaged unit code",
        "a damaged cell code",
        "position",
        "verdict",
    ]
    lead = (
        "Codes of either form are damaged, by noise or by the loss of a share of their bits, until their probes for "
        "units reach the AUC of the layer; the position is where the layer's cell-state accuracy lies between the "
        "two, 0 for units and 1 for cells. A verdict needs the whole interval below 1/3 or above 2/3. Known codes "
        "come out as what they are. The method is our own, and about what is linear in a layer: a nonlinear function "
        "of unit bits can tell more of the cells than the bits do, so cell-wise in a late layer does not say that "
        "units were not used."
    )
    return Section("Cells or units", [Table(head, rows)], lead=lead)
