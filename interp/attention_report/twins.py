"""The page's section on trained twins: perplexity, cascade of ranks, linearised layers, what narrower heads cost."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from interp.page import Part, Section

Twin = dict[str, Any]
Points = list[tuple[float, float]]
Bands = list[tuple[float, float, float]]


def twins_section(record: dict[str, Any]) -> "Section":
    """From the file of `midlens attention cascade`."""
    from interp.page import Row, Section

    twins: list[Twin] = record["twins"]
    figures = [
        _cascade(twins, "operating", "Cascade, operating", "Of q kᵀ on full held-out windows, unmasked."),
        _cascade(twins, "kernel", "Cascade, weights", "Of W_Q W_Kᵀ."),
        _over_training(twins),
        *(_linearised(twins, mode, title) for mode, title in _MODES.items()),
        _sizes(twins),
    ]
    shown: list[Part] = [figure for figure in figures if figure is not None]
    lead = (
        f"Byte-level models of one shape, {twins[0]['bytes']:,} held-out bytes of {twins[0]['documents']:,} documents; "
        "perplexity per byte, intervals of 95 % by bootstrap over documents. S-D attention is skew minus diagonal, "
        "without softmax: unmasked, its eigenvalues have no positive real part. Under the causal mask they are just "
        "the diagonal, so that the guarantee is then trivial."
    )
    return Section("Trained twins", [_table(twins), Row(shown)], lead=lead)


_MODES = {
    "mean": "Operators frozen to their mean in the first layers",
    "zero": "No attention in the first layers",
    "taylor": "Softmax to first order in the first layers",
}

_ON_MODES = {
    "zero": "The control: what can be left out has not been linearised.",
    "taylor": "Token-space S-D attention has no softmax: nothing is changed there.",
}


def _table(twins: Sequence[Twin]) -> "Part":
    from interp.page import Table

    head = ["twin", "seed", "parameters", "in attention", "perplexity", "from", "to", "rank, first layer", "last layer"]
    lines = []
    for twin in sorted(twins, key=lambda one: (one["label"], one["seed"])):
        ranks = [row["operating_erank2"] for row in twin["ranks"]]
        perplexities = [f"{twin[name]:.3f}" for name in ("perplexity", "perplexity_low", "perplexity_high")]
        sizes = [f"{twin[name]:,}" for name in ("parameters", "attention_parameters")]
        lines.append([twin["label"], str(twin["seed"]), *sizes, *perplexities, f"{ranks[0]:.1f}", f"{ranks[-1]:.1f}"])
    return Table(head, lines, title="Twins; ranks are exp H(σ²) of operating routing")


def _cascade(twins: Sequence[Twin], what: str, title: str, caption: str) -> "Part | None":
    def points(twin: Twin) -> Points:
        return [(row["layer"], row[f"{what}_erank2"]) for row in twin["ranks"]]

    names = {"x_title": "layer", "y_title": "rank of routing, exp H(σ²)"}
    return _figure(twins, points, title, f"{caption} {_SEEDS}", **names)


_SEEDS = "Mean over seeds, and their range."


def _over_training(twins: Sequence[Twin]) -> "Part | None":
    """First and last layer while training, of the first kind of twins that logged it."""
    from interp.figures.attention_curves import curves
    from interp.page import Figure

    logged = [twin for twin in twins if twin["log"]]
    if not logged:
        return None
    series: dict[str, Points] = {}
    for twin in {one["label"]: one for one in reversed(logged)}.values():
        last = len(twin["ranks"]) - 1
        for layer, where in ((0, "first"), (last, "last")):
            series[f"{twin['label']}: {where} layer"] = [
                (line["step"], line[f"operating_erank2_{layer}"]) for line in twin["log"]
            ]
    plot = curves(series, x_title="step (log scale)", y_title="rank of routing, exp H(σ²)", log_x=True)
    return Figure(plot, "Cascade over training", "Operating, first and last layer, of one seed each.")


def _linearised(twins: Sequence[Twin], mode: str, title: str) -> "Part | None":
    def points(twin: Twin) -> Points:
        found = [row for row in twin["linearised"] if row["mode"] == mode]
        return [(row["layers"], 100 * (row["ratio"] - 1)) for row in found]

    cost = "Rise of perplexity without retraining."
    said = _ON_MODES.get(mode, "")
    names = {"x_title": "first layers linearised", "y_title": "rise of perplexity, %"}
    return _figure(twins, points, title, " ".join(filter(None, (cost, said, _SEEDS))), **names)


def _sizes(twins: Sequence[Twin]) -> "Part | None":
    """Where twins differ in the size of their attention."""
    from interp.figures.pareto import pareto_plot
    from interp.page import Figure

    if len({twin["attention_parameters"] for twin in twins}) < 2:
        return None
    points = [
        {
            "name": f"{twin['label']}, seed {twin['seed']}",
            "x": twin["attention_parameters"],
            "y": twin["perplexity"],
            "series": twin["attention"],
            "colour": twin["attention"],
            "dash": 0,
        }
        for twin in twins
    ]
    names = {"x_title": "parameters in attention (log scale)", "y_title": "perplexity per byte (lower is better)"}
    caption = "Rings and dashes: the Pareto front."
    return Figure(pareto_plot(points, lower=True, **names), "Attention's size against perplexity", caption)


def _figure(
    twins: Sequence[Twin], points: Callable[[Twin], Points], title: str, caption: str, *, x_title: str, y_title: str
) -> "Part | None":
    from interp.figures.attention_curves import curves
    from interp.page import Figure

    series: dict[str, Points] = {}
    bands: dict[str, Bands] = {}
    for label in sorted({twin["label"] for twin in twins}):
        found = [at for twin in twins if twin["label"] == label if (at := points(twin))]
        if not found:
            continue
        values = np.array([[y for _, y in one] for one in found])
        across = [x for x, _ in found[0]]
        series[label] = list(zip(across, values.mean(0).tolist(), strict=True))
        if len(found) > 1:
            bands[label] = list(zip(across, values.min(0).tolist(), values.max(0).tolist(), strict=True))
    if not any(math.isfinite(y) for one in series.values() for _, y in one):
        return None
    return Figure(curves(series, bands=bands, x_title=x_title, y_title=y_title), title, caption)
