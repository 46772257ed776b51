"""Side effects of steering side by side, one small figure for each, and what the fit says of every layer."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, looks
from interp.figures.style import BLUE, GREY, blank, whole
from interp.steering.evaluation import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects


def effect_bars(
    values: Mapping[str, Estimate], *, x_title: str, level: tuple[float, str] | None = None, form: str = ".3g"
) -> "plotly.graph_objects.Figure":
    """A bar for each point with its interval; `level` is a dotted line, such as the unsteered model's value."""
    if not values:
        raise InputError("there are no side effects to draw")
    names = list(values)[::-1]
    shown = [values[name] for name in names]
    figure = blank(xaxis_title=x_title, height=110 + 26 * len(names), bargap=0.35, showlegend=level is not None)
    figure.add_bar(
        x=[one.value for one in shown],
        y=names,
        orientation="h",
        marker={"color": BLUE, "opacity": 0.5},  # pale enough that the intervals show on it
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [one.high - one.value for one in shown],
            "arrayminus": [one.value - one.low for one in shown],
            "color": GREY,
            "thickness": 1.2,
            "width": 3,
        },
        hovertemplate=f"%{{y}}: %{{x:{form}}}<extra></extra>",
        showlegend=False,
    )
    if level is not None:
        figure.add_scatter(
            x=[level[0], level[0]],
            y=[names[0], names[-1]],
            mode="lines",
            name=level[1],
            line={"color": GREY, "dash": "dot", "width": 1.4},
            hoverinfo="skip",
        )
        figure.update_layout(legend=LEGEND)
    figure.update_xaxes(zeroline=True, showgrid=True)
    figure.update_yaxes(showgrid=False)
    return figure


def layer_plot(
    rows: Sequence[Mapping[str, Any]], name: str, *, y_title: str, level: tuple[float, str] | None = None
) -> "plotly.graph_objects.Figure":
    """One number of the fit against the layer; a series for each kind of site. A row has `layer`, `point` and numbers.

    Rows without the number, or with none that is finite, are left out."""
    held = [row for row in rows if row.get(name) is not None and math.isfinite(float(row[name]))]
    if not held:
        raise InputError(f"no site has a finite {name!r}")
    points = list(dict.fromkeys(str(row["point"]) for row in held))
    layers = [int(row["layer"]) for row in held]
    figure = blank(xaxis_title="layer", yaxis_title=y_title, height=320, showlegend=True, legend=LEGEND)
    figure.update_xaxes(**whole(min(layers), max(layers)))
    for point, (colour, dash, symbol) in looks(points).items():
        own = sorted((int(row["layer"]), float(row[name])) for row in held if str(row["point"]) == point)
        figure.add_scatter(
            x=[layer for layer, _ in own],
            y=[value for _, value in own],
            mode="lines+markers",
            name=point,
            line={"color": colour, "width": 1.6, "dash": dash},
            marker={"size": 7, "symbol": symbol, "color": colour},
            hovertemplate=f"{point}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    if level is not None:
        figure.add_scatter(
            x=[min(layers), max(layers)],
            y=[level[0], level[0]],
            mode="lines",
            name=level[1],
            line={"color": GREY, "dash": "dot", "width": 1.2},
            hoverinfo="skip",
        )
    return figure
