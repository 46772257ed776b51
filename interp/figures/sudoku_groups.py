"""Values of groups with their intervals beside what hypotheses predict, and quantile boxes of a neuron."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, looks
from interp.figures.dots import Dots
from interp.figures.style import BLUE, GREY, blank

if TYPE_CHECKING:
    import plotly.graph_objects


def group_dots(
    groups: Sequence[str],
    series: Sequence[Dots],
    *,
    y_title: str,
    predictions: Mapping[str, Sequence[float]] | None = None,
    zero: bool = True,
) -> "plotly.graph_objects.Figure":
    """Dots with interval bars, series side by side in each group; predictions as short horizontal strokes."""
    if not groups or any(len(one.values) != len(groups) for one in series):
        raise InputError(
            f"{len(groups)} groups, series of {[len(one.values) for one in series]}; expected a value each"
        )
    figure = blank(yaxis_title=y_title, showlegend=True, legend=LEGEND, height=350)
    width = 0.7 / max(1, len(series))
    for number, (name, values) in enumerate((predictions or {}).items()):
        dash = ("solid", "dot")[number % 2]
        xs = [x for i, v in enumerate(values) if math.isfinite(v) for x in (i - 0.42, i + 0.42, None)]
        ys = [y for v in values if math.isfinite(v) for y in (v, v, None)]
        figure.add_scatter(
            x=xs, y=ys, mode="lines", name=name, line={"color": GREY, "width": 2.4, "dash": dash}, hoverinfo="name+y"
        )
    free = looks(one.name for one in series)
    for number, one in enumerate(series):
        look = one.look or free[one.name]
        shift = (number - (len(series) - 1) / 2) * width
        value, low, high = (np.array(column, np.float64) for column in zip(*one.values, strict=True))
        figure.add_scatter(
            x=[i + shift for i in range(len(groups))],
            y=value.tolist(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(high - value).tolist(),
                "arrayminus": np.nan_to_num(value - low).tolist(),
                "thickness": 1.6,
                "width": 3,
                "color": look.colour,
            },
            mode="markers",
            name=one.name,
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            customdata=list(zip(groups, low.tolist(), high.tolist(), strict=True)),
            hovertemplate=f"{one.name}, %{{customdata[0]}}: %{{y:.3f}} [%{{customdata[1]:.3f}}, %{{customdata[2]:.3f}}]"
            "<extra></extra>",
        )
    figure.update_xaxes(tickmode="array", tickvals=list(range(len(groups))), ticktext=list(groups))
    figure.update_xaxes(range=[-0.6, len(groups) - 0.4])
    if zero:
        figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dash"})
    return figure


def count_boxes(
    names: Sequence[str], quantiles: np.ndarray, *, x_title: str, y_title: str
) -> "plotly.graph_objects.Figure":
    """A box for each name: quartiles, whiskers from the 5th to the 95th percentile; rows of NaN are left out."""
    quantiles = np.asarray(quantiles, np.float64)
    if quantiles.shape != (len(names), 5):
        raise InputError(f"quantiles of shape {quantiles.shape}; expected five for each of {len(names)} names")
    kept = [i for i in range(len(names)) if np.isfinite(quantiles[i]).all()]
    if not kept:
        raise InputError("there is no box to draw: every row of quantiles is empty")
    low, first, middle, third, high = quantiles[kept].T.tolist()
    figure = blank(xaxis_title=x_title, yaxis_title=y_title, height=300)
    figure.add_box(
        x=[names[i] for i in kept],
        lowerfence=low,
        q1=first,
        median=middle,
        q3=third,
        upperfence=high,
        marker={"color": BLUE},
        line={"width": 1.6},
        width=0.5,
        hoverinfo="x+y",
    )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(names))
    return figure
