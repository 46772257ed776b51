"""How often features fire: the histogram of log10 densities."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InputError
from interp.figures.style import BLUE, GREY, blank, decades, whole

if TYPE_CHECKING:
    import plotly.graph_objects


def density_histogram(densities: Any, *, n_tokens: int, bins: int = 60) -> "plotly.graph_objects.Figure":
    """Histogram of log10(density) of the features that fired; density = tokens a feature fires on / `n_tokens`.

    A feature that never fired has no logarithm and is not drawn. The dashed line is 1 / n_tokens, one firing: the
    least density that this many tokens can show.
    """
    density = np.asarray(densities, dtype=np.float64)
    if density.size == 0 or not np.isfinite(density).all() or density.min() < 0 or density.max() > 1:
        raise InputError("densities have to be shares between 0 and 1, at least one")
    alive = np.log10(density[density > 0])
    floor = -np.log10(n_tokens)
    counts, edges = np.histogram(alive, bins=bins, range=(min(floor, alive.min(initial=0.0)), 0.0))
    figure = blank(xaxis_title="density, share of tokens (log scale)", yaxis_title="features")
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges) * 0.94,
        marker_color=BLUE,
        customdata=np.stack([10 ** edges[:-1], 10 ** edges[1:]], axis=1),
        hovertemplate="density %{customdata[0]:.2g} to %{customdata[1]:.2g}<br>%{y:,} features<extra></extra>",
    )
    figure.add_vline(x=floor, line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_yaxes(range=[0, 1.06 * max(1, counts.max())], tickformat=",")
    if counts.max() <= 10:
        figure.update_yaxes(**whole(0, float(counts.max())))
    figure.update_xaxes(range=[floor - 0.15, 0.1], **decades(floor, 0.0))
    return figure
