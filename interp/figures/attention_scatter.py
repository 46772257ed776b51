"""What a head does against how it is built: one point a head, told by the third of the network it stands in."""

from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LOOKS, Rows, column
from interp.figures.style import blank

if TYPE_CHECKING:
    import plotly.graph_objects

THIRDS = {"early": "○", "middle": "□", "late": "◇"}
"""Thirds of the depth, and how their heads are marked; there is no legend, for these are small figures in a row."""


def head_scatter(rows: Rows, x: str, y: str, *, x_title: str, y_title: str) -> "plotly.graph_objects.Figure":
    """Heads at (column `x`, column `y`), by thirds of the depth; heads without both numbers are left out."""
    across, up, layers = column(rows, x), column(rows, y), column(rows, "layer").astype(int)
    heads = column(rows, "head").astype(int)
    kept = np.isfinite(across) & np.isfinite(up)
    if not kept.any():
        raise InputError(f"no head has both {x} and {y}")
    third = np.minimum(2, 3 * layers // max(1, int(layers.max()) + 1))
    figure = blank(xaxis_title=x_title, yaxis_title=y_title, height=270)
    for number, name in enumerate(THIRDS):
        own = kept & (third == number)
        colour, _, symbol = LOOKS[number]
        figure.add_scatter(
            x=across[own],
            y=up[own],
            mode="markers",
            name=name,
            marker={"size": 6, "color": colour, "symbol": f"{symbol}-open", "line": {"width": 1.3}},
            text=[f"head {a}.{b}" for a, b in zip(layers[own], heads[own], strict=True)],
            hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    return figure


def spearman(rows: Rows, x: str, y: str) -> tuple[float, int]:
    """Rank correlation of two columns over the heads that have both, and how many these are; NaN if one is constant."""
    from scipy.stats import rankdata

    across, up = column(rows, x), column(rows, y)
    kept = np.isfinite(across) & np.isfinite(up)
    first, second = rankdata(across[kept]), rankdata(up[kept])
    if kept.sum() < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan"), int(kept.sum())
    return float(np.corrcoef(first, second)[0, 1]), int(kept.sum())
