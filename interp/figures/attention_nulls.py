"""Heads against their nulls (z-scores), and one set of heads under every definition of rank."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, Quartiles, log_axis, looks, quartiles, soft
from interp.figures.style import BLUE, GREY, blank

if TYPE_CHECKING:
    import plotly.graph_objects

_TICKS = (0, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def z_plot(scores: Mapping[str, Any]) -> "plotly.graph_objects.Figure":
    """z-scores of heads by measure: a box of quartiles with the median, whiskers to the 5th and 95th percentile.

    The axis is sign(z) log10(1 + |z|), so that 0 and 1,000 fit on it; the grey stripe is |z| < 2.
    """
    kept = {name: array[np.isfinite(array)] for name, array in ((n, np.asarray(v, float)) for n, v in scores.items())}
    kept = {name: array for name, array in kept.items() if array.size}
    if not kept:
        raise InputError("there are no finite z-scores to draw")
    figure = blank(xaxis_title="z-score against the matched null (bent axis)", height=max(330, 80 + 34 * len(kept)))
    figure.add_vrect(x0=_bent(-2.0), x1=_bent(2.0), fillcolor=soft(GREY, 0.22), line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": GREY, "width": 1}, layer="below")
    for name, array in reversed(kept.items()):
        five, low, middle, high, most = np.quantile(array, (0.05, 0.25, 0.5, 0.75, 0.95))
        figure.add_box(
            y=[name],
            orientation="h",
            q1=[_bent(low)],
            median=[_bent(middle)],
            q3=[_bent(high)],
            lowerfence=[_bent(five)],
            upperfence=[_bent(most)],
            line={"color": BLUE, "width": 1.5},
            fillcolor=soft(BLUE, 0.2),
            width=0.55,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[_bent(middle)],
            y=[name],
            mode="markers",
            marker={"size": 7, "color": BLUE},
            customdata=[(middle, low, high, array.size)],
            hovertemplate=f"{name}: median z %{{customdata[0]:.1f}}, quartiles %{{customdata[1]:.1f}} to "
            "%{customdata[2]:.1f}, %{customdata[3]} heads<extra></extra>",
        )
    ends = [value for array in kept.values() for value in np.quantile(array, (0.05, 0.95))] + [-3.0, 3.0]
    first, last = _bent(min(ends)), _bent(max(ends))
    margin = 0.04 * (last - first)
    ticks = sorted({sign * tick for tick in _ticks(last - first) for sign in (-1, 1)})
    ticks = [tick for tick in ticks if first - margin <= _bent(tick) <= last + margin]
    figure.update_xaxes(
        range=[first - margin, last + margin],
        tickmode="array",
        tickvals=[_bent(tick) for tick in ticks],
        ticktext=[f"{tick:,}".replace("-", "−") for tick in ticks],
    )
    figure.update_yaxes(showgrid=False)
    return figure


def rank_definitions(ranks: Mapping[str, Mapping[str, Any]]) -> "plotly.graph_objects.Figure":
    """Medians and quartiles of `ranks[object][definition]`, values of all heads, on a logarithmic rank axis."""
    table: dict[str, dict[str, Quartiles]] = {
        name: {label: q for label, values in of.items() if math.isfinite((q := quartiles(values)).median)}
        for name, of in ranks.items()
    }
    table = {name: of for name, of in table.items() if of}
    if not table:
        raise InputError("there are no finite ranks to draw")
    labels = list(dict.fromkeys(label for of in table.values() for label in of))
    figure = blank(
        xaxis_title="rank of the routing part (log scale)",
        height=max(330, 110 + 36 * len(labels)),
        showlegend=True,
        legend=LEGEND,
    )
    drawn = looks(table)
    for number, (name, of) in enumerate(table.items()):
        colour, _, symbol = drawn[name]
        # Objects stand a little apart on each definition's line.
        places = [labels[::-1].index(label) + 0.34 * (0.5 - number / max(1, len(table) - 1)) for label in of]
        middles = [q.median for q in of.values()]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [q.high - q.median for q in of.values()],
            "arrayminus": [q.median - q.low for q in of.values()],
            "color": colour,
            "thickness": 1.4,
            "width": 0,
        }
        figure.add_scatter(
            x=middles,
            y=places,
            mode="markers",
            name=name,
            marker={"size": 8, "color": colour, "symbol": symbol},
            error_x=bars,
            customdata=[(label, q.low, q.high) for label, q in of.items()],
            hovertemplate=f"{name}, %{{customdata[0]}}: median %{{x:.3g}}, quartiles %{{customdata[1]:.3g}} to "
            "%{customdata[2]:.3g}<extra></extra>",
        )
    ends = [value for of in table.values() for q in of.values() for value in q if value > 0]
    figure.update_xaxes(showgrid=True, **log_axis(min(ends), max(ends)))
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(len(labels))), ticktext=labels[::-1], range=[-0.6, len(labels) - 0.4]
    )
    return figure


def _bent(z: float) -> float:
    return math.copysign(math.log10(1 + abs(z)), z)


def _ticks(span: float) -> tuple[int, ...]:
    return _TICKS if span < 4 else _TICKS[::2]
