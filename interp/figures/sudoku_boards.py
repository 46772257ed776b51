"""Boards drawn side by side: givens, what was filled in, candidates, the move that comes next.

The page sets the colour of all text, so that kinds of cells differ in ground and weight: givens bold on grey, filled
digits plain, the next move bold on orange, candidates small.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.errors import InputError
from interp.figures.attention_style import soft
from interp.figures.style import GREY, VERMILLION, blank
from interp.sudoku.board import Rules

if TYPE_CHECKING:
    import plotly.graph_objects

_GAP = 0.14  # between boards, in sides of a board
_HEAD = 0.13  # for a board's title


class Board(NamedTuple):
    """What is drawn of one board."""

    grid: np.ndarray
    """cells; 0 where empty."""
    title: str = ""
    given: np.ndarray | None = None
    """cells; which are clues."""
    candidates: np.ndarray | None = None
    """cells x digits; drawn where the cell is empty."""
    move: tuple[int, int] | None = None
    """(cell, digit): written into the cell and marked."""


def boards_figure(
    rules: Rules, boards: Sequence[Board], *, columns: int = 4, side: int = 190
) -> "plotly.graph_objects.Figure":
    """All boards in rows of `columns`, `side` pixels each, and as wide: digits would not shrink with their boards."""
    if not boards or columns < 1:
        raise InputError(f"{len(boards)} boards in {columns} columns; expected one or more of each")
    if wrong := [len(board.grid) for board in boards if len(board.grid) != rules.n_cells]:
        raise InputError(f"a board of {wrong[0]} cells; expected {rules.n_cells}")
    rows, columns = math.ceil(len(boards) / columns), min(columns, len(boards))
    across, down = columns * (1 + _GAP) - _GAP, rows * (1 + _GAP + _HEAD) - _GAP
    size = {"width": round((across + 0.02) * side) + 8, "height": round((down + 0.02) * side) + 12}
    figure = blank(**size, margin={"l": 4, "r": 4, "t": 6, "b": 6}, dragmode=False)
    hidden: dict[str, Any] = {"visible": False, "fixedrange": True}
    figure.update_xaxes(range=[-0.01, across + 0.01], constrain="domain", **hidden)
    figure.update_yaxes(range=[down + 0.01, -0.01], scaleanchor="x", constrain="domain", **hidden)
    texts = _Texts()
    shapes: list[dict[str, Any]] = []
    for number, board in enumerate(boards):
        row, column = divmod(number, columns)
        x, y = column * (1 + _GAP), row * (1 + _GAP + _HEAD)
        texts.add(x, y + 0.55 * _HEAD, board.title, 12, "middle right")
        shapes += _board(rules, board, x, y + _HEAD, texts, side)
    figure.update_layout(shapes=shapes)
    texts.draw(figure)
    return figure


class _Texts:
    """Texts by size and place: one trace for each."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, str], list[tuple[float, float, str]]] = {}

    def add(self, x: float, y: float, text: str, size: int, place: str = "middle center") -> None:
        if text:
            self.held.setdefault((size, place), []).append((x, y, text))

    def draw(self, figure: "plotly.graph_objects.Figure") -> None:
        for (size, place), many in self.held.items():
            x, y, text = zip(*many, strict=True)
            figure.add_scatter(
                x=x, y=y, text=text, mode="text", textposition=place, textfont={"size": size}, hoverinfo="skip"
            )


def _board(rules: Rules, board: Board, x: float, y: float, texts: _Texts, side: int) -> list[dict[str, Any]]:
    n, step = rules.n, 1 / rules.n
    move = board.move[0] if board.move is not None else -1
    grounds: list[dict[str, Any]] = []
    for cell in range(rules.n_cells):
        row, column = divmod(cell, n)
        left, top = x + column * step, y + row * step
        middle = left + step / 2, top + step / 2
        given = board.given is not None and bool(board.given[cell])
        big = round(0.5 * side / n)
        if cell == move:
            assert board.move is not None
            grounds.append(_square(left, top, step, soft(VERMILLION, 0.25)))
            texts.add(*middle, f"<b>{board.move[1]}</b>", big)
        elif board.grid[cell]:
            if given:
                grounds.append(_square(left, top, step, soft(GREY, 0.22)))
            digit = int(board.grid[cell])
            texts.add(*middle, f"<b>{digit}</b>" if given else str(digit), big)
        elif board.candidates is not None:
            high, wide = rules.box
            for digit in np.flatnonzero(board.candidates[cell]).tolist():
                down, over = divmod(digit, wide)
                place = left + (over + 0.5) * step / wide, top + (down + 0.5) * step / high
                texts.add(*place, str(digit + 1), max(8, round(0.2 * side / n)))
    return grounds + _lines(rules, x, y)


def _square(left: float, top: float, step: float, colour: str) -> dict[str, Any]:
    return {
        "type": "rect",
        "x0": left,
        "x1": left + step,
        "y0": top,
        "y1": top + step,
        "fillcolor": colour,
        "line": {"width": 0},
        "layer": "below",
    }


def _lines(rules: Rules, x: float, y: float) -> list[dict[str, Any]]:
    """Of cells thin, of boxes thick."""
    high, wide = rules.box
    found = []
    for i in range(rules.n + 1):
        at = i / rules.n
        for ends, every in (((x + at, y, x + at, y + 1), wide), ((x, y + at, x + 1, y + at), high)):
            x0, y0, x1, y1 = ends
            line = {"color": GREY, "width": 2 if i % every == 0 else 0.6}
            found.append({"type": "line", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line})
    return found
