"""Grids of numbers: transfer between layers, scores of heads, and what a neuron does on the board.

Cells with numbers in them are opaque and pale with dark text, legible on a light and on a dark ground.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import soft
from interp.figures.style import BLUE, CELL_PALE, CELL_TEXT, GREEN, GREY, VERMILLION, blank, cell_colour
from interp.sudoku.board import Rules

if TYPE_CHECKING:
    import plotly.graph_objects

_DEEPEST = 0.5


def number_grid(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x_title: str,
    y_title: str,
    signed: bool = False,
    bounds: tuple[float, float] | None = None,
    form: str = ".2f",
    notes: Sequence[Sequence[str]] | None = None,
    colour: str = BLUE,
) -> "plotly.graph_objects.Figure":
    """A heat map with its numbers in it; `signed` ones in two colours about 0, `notes` for the reader who points."""
    values = np.asarray(values, np.float64)
    if values.shape != (len(rows), len(columns)) or not np.isfinite(values).any():
        raise InputError(
            f"a grid of {values.shape} for {len(rows)} rows and {len(columns)} columns; expected these, and numbers"
        )
    figure = blank(xaxis_title=x_title, yaxis_title=y_title, height=110 + 40 * len(rows))
    reach = float(np.nanmax(np.abs(values))) or 1.0
    low, high = bounds or (
        (-reach, reach) if signed else (min(0.0, float(np.nanmin(values))), float(np.nanmax(values)))
    )
    scale = (
        [[0, cell_colour(BLUE, _DEEPEST)], [0.5, CELL_PALE], [1, cell_colour(VERMILLION, _DEEPEST)]]
        if signed
        else [[0, CELL_PALE], [1, cell_colour(colour, _DEEPEST)]]
    )
    text = [[_spelled(v, form) for v in row] for row in values]
    figure.add_heatmap(
        z=[[float(v) if np.isfinite(v) else None for v in row] for row in values],
        x=list(columns),
        y=list(rows),
        text=text,
        texttemplate="%{text}",
        textfont={"color": CELL_TEXT},
        customdata=notes or text,
        hovertemplate=f"{y_title} %{{y}}, {x_title} %{{x}}: %{{customdata}}<extra></extra>",
        colorscale=scale,
        zmin=low,
        zmax=high,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(type="category", showline=False)
    return figure


def _spelled(value: float, form: str) -> str:
    """With a true minus sign, and none before a zero."""
    said = format(value, form) if np.isfinite(value) else ""
    return (said.removeprefix("-") if said and not float(said) else said).replace("-", "−")


def firing_board(rules: Rules, values: np.ndarray, *, token: int, title: str) -> "plotly.graph_objects.Figure":
    """A value for every (cell, digit), digits of a cell laid out like a box; the neuron's own pair is framed."""
    values = np.asarray(values, np.float64)
    if values.shape != (rules.n_cells, rules.n):
        raise InputError(f"values of shape {values.shape}; expected {rules.n_cells} cells and {rules.n} digits")
    high, wide = rules.box
    side_y, side_x = rules.n * high, rules.n * wide
    grid = np.full((side_y, side_x), np.nan)
    names = [["" for _ in range(side_x)] for _ in range(side_y)]
    places = {}
    for cell in range(rules.n_cells):
        row, column = divmod(cell, rules.n)
        for digit in range(rules.n):
            down, over = divmod(digit, wide)
            places[cell * rules.n + digit] = at = row * high + down, column * wide + over
            grid[at] = values[cell, digit]
            names[at[0]][at[1]] = f"R{row + 1}C{column + 1}={digit + 1}"
    reach = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0, 1e-9)
    figure = blank(height=300, margin={"l": 4, "r": 4, "t": 4, "b": 4})
    figure.add_heatmap(
        z=[[float(v) if np.isfinite(v) else None for v in row] for row in grid],
        customdata=names,
        hovertemplate=f"%{{customdata}}: %{{z:.2f}} {title}<extra></extra>",
        colorscale=[[0, BLUE], [0.5, soft(GREY, 0.08)], [1, VERMILLION]],
        zmin=-reach,
        zmax=reach,
        colorbar={"title": {"text": title, "side": "right"}, "thickness": 10, "len": 0.8, "outlinewidth": 0},
    )
    for i in range(rules.n + 1):
        for kind, per in (("x", wide), ("y", high)):
            box = wide if kind == "x" else high
            line = {"color": GREY, "width": 2 if i % box == 0 else 0.7}
            at, end = i * per - 0.5, (side_y if kind == "x" else side_x) - 0.5
            ends = (
                {"x0": at, "x1": at, "y0": -0.5, "y1": end}
                if kind == "x"
                else {"y0": at, "y1": at, "x0": -0.5, "x1": end}
            )
            figure.add_shape(type="line", line=line, **ends)
    y, x = places[token]
    frame = {"color": GREEN, "width": 3}
    figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=frame)
    figure.update_xaxes(visible=False, range=[-0.6, side_x - 0.4], constrain="domain")
    figure.update_yaxes(visible=False, range=[side_y - 0.4, -0.6], scaleanchor="x", constrain="domain")
    return figure
