"""Norms of activation rows, with the massive ones apart."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InputError
from interp.figures.style import BLUE, GREY, VERMILLION, blank, decades

if TYPE_CHECKING:
    import plotly.graph_objects


def norm_distribution(norms: Any, *, threshold: float, bins: int = 70) -> "plotly.graph_objects.Figure":
    """Histogram of log10 row norms on a logarithmic count axis; rows above `threshold` (same unit) are massive.

    The count axis is logarithmic because massive rows are a few in a hundred thousand.
    """
    norm = np.asarray(norms, dtype=np.float64)
    norm = norm[norm > 0]
    if norm.size == 0 or not np.isfinite(norm).all() or not threshold > 0:
        raise InputError("row norms and the threshold have to be finite and positive, with at least one row")
    logs, split = np.log10(norm), np.log10(threshold)
    edges = np.histogram_bin_edges(logs, bins=bins, range=(logs.min() - 0.02, max(logs.max(), split) + 0.02))
    figure = blank(
        xaxis_title="norm of a row (log scale)", yaxis_title="rows (log scale)", barmode="overlay", showlegend=True
    )
    for name, part, colour in (
        ("ordinary rows", logs[logs <= split], BLUE),
        ("massive rows", logs[logs > split], VERMILLION),
    ):
        counts, _ = np.histogram(part, bins=edges)
        shown = counts > 0
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2)[shown],
            y=counts[shown],
            width=(np.diff(edges) * 0.94)[shown],
            name=f"{name} ({part.size:,})",
            marker_color=colour,
            customdata=np.stack([10 ** edges[:-1], 10 ** edges[1:]], axis=1)[shown],
            hovertemplate="norm %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:,} rows<extra></extra>",
        )
    figure.add_vline(x=split, line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_xaxes(**decades(edges[0], edges[-1]))
    # From 0.5, so that a single row still has a bar.
    figure.update_yaxes(type="log", range=[np.log10(0.5), np.log10(max(norm.size, 10))], dtick=1, tickformat=",")
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    )
    return figure
