"""Measures of heads against depth: the median of each layer's heads in a band from lower to upper quartile."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, Rows, add_band, add_level, by_layer, has, log_axis, looks
from interp.figures.style import blank, whole

if TYPE_CHECKING:
    import plotly.graph_objects


def depth_plot(
    rows: Rows,
    series: Mapping[str, str],
    *,
    y_title: str,
    log: bool = False,
    level: tuple[float, str] | None = None,
    bounds: tuple[float, float] | None = None,
) -> "plotly.graph_objects.Figure":
    """`series` are names of columns by what they are called; those without a number in `rows` are left out.

    `level` is a dashed horizontal line with its name, such as a bound; `bounds` fixes the y axis.
    """
    shown = {name: by_layer(rows, held) for name, held in series.items() if has(rows, held)}
    if not shown:
        raise InputError(f"none of the columns {', '.join(series.values())} holds a number")
    figure = blank(xaxis_title="layer", yaxis_title=y_title, showlegend=True, legend=LEGEND, height=330)
    drawn = looks(shown)
    for name, found in shown.items():
        colour, dash, symbol = drawn[name]
        layers = list(found)
        add_band(figure, [(layer, q.low, q.high) for layer, q in found.items()], colour=colour, name=name)
        figure.add_scatter(
            x=layers,
            y=[q.median for q in found.values()],
            customdata=[(q.low, q.high) for q in found.values()],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 1.8, "dash": dash},
            marker={"symbol": symbol, "size": 5.5, "color": colour},
            hovertemplate=f"layer %{{x}} · {name}<br>median %{{y:.4g}}, quartiles %{{customdata[0]:.4g}} to "
            "%{customdata[1]:.4g}<extra></extra>",
        )
    ends = [value for found in shown.values() for q in found.values() for value in q]
    layers = sorted({layer for found in shown.values() for layer in found})
    figure.update_xaxes(**whole(layers[0], layers[-1]))
    if level is not None:
        ends.append(level[0])
        add_level(figure, (layers[0], layers[-1]), *level)
    if bounds is not None:
        figure.update_yaxes(range=list(bounds))
    elif log and min(ends) > 0:
        figure.update_yaxes(**log_axis(min(ends), max(ends)))
    return figure
