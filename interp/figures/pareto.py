"""Trade-offs: points that are better towards one corner, and their Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.figures.style import GREY, PALETTE, blank, decades

if TYPE_CHECKING:
    import plotly.graph_objects

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_DASHES = ("solid", "dot", "dash", "longdash", "dashdot")


def pareto_front(x: Sequence[float], y: Sequence[float], *, lower: bool) -> list[int]:
    """Which points no other dominates, by rising x. Less x is better; so is more y, or less of it with `lower`."""
    gain = [-value if lower else value for value in y]
    found: list[int] = []
    for index in sorted(range(len(x)), key=lambda i: (x[i], -gain[i])):
        if not found or gain[index] > gain[found[-1]]:
            found.append(index)
    return found


def pareto_plot(
    points: Sequence[Mapping[str, Any]], *, x_title: str, y_title: str, lower: bool = False
) -> "plotly.graph_objects.Figure":
    """Points on a logarithmic x axis, one trace per series; rings and a dashed line mark the front of all of them.

    A point has `name`, `x` (over 0), `y`, its `series`, and what colours the series (`colour`, also as the marker's
    shape) and what dashes it (`dash`, also as open and filled markers). A thin line joins the front of each series.
    """
    if not points or not all(math.isfinite(p["x"]) and math.isfinite(p["y"]) and p["x"] > 0 for p in points):
        raise InputError("a Pareto plot needs points, with x positive and x and y finite")
    colours = list(dict.fromkeys(p["colour"] for p in points))
    dashes = sorted({p["dash"] for p in points})
    kinds = sorted({(colours.index(p["colour"]), dashes.index(p["dash"]), p["series"]) for p in points})
    height = 360 + 11 * len(kinds)  # the legend takes a line for two or three series
    figure = blank(xaxis_title=x_title, yaxis_title=y_title, height=height, showlegend=True)
    logs = [math.log10(p["x"]) for p in points]
    front = pareto_front([p["x"] for p in points], [p["y"] for p in points], lower=lower)
    on_front = {"x": [logs[i] for i in front], "y": [points[i]["y"] for i in front]}
    line = {"color": GREY, "width": 1.2, "dash": "dash", "shape": "hv"}
    rings = {"size": 17, "color": "rgba(0,0,0,0)", "line": {"color": GREY, "width": 1.6}}
    figure.add_scatter(**on_front, mode="lines+markers", line=line, marker=rings, name="Pareto front", hoverinfo="skip")
    for colour, dash, series in kinds:
        own = [
            i
            for i, p in enumerate(points)
            if (p["colour"], p["dash"], p["series"]) == (colours[colour], dashes[dash], series)
        ]
        look = _look(colour, dash)
        best = [own[i] for i in pareto_front([logs[i] for i in own], [points[i]["y"] for i in own], lower=lower)]
        common = {"name": series, "legendgroup": series}
        figure.add_scatter(
            x=[logs[i] for i in best],
            y=[points[i]["y"] for i in best],
            mode="lines",
            line=look["line"],
            showlegend=False,
            hoverinfo="skip",
            **common,
        )
        figure.add_scatter(
            x=[logs[i] for i in own],
            y=[points[i]["y"] for i in own],
            mode="markers",
            marker=look["marker"],
            customdata=[(points[i]["name"], points[i]["x"]) for i in own],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4g} · %{y:.4g}<extra></extra>",
            **common,
        )
    margin = 0.06 * max(0.3, max(logs) - min(logs))
    low, high = min(logs) - margin, max(logs) + margin
    figure.update_xaxes(range=[low, high], **_ticks(low, high))
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    )
    return figure


def _look(colour: int, dash: int) -> dict[str, Any]:
    """Colour and shape say the one, dash and filling the other: neither is told by colour alone."""
    tone = PALETTE[colour % len(PALETTE)]
    symbol = _SYMBOLS[colour % len(_SYMBOLS)] + ("-open" if dash % 2 else "")
    return {
        "line": {"color": tone, "width": 1.2, "dash": _DASHES[dash % len(_DASHES)]},
        "marker": {"color": tone, "symbol": symbol, "size": 9, "line": {"color": tone, "width": 1.8}},
    }


def _ticks(low: float, high: float) -> dict[str, Any]:
    """As `decades`, but powers of two where those would be a few, and round numbers where these would be one."""
    ticks = decades(low, high, even=False)
    if len(ticks["tickvals"]) > 3:
        return ticks
    places = {math.log10(2.0**e): f"{2.0**e:g}" for e in range(-10, 40)}
    kept = {place: name for place, name in places.items() if low <= place <= high}
    return ticks | {"tickvals": list(kept), "ticktext": list(kept.values())} if len(kept) > 1 else decades(low, high)
