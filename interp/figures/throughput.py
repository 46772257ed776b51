"""Throughput of contestants as bars: the median of the rounds, with whiskers from the slowest to the fastest one.

Reads the records that the benchmarks write: `{"name", "tokens_per_second": {"median", "min", "max"}, ...}`.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.figures.style import BLUE, GREY, blank
from interp.figures.token_labels import plotly_text

if TYPE_CHECKING:
    import plotly.graph_objects


def throughput_bars(
    results: Sequence[Mapping[str, Any]], *, measure: str = "tokens_per_second", unit: str = "tokens per second"
) -> "plotly.graph_objects.Figure":
    """One bar a record, fastest on top; a record with `is_ceiling` (a bound, not a contestant) is grey."""
    if not results:
        raise InputError("there are no results to draw")
    for record in results:
        spread = record.get(measure)
        if not isinstance(spread, Mapping) or not {"median", "min", "max"} <= set(spread):
            raise InputError(
                f"result {record.get('name')!r} has no {measure!r} with median, min and max; it has {sorted(record)}"
            )
    ordered = sorted(results, key=lambda record: record[measure]["median"])
    middle = [float(record[measure]["median"]) for record in ordered]
    low, high = ([float(record[measure][end]) for record in ordered] for end in ("min", "max"))
    figure = blank(xaxis_title=f"{unit} (higher is better)", height=90 + 34 * len(ordered))
    figure.add_bar(
        x=middle,
        y=list(range(len(ordered))),
        orientation="h",
        # Pale enough that the whiskers show on them.
        marker_opacity=0.5,
        marker_color=[GREY if record.get("is_ceiling") else BLUE for record in ordered],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [b - a for a, b in zip(middle, high, strict=True)],
            "arrayminus": [b - a for a, b in zip(low, middle, strict=True)],
            "color": GREY,
            "thickness": 1.3,
            "width": 4,
        },
        customdata=list(zip((plotly_text(str(r["name"]), most=None) for r in ordered), low, high, strict=True)),
        hovertemplate="%{customdata[0]}<br>median %{x:,.0f}, %{customdata[1]:,.0f} to %{customdata[2]:,.0f} "
        f"{unit}<extra></extra>",
    )
    figure.add_scatter(
        x=high,
        y=list(range(len(ordered))),
        mode="text",
        text=[f"  {value:,.0f}" for value in middle],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    names = [_two_lines(str(record["name"])) for record in ordered]
    figure.update_yaxes(tickmode="array", tickvals=list(range(len(ordered))), ticktext=names, showgrid=False)
    figure.update_xaxes(range=[0, 1.15 * max(high)], showgrid=True, tickformat=",")
    return figure


def _two_lines(name: str) -> str:
    return "<br>".join(plotly_text(line, most=None) for line in wrap(name, 32, max_lines=2, placeholder=" …"))
