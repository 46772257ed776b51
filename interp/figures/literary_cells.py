"""Literary primitives: counts beside their control, a row of dots for every emotion, and the path of a search."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, looks
from interp.figures.dots import Dots
from interp.figures.style import BLUE, GREY, VERMILLION, blank
from interp.figures.token_labels import plotly_text

if TYPE_CHECKING:
    import plotly.graph_objects


class Trial(NamedTuple):
    """One step of a search: what was tried, and what it scored."""

    name: str
    score: float


def row_dots(
    rows: Sequence[str],
    series: Sequence[Dots],
    *,
    x_title: str,
    level: tuple[float, str] | None = None,
    bounds: tuple[float, float] | None = None,
    form: str = ".2f",
) -> "plotly.graph_objects.Figure":
    """A row of dots for every name, the first series large and with bars for its intervals, the others hollow.

    `level` is a dotted line, such as chance. Series are told apart by marker as well as by colour."""
    labels = [plotly_text(row, most=28) for row in rows]
    if not rows or not series or any(len(one.values) != len(rows) for one in series):
        raise InputError(f"{len(rows)} rows, series of {[len(one.values) for one in series]}; expected a value each")
    figure = blank(xaxis_title=x_title, height=120 + 26 * len(rows), showlegend=True, legend=LEGEND)
    if level is not None:
        figure.add_scatter(
            x=[level[0], level[0]],
            y=[-0.5, len(rows) - 0.5],
            mode="lines",
            name=level[1],
            line={"color": GREY, "dash": "dot", "width": 1.4},
            hoverinfo="skip",
        )
    drawn = looks(one.name for one in series)
    for number, (name, values, own) in reversed(list(enumerate(series))):
        look, first = own or drawn[name], number == 0
        spread: dict[str, Any] = {
            "type": "data",
            "symmetric": False,
            "array": [_reach(high - value) for value, _, high in values],
            "arrayminus": [_reach(value - low) for value, low, _ in values],
            "color": look.colour,
            "thickness": 1.4,
            "width": 3,
        }
        shift = 0.0 if first else (number - len(series) / 2) * 0.6 / len(series)
        figure.add_scatter(
            x=[value if math.isfinite(value) else None for value, _, _ in values],
            y=[i + shift for i in range(len(rows))],
            mode="markers",
            name=name,
            marker={
                "size": 10 if first else 7,
                "symbol": look.symbol if first else f"{look.symbol}-open",
                "color": look.colour,
                "line": {"width": 1.6, "color": look.colour},
            },
            error_x=spread if first else None,
            customdata=[[row, _range(low, high, form)] for row, (_, low, high) in zip(labels, values, strict=True)],
            hovertemplate=f"{name}, %{{customdata[0]}}: %{{x:{form}}}%{{customdata[1]}}<extra></extra>",
            legendrank=number,
        )
    figure.update_yaxes(tickmode="array", tickvals=list(range(len(rows))), ticktext=labels, showgrid=True)
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6])
    figure.update_xaxes(showgrid=True, range=bounds)
    return figure


def count_pairs(counts: Mapping[str, tuple[int, int]], *, names: tuple[str, str]) -> "plotly.graph_objects.Figure":
    """Two counts side by side for every class, written at the end of their bars; an axis of square roots keeps a few
    visible beside thousands."""
    if not counts:
        raise InputError("there are no counts to draw")
    rows = list(counts)[::-1]
    figure = blank(height=130 + 46 * len(rows), barmode="group", bargap=0.3, showlegend=True, legend=LEGEND)
    # Drawn from the bottom up: the second series first, so that the first stands above it.
    for side, colour, pattern in ((1, GREY, "/"), (0, BLUE, "")):
        name = names[side]
        values = [counts[row][side] for row in rows]
        figure.add_bar(
            x=[math.sqrt(value) for value in values],
            y=[plotly_text(row, most=40) for row in rows],
            orientation="h",
            name=name,
            text=[f"{value:,}" for value in values],
            textposition="outside",
            cliponaxis=False,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate=f"%{{y}}, {name}: %{{text}}<extra></extra>",
            legendrank=side,
        )
    largest = math.sqrt(max(1, *(value for pair in counts.values() for value in pair)))
    figure.update_xaxes(title="features (length: square root of the count)", showticklabels=False, showline=False)
    figure.update_xaxes(range=[0, largest * 1.15])
    figure.update_yaxes(showgrid=False)
    return figure


def search_path(trials: Sequence[Trial], *, y_title: str, chosen: int | None = None) -> "plotly.graph_objects.Figure":
    """The score of every trial in the order they were made, the best so far as steps, the chosen one ringed.

    Without a legend, for many stand side by side: say beside them what is what."""
    if not trials:
        raise InputError("a search without trials has no path to draw")
    best, steps = -math.inf, []
    for _, score in trials:
        best = max(best, score) if math.isfinite(score) else best
        steps.append(best if math.isfinite(best) else None)
    order = list(range(1, len(trials) + 1))
    figure = blank(xaxis_title="trial", yaxis_title=y_title, height=210)
    figure.add_scatter(
        x=order, y=steps, mode="lines", name="best so far", line={"color": GREY, "width": 1.4, "shape": "hv"},
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=order,
        y=[score if math.isfinite(score) else None for _, score in trials],
        mode="markers",
        name="trial",
        marker={"color": BLUE, "size": 7},
        text=[plotly_text(name, most=None) for name, _ in trials],
        hovertemplate="%{text}: %{y:.3f}<extra></extra>",
    )
    if chosen is not None:
        figure.add_scatter(
            x=[order[chosen]],
            y=[trials[chosen].score],
            mode="markers",
            name="chosen",
            marker={"symbol": "circle-open", "size": 15, "color": VERMILLION, "line": {"width": 2.2}},
            hoverinfo="skip",
        )
    figure.update_xaxes(dtick=1 if len(trials) <= 16 else None, range=[0.4, len(trials) + 0.6])
    return figure


def _reach(length: float) -> float:
    return max(0.0, length) if math.isfinite(length) else 0.0


def _range(low: float, high: float, form: str) -> str:
    return f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) and math.isfinite(high) else ""
