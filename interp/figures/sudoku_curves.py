"""Curves of Sudoku studies: estimates with their intervals against layers, positions or steps, beside levels."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, LOOKS, Look, add_band, log_axis, looks
from interp.figures.style import GREY, blank

if TYPE_CHECKING:
    import plotly.graph_objects

Point = tuple[float, float, float, float]
"""x, value, low, high; low and high NaN where there is no interval."""
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


class Line(NamedTuple):
    """One series; without a `look` it gets the next free one."""

    name: str
    points: Sequence[Point]
    look: Look | None = None


def variants(colours: int, kinds: int) -> list[list[Look]]:
    """Looks for `colours` sources of `kinds` models each: colour tells the source, dash and marker the model."""
    return [
        [Look(LOOKS[c % 5].colour, LOOKS[k % 5].dash, LOOKS[k % 5].symbol) for k in range(kinds)]
        for c in range(colours)
    ]


def interval_curves(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_title: str,
    levels: Mapping[str, float] | None = None,
    bounds: tuple[float, float] | None = None,
    ticks: Sequence[float] | None = None,
    reverse: bool = False,
    log_y: bool = False,
    height: int = 340,
) -> "plotly.graph_objects.Figure":
    """Values joined, intervals as bands; `levels` are horizontal lines by name. `reverse` lets x run to the left."""
    shown = [line._replace(points=[p for p in line.points if math.isfinite(p[1])]) for line in lines]
    shown = [line for line in shown if line.points]
    if not shown:
        raise InputError("there are no finite points to draw")
    entries = len(shown) + len(levels or {})
    figure = blank(
        xaxis_title=x_title,
        yaxis_title=y_title,
        showlegend=True,
        legend=LEGEND,
        height=height + 20 * max(0, math.ceil(entries / 3) - 1),
    )
    free = looks(line.name for line in shown)
    for line in shown:
        look = line.look or free[line.name]
        band = [(x, low, high) for x, _, low, high in line.points if math.isfinite(low) and math.isfinite(high)]
        if len(band) > 1:
            add_band(figure, band, colour=look.colour, name=line.name)
        figure.add_scatter(
            x=[p[0] for p in line.points],
            y=[p[1] for p in line.points],
            customdata=[(p[2], p[3]) for p in line.points],
            mode="lines+markers",
            name=line.name,
            legendgroup=line.name,
            line={"color": look.colour, "width": 1.8, "dash": look.dash},
            marker={"color": look.colour, "symbol": look.symbol, "size": 6.5 if len(line.points) < 60 else 3},
            hovertemplate=f"{line.name}<br>{x_title} %{{x}}: %{{y:.4g}} [%{{customdata[0]:.4g}}, "
            "%{customdata[1]:.4g}]<extra></extra>",
        )
    across = [p[0] for line in shown for p in line.points]
    for (name, value), dash in zip((levels or {}).items(), _DASHES * 3, strict=False):
        figure.add_scatter(
            x=[min(across), max(across)],
            y=[value, value],
            mode="lines",
            name=f"{name} {value:.3f}",
            line={"color": GREY, "width": 1.5, "dash": dash},
            hoverinfo="name",
        )
    if bounds is not None:
        figure.update_yaxes(range=list(bounds))
    elif log_y:
        heights = [p[1] for line in shown for p in line.points if p[1] > 0]
        figure.update_yaxes(**log_axis(min(heights), max(heights)))
    if ticks is not None:
        figure.update_xaxes(tickmode="array", tickvals=list(ticks))
    if reverse:
        figure.update_xaxes(autorange="reversed")
    return figure


def margin_histogram(
    edges: np.ndarray, counts: np.ndarray, *, x_title: str, y_title: str
) -> "plotly.graph_objects.Figure":
    """Bars over the bins, and a line at 0."""
    if len(edges) != len(counts) + 1:
        raise InputError(f"{len(edges)} edges for {len(counts)} bins; expected one more than bins")
    figure = blank(xaxis_title=x_title, yaxis_title=y_title, height=320, bargap=0.04)
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    figure.add_bar(
        x=middles.tolist(),
        y=[int(count) for count in counts],
        width=widths.tolist(),
        marker={"color": LOOKS[0].colour},
        hovertemplate="%{x:.2f}: %{y:,}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": GREY, "width": 1.2, "dash": "dash"})
    return figure
