"""What the figures of attention share: how series are told apart, medians with quartiles, ticks of logarithmic axes.

A series is told by colour and by its dash and marker, never by colour alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.figures.style import BLUE, GREEN, GREY, PURPLE, VERMILLION

if TYPE_CHECKING:
    import plotly.graph_objects

Rows = Sequence[Mapping[str, Any]]
LEGEND: dict[str, Any] = {
    "orientation": "h",
    "x": 0,
    "y": 1.02,
    "yanchor": "bottom",
    "bgcolor": "rgba(0,0,0,0)",
    "itemwidth": 30,
}


class Look(NamedTuple):
    """Colour, dash and marker of a series."""

    colour: str
    dash: str
    symbol: str


LOOKS = (
    Look(BLUE, "solid", "circle"),
    Look(VERMILLION, "dash", "square"),
    Look(GREEN, "dot", "diamond"),
    Look(PURPLE, "dashdot", "triangle-up"),
    Look(GREY, "longdash", "cross"),
)
FIXED = {
    "kernel": LOOKS[0],
    "raw": LOOKS[1],
    "key-centred": LOOKS[2],
    "doubly centred": LOOKS[3],
}
"""Series that look the same in every figure."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How each series of a figure is drawn; up to ten differ from each other."""
    names = list(names)
    fixed = {name: FIXED[name] for name in names if name in FIXED}
    mixed = [
        Look(one.colour, LOOKS[(number + 2) % 5].dash, LOOKS[(number + 3) % 5].symbol)
        for number, one in enumerate(LOOKS)
    ]
    free = [one for one in (*LOOKS, *mixed) if one not in fixed.values()]
    others = [name for name in names if name not in fixed]
    return {**fixed, **{name: free[number % len(free)] for number, name in enumerate(others)}}


def soft(colour: str, opacity: float) -> str:
    """`#rrggbb` as a translucent colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def column(rows: Rows, name: str) -> np.ndarray:
    """A column as floats; NaN where a row has no number there."""
    found = [row.get(name) for row in rows]
    return np.array([math.nan if value is None else float(value) for value in found], dtype=np.float64)


def has(rows: Rows, name: str) -> bool:
    """Whether any row has a finite number in the column."""
    return bool(np.isfinite(column(rows, name)).any())


class Quartiles(NamedTuple):
    """Lower quartile, median, upper quartile; NaN without values."""

    low: float
    median: float
    high: float


def quartiles(values: Iterable[float] | np.ndarray) -> Quartiles:
    """Of the finite ones among `values`."""
    array = np.asarray(list(values), dtype=np.float64)
    array = array[np.isfinite(array)]
    return Quartiles(*(np.quantile(array, (0.25, 0.5, 0.75)).tolist() if array.size else (math.nan,) * 3))


def by_layer(rows: Rows, name: str) -> dict[int, Quartiles]:
    """Quartiles over the heads of each layer that has a finite value."""
    layers, values = column(rows, "layer").astype(int), column(rows, name)
    kept = np.isfinite(values)
    return {int(layer): quartiles(values[kept & (layers == layer)]) for layer in np.unique(layers[kept])}


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis over positive values from `low` to `high`: 1, 2 and 5 times powers of ten, or powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    step = max(1, (last - first) // 8)
    ticks = [factor * 10.0**power for power in range(first, last + 1, step) for factor in factors]
    margin = (high / low) ** 0.04
    ticks = [tick for tick in ticks if low / margin <= tick <= high * margin]
    if len(ticks) < 2:
        return {"type": "log", "range": [math.log10(low / margin), math.log10(high * margin)], "nticks": 4}
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [_tick(tick) for tick in ticks],
        "range": [math.log10(low / margin), math.log10(high * margin)],
    }


def add_level(figure: "plotly.graph_objects.Figure", ends: tuple[float, float], value: float, name: str) -> None:
    """A thin dashed line at `value` between two places on the x axis, named in the legend."""
    figure.add_scatter(
        x=list(ends),
        y=[value, value],
        mode="lines",
        name=name,
        line={"color": GREY, "dash": "dash", "width": 1.2},
        hoverinfo="skip",
    )


def _tick(value: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:g}"


def add_band(
    figure: "plotly.graph_objects.Figure", points: Sequence[tuple[float, float, float]], *, colour: str, name: str
) -> None:
    """The area between low and high of (x, low, high), which belongs to the series `name`."""
    figure.add_scatter(
        x=[*(x for x, _, _ in points), *(x for x, _, _ in reversed(points))],
        y=[*(low for _, low, _ in points), *(high for _, _, high in reversed(points))],
        fill="toself",
        fillcolor=soft(colour, 0.14),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
