"""Where the time of a run went."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.figures.style import BLUE, blank

if TYPE_CHECKING:
    import plotly.graph_objects


def stage_times(timings: Mapping[str, float]) -> "plotly.graph_objects.Figure":
    """One bar for each stage, in the order given from the top, in seconds."""
    names, seconds = list(timings), list(timings.values())
    figure = blank(xaxis_title="seconds", height=70 + 30 * len(names))
    figure.add_bar(
        orientation="h",
        y=names,
        x=seconds,
        marker_color=BLUE,
        width=0.62,
        text=[f"{value:.1f} s" for value in seconds],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
    )
    figure.update_xaxes(range=[0, 1.15 * max(seconds, default=1.0)])
    figure.update_yaxes(autorange="reversed")
    return figure
