"""The residual-stream (logit) lens over layers and positions: in each cell the top token, shaded by how sure it is.

    p = softmax(logits)    probability: max p     entropy: -Σ p log₂ p, in bits     rank: of the true next token, best 1

Method: the logit lens of nostalgebraist (2020); logits come from `interp.lens.logit_lens` or any other lens.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.figures.style import CELL_PALE, CELL_TEXT, blank
from interp.figures.token_labels import plotly_text, token_ticks
from interp.lens import token_strings

if TYPE_CHECKING:
    import plotly.graph_objects

Shown = Literal["probability", "entropy", "rank"]
_BLUE, _GREEN = "#69aadb", "#54bf9c"
"""The strongest cells; dark text has at least 7:1 on them."""


class LensCells(NamedTuple):
    """What a lens reads in each cell (layer, position); `rank` only where the true next tokens are known."""

    top: list[list[list[tuple[str, float]]]]
    """The k most probable tokens of each cell with their probabilities."""
    entropy: Float[np.ndarray, "l t"]
    """Bits."""
    rank: Int[np.ndarray, "l t"] | None


def lens_cells(
    logits: Float[Tensor, "l t v"], tokenizer: Any, *, k: int = 5, targets: Int[Tensor, " t"] | None = None
) -> LensCells:
    """Cells from the lens's `logits` of one text, a layer at a time; `targets` are the tokens that came next."""
    if logits.ndim != 3 or not 1 <= k <= logits.shape[-1]:
        raise InputError(f"lens logits of shape {tuple(logits.shape)}, k={k}; expected (layers, positions, vocabulary)")
    found, entropies, ranks = [], [], []
    for layer in logits:
        logp = layer.detach().float().log_softmax(-1)
        found.append(logp.topk(k, dim=-1))
        entropies.append((-(logp.exp() * logp.nan_to_num(neginf=0.0)).sum(-1) / math.log(2)).cpu().numpy())
        if targets is not None:
            ranks.append(_ranks(logp, targets))
    ids = {i for top in found for row in top.indices.tolist() for i in row}
    names = token_strings(tokenizer, ids)
    cells = [
        [
            [(names[i], math.exp(x)) for i, x in zip(indices, values, strict=True)]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        for top in found
    ]
    return LensCells(cells, np.stack(entropies), np.stack(ranks) if ranks else None)


def lens_grid(
    cells: LensCells,
    tokens: Sequence[str],
    *,
    layers: Sequence[int | str] | None = None,
    show: Shown = "probability",
    letters: int = 8,
) -> "plotly.graph_objects.Figure":
    """The grid, layers upwards, positions across with the `tokens` that were read; `show` says what shades a cell."""
    depth, t = cells.entropy.shape
    names = [str(layer) for layer in (layers if layers is not None else range(depth))]
    if len(tokens) != t or len(names) != depth:
        raise InputError(f"{len(tokens)} tokens and {len(names)} layers for a lens of {depth} layers and {t} positions")
    values, scale, low, high, title = _shade(cells, show)
    hover = [[_hover(cells, tokens, names, i, j) for j in range(t)] for i in range(depth)]
    figure = blank(
        xaxis_title="token read at the position",
        yaxis_title="residual stream after layer",
        height=110 + 24 * depth + 7 * letters,
        width=max(700, 150 + 7 * (letters + 1) * t) if t > 12 else None,
    )
    figure.add_heatmap(
        z=values,
        x=list(range(t)),
        y=list(range(depth)),
        text=[[plotly_text(cell[0][0], most=letters) for cell in row] for row in cells.top],
        texttemplate="%{text}",
        textfont={"size": 11, "color": CELL_TEXT},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=scale,
        zmin=low,
        zmax=high,
        xgap=1.5,
        ygap=1.5,
        colorbar={"title": {"text": title, "side": "right"}, "thickness": 11, "outlinewidth": 0}
        | (_rank_ticks(high) if show == "rank" else {}),
    )
    figure.update_xaxes(**token_ticks(tokens, most=80), tickangle=-45, showline=False)
    figure.update_yaxes(tickmode="array", tickvals=list(range(depth)), ticktext=names, showgrid=False)
    return figure


def _ranks(logp: Tensor, targets: Tensor) -> np.ndarray:
    own = logp.gather(-1, targets.to(logp.device).long().unsqueeze(-1))
    return (1 + (logp > own).sum(-1)).cpu().numpy()


def _shade(cells: LensCells, show: str) -> tuple[Any, Any, float, float, str]:
    rising, falling = [[0, CELL_PALE], [1, _BLUE]], [[0, _BLUE], [1, CELL_PALE]]
    if show == "probability":
        return (
            np.array([[cell[0][1] for cell in row] for row in cells.top]),
            rising,
            0,
            1,
            "probability of<br>the top token",
        )
    if show == "entropy":
        return cells.entropy, falling, 0, float(np.ceil(cells.entropy.max(initial=1.0))), "entropy / bits"
    if show != "rank":
        raise InputError(f"show={show!r}: expected 'probability', 'entropy' or 'rank'")
    if cells.rank is None:
        raise InputError("the rank of the true next token needs `targets` when the cells are made")
    logs = np.log10(cells.rank)
    green = [[0, _GREEN], [1, CELL_PALE]]
    return logs, green, 0, float(max(1.0, np.ceil(logs.max()))), "rank of the true<br>next token (log scale)"


def _rank_ticks(high: float) -> dict[str, Any]:
    places = list(range(int(high) + 1))
    return {"tickvals": places, "ticktext": [f"{10**place:,}" for place in places]}


def _hover(cells: LensCells, tokens: Sequence[str], names: Sequence[str], i: int, j: int) -> str:
    lines = [f"layer {plotly_text(names[i], most=30)}, position {j}, read {plotly_text(tokens[j], most=30)}"]
    lines += [f"{probability:.3f} {plotly_text(token, most=30)}" for token, probability in cells.top[i][j]]
    lines.append(f"entropy {cells.entropy[i, j]:.2f} bits")
    if cells.rank is not None:
        lines.append(f"true next token at rank {cells.rank[i, j]:,}")
    return "<br>".join(lines)
