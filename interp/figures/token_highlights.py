"""Activations of features on the tokens of a text: as shaded text for a notebook, and as a Plotly grid.

A token's shade is its activation relative to the feature's scale, by default its largest one in this text; the numbers
are in the token's tooltip. Every feature has a line of its own, so that overlapping features are never mixed.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import soft
from interp.figures.style import BLUE, FONT, GREEN, GREY, PURPLE, VERMILLION, blank
from interp.figures.token_labels import plotly_text, token_ticks, visible

if TYPE_CHECKING:
    import plotly.graph_objects

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_DEEPEST = 0.5
"""Opacity of the strongest shade. The text keeps the page's own colour: black on it and white on it both have 4.5:1."""


@dataclass(frozen=True)
class Highlights:
    """Shaded text, shown by a notebook; `html` is the same as a string, safe to place in any page."""

    html: str
    summary: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.summary


def highlight_tokens(
    tokens: Sequence[str],
    activations: Any,
    *,
    names: Sequence[str] | None = None,
    scales: Sequence[float] | None = None,
) -> Highlights:
    """The text once per feature; `activations` are (features, tokens), or of one feature (tokens).

    A negative activation is shaded grey and underlined. `scales` are the activations of full shade, one a feature.
    """
    values, labels, tops = _checked(tokens, activations, names, scales)
    lines = []
    for number, (row, label, top) in enumerate(zip(values, labels, tops, strict=True)):
        body = "".join(_span(token, a, top, _COLOURS[number % 4]) for token, a in zip(tokens, row, strict=True))
        peak = f"max {_number(float(row.max()))}" if len(row) else ""
        lines.append(
            f'<div style="margin:0 0 .6em"><div style="font-size:.85em"><b>{html.escape(visible(label))}</b> {peak}'
            "</div>"
            f'<div dir="auto" style="white-space:pre-wrap;line-height:1.7;overflow-wrap:anywhere">{body}</div></div>'
        )
    page = f'<div role="group" aria-label="Feature activations" style=\'font-family:{FONT}\'>{"".join(lines)}</div>'
    return Highlights(page, f"Highlights: {len(values)} features over {len(tokens)} tokens")


def token_grid(
    tokens: Sequence[str],
    activations: Any,
    *,
    names: Sequence[str] | None = None,
    scales: Sequence[float] | None = None,
    unit: str = "activation",
) -> "plotly.graph_objects.Figure":
    """Features down, tokens across; each row is shaded from 0 to its own scale, and the hover box gives the number."""
    values, labels, tops = _checked(tokens, activations, names, scales)
    share = np.clip(values / np.asarray(tops)[:, None], -1, 1)
    figure = blank(xaxis_title="token", yaxis_title="feature", height=150 + 26 * len(values))
    signed = bool((values < 0).any())
    said = [
        [
            f"{plotly_text(token, most=30)} ({i}): {_number(float(a))}"
            for i, (token, a) in enumerate(zip(tokens, row, strict=True))
        ]
        for row in values
    ]
    clear = soft(GREY, 0.1)
    figure.add_heatmap(
        z=share,
        x=list(range(len(tokens))),
        y=list(range(len(values))),
        customdata=said,
        hovertemplate=f"%{{customdata}} {unit}<extra></extra>",
        colorscale=[[0, VERMILLION], [0.5, clear], [1, BLUE]] if signed else [[0, clear], [1, BLUE]],
        zmin=-1 if signed else 0,
        zmax=1,
        xgap=1.5,
        ygap=3,
        colorbar={
            "title": {"text": "share of<br>row's scale", "side": "right"},
            "nticks": 3,
            "thickness": 11,
            "outlinewidth": 0,
        },
    )
    figure.update_xaxes(**token_ticks(tokens, most=60), tickangle=-45, showline=False)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(values))),
        ticktext=[plotly_text(label, most=28) for label in labels],
        autorange="reversed",
        showgrid=False,
    )
    return figure


def _span(token: str, activation: float, top: float, colour: str) -> str:
    # A line break stays one, after its mark: the text keeps its lines and the token can still be pointed at.
    text = html.escape(visible(token, spaces=False)) + "\n" * token.count("\n")
    if activation == 0:
        return f"<span>{text}</span>"
    strength = max(0.06, min(1.0, abs(activation) / top)) * _DEEPEST
    style = f"background:{soft(colour if activation > 0 else GREY, round(strength, 3))};border-radius:3px"
    style += "" if activation > 0 else ";text-decoration:underline"
    return f'<span style="{style}" title="{_number(activation)}">{text}</span>'


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _checked(
    tokens: Sequence[str], activations: Any, names: Sequence[str] | None, scales: Sequence[float] | None
) -> tuple[np.ndarray, list[str], list[float]]:
    if hasattr(activations, "detach"):
        activations = activations.detach().float().cpu()
    values = np.atleast_2d(np.asarray(activations, dtype=np.float64))
    if values.ndim != 2 or values.shape[1] != len(tokens) or not values.size:
        raise InputError(
            f"activations of shape {values.shape} for {len(tokens)} tokens; expected (features, {len(tokens)})"
        )
    if not np.isfinite(values).all():
        raise InputError("activations to highlight have to be finite")
    labels = list(names) if names is not None else [f"feature {i}" for i in range(len(values))]
    tops = list(scales) if scales is not None else [float(top) or 1.0 for top in np.abs(values).max(axis=1)]
    if len(labels) != len(values) or len(tops) != len(values) or min(tops) <= 0:
        raise InputError(
            f"{len(labels)} names and {len(tops)} scales for {len(values)} features; expected one of each a feature, "
            "scales positive"
        )
    return values, labels, tops
