"""Attention patterns: one square per head, destinations down, sources across, the causal mask left empty.

    a[h, i, j]   weight with which position i reads position j; every row sums to 1; 0 for j > i where causal

A weight of 0 is a pale cell; a cell that the mask forbids is not drawn at all, so the two are never confused.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import soft
from interp.figures.style import BLUE, GREY, dress
from interp.figures.token_labels import plotly_text, token_ticks

if TYPE_CHECKING:
    import plotly.graph_objects

_TICKS = (0.0, 0.05, 0.25, 0.5, 1.0)


def attention_patterns(
    patterns: Any,
    tokens: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    causal: bool = True,
    columns: int = 4,
    colour: Literal["root", "linear"] = "root",
) -> "plotly.graph_objects.Figure":
    """A grid of `patterns`, (heads, t, t), with the t `tokens` on both axes; `names` head the squares.

    `colour="root"` shades by the square root of the weight, so that weights of a few per cent show beside an attention
    sink's; the colour bar and the hover box give the weights themselves.
    """
    from plotly.subplots import make_subplots

    weights = _checked(patterns, tokens, causal)
    n, t = len(weights), len(tokens)
    titles = list(names) if names is not None else [f"head {head}" for head in range(n)]
    if len(titles) != n or columns < 1 or colour not in ("root", "linear"):
        raise InputError(
            f"{len(titles)} names for {n} heads, columns={columns}, colour={colour!r}; expected one name a head, at "
            "least one column, and 'root' or 'linear'"
        )
    columns = min(columns, n)
    rows = -(-n // columns)
    side = 420 if columns == 1 else 330 if columns == 2 else 230
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[plotly_text(title, most=40) for title in titles],
        shared_xaxes="all",  # pyright: ignore[reportArgumentType]
        shared_yaxes="all",  # pyright: ignore[reportArgumentType]
        horizontal_spacing=0.025,
        vertical_spacing=min(0.09, 40 / (rows * side)),
    )
    hidden = np.triu(np.ones((t, t), dtype=bool), k=1) if causal else np.zeros((t, t), dtype=bool)
    labels = [plotly_text(token, most=24) for token in tokens]
    pairs = [[f"{labels[i]} ({i}) reads {labels[j]} ({j})" for j in range(t)] for i in range(t)]
    for head, weight in enumerate(weights):
        shade = np.sqrt(weight) if colour == "root" else weight
        said = [[f"{pairs[i][j]}: {weight[i, j]:.3f}" for j in range(t)] for i in range(t)]
        figure.add_heatmap(
            z=np.where(hidden, np.nan, shade),
            customdata=said,
            hovertemplate="%{customdata}<extra>" + plotly_text(titles[head], most=40) + "</extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=1 if t <= 40 else 0,
            ygap=1 if t <= 40 else 0,
            name=titles[head],
            row=head // columns + 1,
            col=head % columns + 1,
        )
    return _laid_out(figure, tokens, rows=rows, columns=columns, side=side, colour=colour, causal=causal, n=n)


def _laid_out(
    figure: "plotly.graph_objects.Figure",
    tokens: Sequence[str],
    *,
    rows: int,
    columns: int,
    side: int,
    colour: str,
    causal: bool,
    n: int,
) -> "plotly.graph_objects.Figure":
    at = [tick**0.5 if colour == "root" else tick for tick in _TICKS]
    bar = {
        "title": {
            "text": "weight" + (", √ scale" if colour == "root" else "") + (" (blank: masked)" if causal else ""),
            "side": "right",
        },
        "tickvals": at,
        "ticktext": [f"{tick:g}" for tick in _TICKS],
        "thickness": 11,
        "outlinewidth": 0,
    }
    scale = [[0, soft(GREY, 0.16)], [1, BLUE]]
    dress(
        figure,
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": scale, "colorbar": bar},
        height=rows * side + 90,
        margin={"t": 30, "b": 10, "l": 10, "r": 14},
    )
    t = len(tokens)
    most = max(6, int(side / 15))
    edge = [-0.5, t - 0.5]
    figure.update_xaxes(**token_ticks(tokens, most=most, letters=9), range=edge, tickangle=-90, showline=False)
    figure.update_yaxes(**token_ticks(tokens, most=most, letters=9), range=edge[::-1], showgrid=False)
    figure.update_annotations(font_size=12)
    for head in range(n):
        # Names of tokens stand below the lowest square of each column, also where the last row is not full.
        if head + columns >= n:
            figure.update_xaxes(
                title_text="source",
                showticklabels=True,
                row=head // columns + 1,
                col=head % columns + 1,
            )
        if head % columns == 0:
            figure.update_yaxes(title_text="destination", row=head // columns + 1, col=1)
    return figure


def _checked(patterns: Any, tokens: Sequence[str], causal: bool) -> np.ndarray:
    if hasattr(patterns, "detach"):
        patterns = patterns.detach().float().cpu()
    weights = np.asarray(patterns, dtype=np.float64)
    t = len(tokens)
    if weights.ndim != 3 or not len(weights) or weights.shape[1:] != (t, t) or t == 0:
        raise InputError(
            f"patterns of shape {weights.shape} for {t} tokens; expected (heads, {t}, {t}): one text of a batch, and "
            "as many tokens as positions"
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() > 1 + 1e-3:
        raise InputError("attention weights have to be between 0 and 1: these are scores from before the softmax?")
    above = float(np.triu(weights, k=1).max())
    if causal and above > 1e-6:
        raise InputError(
            f"a position reads a later one with weight {above:.3g}: these patterns are not causal; pass causal=False"
        )
    return weights
