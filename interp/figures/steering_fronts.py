"""Trade-offs of steering: what a method achieves against what it costs, along its strengths, with intervals."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.errors import InputError
from interp.figures.attention_style import LEGEND, log_axis, looks
from interp.figures.pareto import pareto_front
from interp.figures.style import GREY, blank
from interp.steering.evaluation import PROMPTED, UNSTEERED, Estimate, Point, SteeringEvaluation

if TYPE_CHECKING:
    import plotly.graph_objects

_LEAST = 1e-5  # nats; where a KL of next to nothing is drawn


def front_plot(found: SteeringEvaluation, judge: str, *, prompts: str = "source") -> "plotly.graph_objects.Figure":
    """Mean score on a set of prompts against KL on neutral text; a dashed line is the front of all points."""
    _check(found, judge, prompts)
    shown = {name: found.of(name) for name in found.methods if name != UNSTEERED}
    figure = blank(
        xaxis_title="KL(unsteered ‖ steered) on neutral text, nats per token (log scale)",
        yaxis_title=f"score towards the target, {_kind(prompts)}",
        height=400 + 18 * max(0, len(shown) - 4),
        showlegend=True,
        legend=LEGEND,
    )
    every = [point for points in shown.values() for point in points]
    across, up = [_kl(point).value for point in every], [_score(point, judge, prompts).value for point in every]
    front = pareto_front(across, up, lower=False)
    figure.add_scatter(
        x=[across[i] for i in front],
        y=[up[i] for i in front],
        mode="lines",
        line={"color": GREY, "width": 1.2, "dash": "dash", "shape": "hv"},
        name="front of all",
        hoverinfo="skip",
    )
    drawn = looks(shown)
    for name, points in shown.items():
        _add_method(
            figure,
            name,
            drawn[name],
            points,
            [_kl(point) for point in points],
            [_score(point, judge, prompts) for point in points],
        )
    ends = [value for point in every for value in (_kl(point).low, _kl(point).high)]
    _add_unsteered(figure, found, judge, prompts, (min(ends), max(ends)))
    figure.update_xaxes(**log_axis(min(ends), max(ends)))
    return figure


def change_plot(
    found: SteeringEvaluation, judge: str, *, wanted: str = "source", unwanted: str = "target"
) -> "plotly.graph_objects.Figure":
    """Change of the score on the prompts to be changed against the change on those to be left alone."""
    for prompts in (wanted, unwanted):
        _check(found, judge, prompts)
    shown = {name: found.of(name) for name in found.methods if name != UNSTEERED}
    figure = blank(
        xaxis_title=f"change of the score on {_kind(wanted)}",
        yaxis_title=f"change on {_kind(unwanted)}",
        height=400 + 18 * max(0, len(shown) - 4),
        showlegend=True,
        legend=LEGEND,
    )
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(zeroline=True, showgrid=True)
    drawn = looks(shown)
    for name, points in shown.items():
        wide, high = ([point.sets[kind].change[judge].mean for point in points] for kind in (wanted, unwanted))
        _add_method(figure, name, drawn[name], points, wide, high)
    return figure


def _add_method(
    figure: "plotly.graph_objects.Figure",
    name: str,
    look: "tuple[str, str, str]",
    points: Sequence[Point],
    x: Sequence[Estimate],
    y: Sequence[Estimate],
) -> None:
    colour, dash, symbol = look
    alone = name == PROMPTED
    figure.add_scatter(
        x=[one.value for one in x],
        y=[one.value for one in y],
        error_x=_bars(x, colour),
        error_y=_bars(y, colour),
        mode="markers" if alone else "lines+markers",
        name="instruction in the prompt" if alone else name,
        line={"color": colour, "width": 1.6, "dash": dash},
        marker={"size": 8, "symbol": symbol, "color": colour},
        customdata=[point.name for point in points],
        hovertemplate="%{customdata}<br>%{x:.4g} · %{y:.3f}<extra></extra>",
    )


def _bars(values: Sequence[Estimate], colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, one.high - one.value) for one in values],
        "arrayminus": [max(0.0, one.value - one.low) for one in values],
        "color": colour,
        "thickness": 0.9,
        "width": 3,
    }


def _add_unsteered(
    figure: "plotly.graph_objects.Figure",
    found: SteeringEvaluation,
    judge: str,
    prompts: str,
    ends: tuple[float, float],
) -> None:
    level = _score(found.of(UNSTEERED)[0], judge, prompts).value
    figure.add_scatter(
        x=list(ends),
        y=[level, level],
        mode="lines",
        name=f"unsteered, {level:+.2f}".replace("-", "−"),
        line={"color": GREY, "dash": "dot", "width": 1.2},
        hoverinfo="skip",
    )


def _score(point: Point, judge: str, prompts: str) -> Estimate:
    return point.sets[prompts].mean[judge]


def _kl(point: Point) -> Estimate:
    return point.kl.map(lambda value: max(value, _LEAST))


def _kind(prompts: str) -> str:
    return f"{prompts} prompts"


def _check(found: SteeringEvaluation, judge: str, prompts: str) -> None:
    if judge not in found.judges:
        raise InputError(f"no scores of a judge {judge!r}; there are {', '.join(found.judges)}")
    if any(prompts not in point.sets for point in found.points):
        raise InputError(f"no prompts {prompts!r}; there are {', '.join(found.points[0].sets)}")
    if not all(math.isfinite(point.kl.value) for point in found.points):
        raise InputError("a point has no finite KL")
