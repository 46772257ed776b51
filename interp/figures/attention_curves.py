"""Curves of attention studies: RoPE sectors and offsets, surgery, the training twins."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, Rows, add_band, add_level, has, log_axis, looks, soft
from interp.figures.style import PALETTE, blank, whole

if TYPE_CHECKING:
    import plotly.graph_objects


def share_bars(rows: Rows, parts: Mapping[str, str], *, y_title: str) -> "plotly.graph_objects.Figure":
    """Stacked bars by layer: the mean over its heads of each part's share; `parts` are columns by name."""
    kept = {name: held for name, held in parts.items() if has(rows, held)}
    if not kept:
        raise InputError(f"none of the columns {', '.join(parts.values())} holds a number")
    layers = sorted({int(row["layer"]) for row in rows})
    figure = blank(
        xaxis_title="layer",
        yaxis_title=y_title,
        barmode="stack",
        showlegend=True,
        legend=LEGEND | {"traceorder": "normal"},
        height=340,
        bargap=0.1,
    )
    for number, (name, held) in enumerate(kept.items()):
        colour = PALETTE[number % len(PALETTE)]
        means = [_mean(rows, held, layer) for layer in layers]
        figure.add_bar(
            x=layers,
            y=means,
            name=name,
            marker={"color": soft(colour, 0.85), "line": {"color": "rgba(128,128,128,0.35)", "width": 0.7}},
            hovertemplate=f"layer %{{x}} · {name}: %{{y:.3f}}<extra></extra>",
        )
    figure.update_yaxes(range=[0, 1])
    figure.update_xaxes(**whole(layers[0], layers[-1]))
    return figure


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_title: str,
    y_title: str,
    log_x: bool = False,
    log_y: bool = False,
    level: tuple[float, str] | None = None,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> "plotly.graph_objects.Figure":
    """Points (x, y) of each series, joined; `bands` are (x, low, high) of series that have an interval."""
    shown = {
        name: [(float(x), float(y)) for x, y in points if np.isfinite(y) and (y > 0 or not log_y)]
        for name, points in series.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        raise InputError("there are no finite points to draw")
    figure = blank(
        xaxis_title=x_title,
        yaxis_title=y_title,
        height=330 + 18 * max(0, len(shown) - 4),
        showlegend=True,
        legend=LEGEND,
    )
    drawn = looks(shown)
    for name, points in shown.items():
        colour, dash, symbol = drawn[name]
        if band := (bands or {}).get(name):
            add_band(figure, band, colour=colour, name=name)
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 1.8, "dash": dash},
            marker={"size": 6 if len(points) < 60 else 3, "symbol": symbol, "color": colour},
            hovertemplate=f"{name}<br>{x_title} %{{x:.4g}}: %{{y:.4g}}<extra></extra>",
        )
    ends = [y for points in shown.values() for _, y in points]
    ends += [y for name in shown for _, *both in (bands or {}).get(name, ()) for y in both]
    if level is not None:
        ends.append(level[0])
        across = [x for points in shown.values() for x, _ in points]
        add_level(figure, (min(across), max(across)), *level)
    if log_y and min(ends) > 0:
        figure.update_yaxes(**log_axis(min(ends), max(ends)))
    if log_x:
        across = [x for points in shown.values() for x, _ in points if x > 0]
        figure.update_xaxes(**log_axis(min(across), max(across)))
    return figure


def _mean(rows: Rows, name: str, layer: int) -> float:
    values = [float(row[name]) for row in rows if int(row["layer"]) == layer and row.get(name) is not None]
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else 0.0
