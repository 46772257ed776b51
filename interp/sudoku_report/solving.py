"""The page's section on training and solving, with solved boards."""

import math
from typing import TYPE_CHECKING

import numpy as np

from interp.page.numbers import number
from interp.sudoku.board import Rules, candidates
from interp.sudoku.replay import replay
from interp.sudoku.solving_study import Example, SolvingStudy
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import Reason

if TYPE_CHECKING:
    from interp.figures.sudoku_boards import Board
    from interp.page import Figure, Part, Section

_WHY = {
    int(Reason.NAKED): "naked single",
    int(Reason.HIDDEN): "hidden single",
    int(Reason.GUESS): "not forced",
}
_COLUMNS = [
    "model",
    "board",
    "layers",
    "heads",
    "width",
    "weights",
    "puzzles of training",
    "unseen puzzles",
    "solved",
    "from",
    "to",
    "empty cells filled rightly",
    "with an illegal move",
]
_MOST = 12


def solving_section(solving: dict[str, SolvingStudy]) -> "Section":
    """What was trained, curves, rates, and boards of the first model."""
    from interp.page import Row, Section, Table

    rows = [_row(name, one) for name, one in solving.items()]
    parts: list[Part] = [Table(_COLUMNS, rows, title="Models and unseen puzzles; intervals are Wilson's, 95 %")]
    if curves := _curves(solving):
        parts.append(Row(curves))
    name, first = next(iter(solving.items()))
    parts += [_board_figure(name, first, example, i) for i, example in enumerate(first.examples[:2])]
    lead = (
        "Tokens are placements such as R1C2=3. A sequence holds the clues in random order, END_CLUES, and moves up to "
        "SUCCESS; the loss counts every forced move as right. Unseen means that no symmetry of the board (digits "
        "renamed, rows, columns, bands and stacks permuted, transposed) takes a test puzzle into one of training. The "
        "model writes its moves by itself, the likeliest first; a puzzle counts as solved when the board equals its "
        "solution."
    )
    return Section("Training and solving", parts, lead=lead)


def _row(name: str, one: SolvingStudy) -> list[str]:
    low, high = one.interval
    seen = f"{int(one.curve.puzzles[-1]):,}" if len(one.curve.puzzles) else "−"
    shape = [f"{one.n} × {one.n}, {one.kind}", str(one.n_layers), str(one.n_heads), str(one.d_model)]
    rates = [number(x, ".4f") for x in (one.rate, low, high, one.right_cells / max(1, one.cells))]
    return [name, *shape, f"{one.parameters:,}", seen, f"{one.puzzles:,}", *rates, f"{one.invalid:,}"]


def _curves(solving: dict[str, SolvingStudy]) -> "list[Figure]":
    from interp.figures.sudoku_curves import Line, interval_curves
    from interp.page import Figure

    nan = math.nan
    found = []
    for field, title, caption in (
        ("excess", "loss above its floor, nats", "The floor is the mean log of how many moves are right."),
        ("solved", "share of puzzles solved", "Unseen puzzles, while training."),
    ):
        lines = []
        for name, one in solving.items():
            pairs = zip(one.curve.puzzles.tolist(), getattr(one.curve, field).tolist(), strict=True)
            lines.append(Line(name, [(float(x), y, nan, nan) for x, y in pairs if math.isfinite(y)]))
        if any(line.points for line in lines):
            logarithmic = field == "excess" and all(p[1] > 0 for line in lines for p in line.points)
            plot = interval_curves(lines, x_title="puzzles of training", y_title=title, log_y=logarithmic)
            found.append(Figure(plot, f"{title[0].upper()}{title[1:]}", caption))
    return found


def _board_figure(name: str, one: SolvingStudy, example: Example, index: int) -> "Figure":
    from interp.figures.sudoku_boards import boards_figure
    from interp.page import Figure

    rules = Rules.of(one.n)
    boards = moves_of(rules, example)
    whole = bool((_final(rules, example) == example.solution).all())
    caption = (
        f"Bold on grey: clues. Plain: the model's own. Small: candidates, digits that row, column and box leave. "
        f"Orange: the move it makes next. First {len(boards) - 1} moves and the last board, which is "
        f"{'the solution' if whole else 'not the solution'}."
    )
    columns, side = (6, 180) if one.n < 9 else (4, 270)  # what fills the page; nine candidates need cells of 30 pixels
    return Figure(
        boards_figure(rules, boards, columns=columns, side=side), f"{name}: unseen puzzle {index + 1}", caption
    )


def moves_of(rules: Rules, example: Example, *, most: int = _MOST) -> "list[Board]":
    """A board before each of the first placements, and the last board."""
    from interp.figures.sudoku_boards import Board

    words = Vocabulary(rules)
    given = example.puzzle > 0
    after = replay(rules, example.tokens[None]).boards[0]
    found = []
    for at in range(example.n_clues + 1, len(example.tokens)):
        token = int(example.tokens[at])
        if token >= words.n_placements or len(found) == most - 1:
            continue
        before = after[at - 1]
        why = _WHY.get(int(example.reasons[at]), "")
        title = f"{words.describe(token)} {why}"
        open_ = candidates(rules, before[None])[0]
        found.append(Board(before, title, given, open_, (words.cell(token), words.digit(token))))
    return [*found, Board(_final(rules, example), "at the end", given)]


def _final(rules: Rules, example: Example) -> np.ndarray:
    return replay(rules, example.tokens[None]).boards[0, -1]
