"""Spectra of heads: eigenvalues of M in the complex plane, and the singular values of M's two parts side by side."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, log_axis
from interp.figures.style import BLUE, GREEN, VERMILLION, blank

if TYPE_CHECKING:
    import plotly.graph_objects

MOST_POINTS = 1200


def eigenvalue_cloud(
    eigenvalues: Any, *, unit: str = "‖M‖", extent: float | None = None
) -> "plotly.graph_objects.Figure":
    """Eigenvalues `h e` (complex, in `unit`) of the heads of a layer; the rightmost one of each head has a mark.

    Both axes have the same scale and reach from -`extent` to `extent`. Of more than `MOST_POINTS` eigenvalues evenly
    chosen ones are drawn, the rightmost always.
    """
    values = np.asarray(eigenvalues, dtype=np.complex128)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(f"expected finite eigenvalues of heads, (heads, eigenvalues), got shape {values.shape}")
    flat = values.ravel()[:: max(1, -(-values.size // MOST_POINTS))]
    right = values[np.arange(len(values)), values.real.argmax(axis=1)]
    figure = blank(
        xaxis_title=f"Re λ / {unit}", yaxis_title=f"Im λ / {unit}", height=310, showlegend=True, legend=LEGEND
    )
    where = "<br>Re %{x:.3f}, Im %{y:.3f}<extra></extra>"
    figure.add_scatter(
        x=flat.real,
        y=flat.imag,
        mode="markers",
        name="eigenvalues",
        marker={"size": 3.4, "color": BLUE, "opacity": 0.5 if flat.size > 300 else 0.9},
        hovertemplate=f"eigenvalue{where}",
    )
    figure.add_scatter(
        x=right.real,
        y=right.imag,
        mode="markers",
        name="rightmost",
        text=[f"head {head}" for head in range(len(right))],
        marker={"size": 7, "color": VERMILLION, "symbol": "diamond-open", "line": {"width": 1.5}},
        hovertemplate=f"%{{text}}: largest Re λ{where}",
    )
    reach = extent if extent is not None else 1.06 * float(np.abs(np.stack([values.real, values.imag])).max())
    figure.update_xaxes(range=[-reach, reach], zeroline=True, nticks=6)
    figure.update_yaxes(range=[-reach, reach], zeroline=True, nticks=6, scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    return figure


def head_spectrum(routing: Any, filtering: Any, *, unit: str = "‖M‖") -> "plotly.graph_objects.Figure":
    """Singular values of the routing part (each plane given once, drawn twice) and signed eigenvalues of the other.

    Both descend by size on a logarithmic axis in `unit`; values below 1e-6 of the largest are left out.
    """
    planes, modes = (np.asarray(x, dtype=np.float64).ravel() for x in (routing, filtering))
    planes, modes = np.sort(np.abs(planes))[::-1], modes[np.argsort(-np.abs(modes))]
    largest = max(planes.max(initial=0.0), np.abs(modes).max(initial=0.0))
    if not np.isfinite(largest) or largest == 0:
        raise InputError("a spectrum of a head needs finite values, not all of them zero")
    planes, modes = planes[planes > 1e-6 * largest], modes[np.abs(modes) > 1e-6 * largest]
    doubled, order = np.repeat(planes, 2), np.arange(1, len(modes) + 1)
    figure = blank(
        xaxis_title="place among the values, largest first",
        yaxis_title=f"size of the value / {unit} (log scale)",
        height=330,
        showlegend=True,
        legend=LEGEND,
    )
    figure.add_scatter(
        x=np.arange(1, len(doubled) + 1),
        y=doubled,
        mode="lines",
        name=f"routing: {len(planes)} planes, each twice",
        line={"color": BLUE, "width": 1.8, "shape": "hv"},
        hovertemplate="routing %{x}: %{y:.4g}<extra></extra>",
    )
    for name, kept, colour, symbol in (
        ("filtering, positive", modes > 0, VERMILLION, "circle"),
        ("filtering, negative", modes < 0, GREEN, "triangle-down-open"),
    ):
        figure.add_scatter(
            x=order[kept],
            y=np.abs(modes[kept]),
            mode="markers",
            name=f"{name} ({int(kept.sum())})",
            marker={"size": 4.5, "color": colour, "symbol": symbol},
            hovertemplate=f"{name} %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    drawn = np.concatenate([doubled, np.abs(modes)])
    figure.update_yaxes(**log_axis(float(drawn.min()), float(drawn.max())))
    return figure
