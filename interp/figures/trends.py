"""Measurements over time, one panel each, with the straight lines fitted to them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.figures.style import BLUE, VERMILLION, dress, whole

if TYPE_CHECKING:
    import plotly.graph_objects

Ends = tuple[tuple[float, float], tuple[float, float]]


def trend_panels(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    x_title: str,
    lines: Mapping[str, Ends] | None = None,
    columns: int = 2,
) -> "plotly.graph_objects.Figure":
    """A panel of points for each of `series`; `lines` has the two ends (x, y) of the line drawn into a panel."""
    from plotly.subplots import make_subplots

    if not x or any(len(values) != len(x) for values in series.values()):
        raise InputError(f"trend_panels: expected one value or more and as many in every series, {len(x)} of x")
    rows = math.ceil(len(series) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=list(series), horizontal_spacing=0.1, vertical_spacing=0.3 / rows
    )
    for panel, (title, values) in enumerate(series.items()):
        place: dict[str, Any] = {"row": panel // columns + 1, "col": panel % columns + 1}
        figure.add_scatter(
            x=list(x),
            y=list(values),
            mode="markers",
            marker={"size": 4, "color": BLUE},
            hovertemplate=f"{x_title} %{{x:.1f}}: %{{y:,.1f}}<extra>{title}</extra>",
            **place,
        )
        if lines and title in lines:
            (x0, y0), (x1, y1) = lines[title]
            figure.add_scatter(
                x=[x0, x1], y=[y0, y1], mode="lines", line={"color": VERMILLION, "width": 2}, hoverinfo="skip", **place
            )
        low, high = min(values), max(values)
        room = max((high - low) / 2, abs(high) / 20, 1.0)  # a flat series is not blown up to its noise
        bottom, top = max(0.0, low - room), high + room
        counts = whole(bottom, top) if all(float(value).is_integer() for value in values) else {}
        figure.update_yaxes(range=[bottom, top], tickformat=",", **counts, **place)
        figure.update_xaxes(title_text=x_title if panel + columns >= len(series) else None, **place)
    dress(figure, height=190 * rows + 60)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin_t=34)
    return figure
