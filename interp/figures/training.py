"""Training curves from a trainer's JSONL metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.figures.style import PALETTE, dress

if TYPE_CHECKING:
    import plotly.graph_objects

# Panel title, and the names under which a log may hold it, best first.
CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss",)),
    ("explained variance", ("explained_variance", "ev")),
    ("L0 (active features per token)", ("l0",)),
    ("dead features, share", ("dead_fraction", "dead")),
    ("auxiliary loss", ("aux_loss", "aux")),
    ("learning rate", ("lr", "learning_rate")),
)
MOST_POINTS = 1000
_MAY_BE_CUT = {"loss", "explained_variance", "ev"}
"""Axes that need not reach down to 0."""


def training_curves(
    log: Sequence[Mapping[str, Any]], *, names: Sequence[str] | None = None, columns: int = 2
) -> "plotly.graph_objects.Figure":
    """One panel for each curve that the log holds, over training tokens where the log counts them, else over steps.

    `names` picks panels by their titles (see `curve_names`); by default all are drawn. A curve is thinned evenly to at
    most `MOST_POINTS` points, the last always kept.
    """
    from plotly.subplots import make_subplots

    found = _found(log, names)
    x_name = "tokens" if all("tokens" in entry for entry in log) else "step"
    rows = math.ceil(len(found) / columns)
    figure = make_subplots(
        rows=rows, cols=min(columns, len(found)), horizontal_spacing=0.17, vertical_spacing=0.28 / rows
    )
    for panel, (title, key) in enumerate(found):
        points = [
            (float(entry[x_name]), float(entry[key])) for entry in log if entry.get(key) is not None and x_name in entry
        ]
        points = _thin(points)
        row, col = panel // columns + 1, panel % columns + 1
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines" if len(points) > 1 else "markers",
            name=title,
            line={"color": PALETTE[0], "width": 1.6},
            hovertemplate=f"{x_name} %{{x:,}}<br>{title} %{{y:.4g}}<extra></extra>",
            row=row,
            col=col,
        )
        figure.update_xaxes(title_text="training tokens" if x_name == "tokens" else "step", row=row, col=col)
        figure.update_yaxes(title_text=title.replace(" (", "<br>("), exponentformat="e", row=row, col=col)
        if key not in _MAY_BE_CUT:
            figure.update_yaxes(rangemode="tozero", row=row, col=col)
    return dress(figure, height=30 + 200 * rows)


def curve_names(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the curves that a log holds."""
    return [title for title, _ in _found(log, None)]


def _found(log: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[tuple[str, str]]:
    if not log:
        raise InputError("the training log is empty; expected one record per logged step")
    if not all("step" in entry or "tokens" in entry for entry in log):
        raise InputError(f"a record of the training log needs 'step' or 'tokens'; the first has {sorted(log[0])}")
    held = {key for entry in log for key, value in entry.items() if value is not None}
    chosen = [curve for curve in CURVES if names is None or curve[0] in names]
    found = [(title, next(key for key in keys if key in held)) for title, keys in chosen if held & set(keys)]
    if not found:
        known = ", ".join(key for _, keys in chosen for key in keys)
        raise InputError(f"the training log holds none of the curves asked for ({known}); it holds {sorted(held)}")
    return found


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else points[:-1:stride][: MOST_POINTS - 1] + points[-1:]
