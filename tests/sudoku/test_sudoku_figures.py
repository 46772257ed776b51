"""Figures of Sudoku studies hold the numbers they are given at the right places, and refuse what has none."""

import subprocess
import sys

import numpy as np
import pytest

from interp.errors import InputError
from interp.figures.dots import Dots
from interp.figures.sudoku_boards import Board, boards_figure
from interp.figures.sudoku_curves import Line, interval_curves, margin_histogram, variants
from interp.figures.sudoku_grids import firing_board, number_grid
from interp.figures.sudoku_groups import count_boxes, group_dots
from interp.sudoku.board import Rules, candidates

NAN = float("nan")


def test_importing_them_does_not_load_plotly():
    code = "import sys\n" + "".join(f"import interp.figures.sudoku_{n}\n" for n in "boards curves grids groups".split())
    code += "sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("n", [4, 6])
def test_a_board_shows_digits_candidates_and_the_move(n: int):
    rules = Rules.of(n)
    grid = np.zeros(n * n, np.int8)
    grid[0], grid[n + 2] = 1, 3
    open_ = candidates(rules, grid[None])[0]
    board = Board(grid, "R1C4=2", grid == 1, open_, (3, 2))
    figure = boards_figure(rules, [board, board._replace(move=None)], columns=2)
    texts = [(x, y, t) for trace in figure.data for x, y, t in zip(trace.x, trace.y, trace.text, strict=True)]
    by_board = [[t for t in texts if t[0] < 1.05], [t for t in texts if t[0] > 1.05]]
    for number, found in enumerate(by_board):
        words = [t for _, _, t in found]
        assert words.count("<b>1</b>") == 1 and words.count("3") == 1 + open_[:, 2].sum() - (number == 0) * open_[3, 2]
        assert words.count("<b>2</b>") == (number == 0) and "R1C4=2" in words
    # The move stands in the middle of its cell, and the ground is that cell.
    x, y = next((x, y) for x, y, t in texts if t == "<b>2</b>")
    assert x == pytest.approx(3.5 / n) and y == pytest.approx(0.13 + 0.5 / n)
    grounds = [s for s in figure.layout.shapes if s.type == "rect"]
    assert len(grounds) == 3  # a clue on either board, a move on one
    assert any(s.x0 == pytest.approx(3 / n) and s.x1 == pytest.approx(4 / n) for s in grounds)
    thick = [s for s in figure.layout.shapes if s.type == "line" and s.line.width == 2]
    high, wide = rules.box
    assert len(thick) == 2 * (n // high + 1 + n // wide + 1)


def test_boards_of_another_size_are_refused():
    with pytest.raises(InputError, match="a board of 16 cells; expected 36"):
        boards_figure(Rules.of(6), [Board(np.zeros(16, np.int8))])
    with pytest.raises(InputError, match="0 boards in 4 columns"):
        boards_figure(Rules.of(4), [])


def test_curves_hold_values_intervals_and_levels():
    lines = [Line("a", [(0, 0.5, 0.4, 0.6), (1, NAN, NAN, NAN), (2, 0.7, 0.6, 0.9)]), Line("b", [(0, 0.1, NAN, NAN)])]
    figure = interval_curves(lines, x_title="layer", y_title="y", levels={"ceiling": 0.8}, bounds=(0, 1), reverse=True)
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert list(drawn) == ["a", "b", "ceiling 0.800"]
    assert list(drawn["a"].x) == [0, 2] and list(drawn["a"].y) == [0.5, 0.7]
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(band.x) == [0, 2, 2, 0] and list(band.y) == [0.4, 0.6, 0.9, 0.6]
    assert list(drawn["ceiling 0.800"].y) == [0.8, 0.8] and figure.layout.xaxis.autorange == "reversed"
    with pytest.raises(InputError, match="no finite points"):
        interval_curves([Line("a", [(0, NAN, NAN, NAN)])], x_title="x", y_title="y")


def test_no_two_variants_look_alike():
    drawn = [look for source in variants(4, 3) for look in source]
    assert len(set(drawn)) == 12 and len({look.colour for look in drawn}) == 4


def test_the_histogram_wants_an_edge_more_than_bins():
    figure = margin_histogram(np.array([0.0, 1.0, 3.0]), np.array([4, 5]), x_title="m", y_title="n")
    assert list(figure.data[0].x) == [0.5, 2.0] and list(figure.data[0].y) == [4, 5]
    assert list(figure.data[0].width) == [1.0, 2.0]
    with pytest.raises(InputError, match="2 edges for 2 bins"):
        margin_histogram(np.arange(2.0), np.array([1, 2]), x_title="m", y_title="n")


def test_a_grid_spells_its_numbers():
    figure = number_grid(
        np.array([[0.5, NAN], [-1.0, 2.0]]), rows="ab", columns="xy", x_title="x", y_title="y", signed=True
    )
    heat = figure.data[0]
    assert [list(row) for row in heat.text] == [["0.50", ""], ["−1.00", "2.00"]]
    assert (heat.zmin, heat.zmax) == (-2, 2) and heat.z[0][1] is None and figure.layout.yaxis.autorange == "reversed"
    with pytest.raises(InputError, match=r"a grid of \(1, 2\) for 2 rows and 2 columns"):
        number_grid(np.ones((1, 2)), rows="ab", columns="xy", x_title="x", y_title="y")
    with pytest.raises(InputError, match="and numbers"):
        number_grid(np.full((2, 2), NAN), rows="ab", columns="xy", x_title="x", y_title="y")


@pytest.mark.parametrize(
    ("n", "cell", "digit", "row", "column"), [(4, 6, 3, 3, 4), (6, 8, 5, 3, 7), (9, 80, 9, 26, 26)]
)
def test_a_firing_board_lays_digits_out_like_a_box(n: int, cell: int, digit: int, row: int, column: int):
    """4x4: cell R2C3, digit 3 is the lower left of 2x2; 6x6: R2C3, digit 5 in the middle below; 9x9: the corner."""
    rules = Rules.of(n)
    values = np.full((n * n, n), NAN)
    values[cell, digit - 1] = 7.0
    figure = firing_board(rules, values, token=cell * n + digit - 1, title="t")
    grid = figure.data[0].z
    assert [(i, j) for i, line in enumerate(grid) for j, v in enumerate(line) if v == 7.0] == [(row, column)]
    frame = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (column - 0.5, column + 0.5, row - 0.5, row + 0.5)
    with pytest.raises(InputError, match="expected"):
        firing_board(rules, values[:, :-1], token=0, title="t")


def test_dots_carry_their_intervals_and_predictions_their_places():
    series = [Dots("a", [(0.5, 0.4, 0.7), (NAN, NAN, NAN)]), Dots("b", [(0.1, 0.0, 0.2), (0.3, 0.2, 0.4)])]
    figure = group_dots(["row", "none"], series, y_title="cosine", predictions={"units": [1 / 3, 0.0]})
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn["units"].y) == [1 / 3, 1 / 3, None, 0.0, 0.0, None]
    assert list(drawn["b"].y) == [0.1, 0.3] and list(drawn["b"].error_y.array) == pytest.approx([0.1, 0.1])
    assert list(drawn["a"].error_y.arrayminus) == pytest.approx([0.1, 0.0])
    assert drawn["a"].x[0] < 0 < drawn["b"].x[0] and list(figure.layout.xaxis.ticktext) == ["row", "none"]
    with pytest.raises(InputError, match="expected a value each"):
        group_dots(["row"], series, y_title="y")


def test_boxes_are_the_quantiles_given():
    rows = np.array([[0, 1, 2, 3, 4], [NAN] * 5, [1, 1, 2, 5, 9]], float)
    box = count_boxes(["filled", "1", "2"], rows, x_title="x", y_title="y").data[0]
    assert list(box.x) == ["filled", "2"] and list(box.median) == [2, 2] and list(box.upperfence) == [4, 9]
    assert list(box.q1) == [1, 1] and list(box.q3) == [3, 5] and list(box.lowerfence) == [0, 1]
    with pytest.raises(InputError, match="every row of quantiles is empty"):
        count_boxes(["1"], np.full((1, 5), NAN), x_title="x", y_title="y")
    with pytest.raises(InputError, match="expected five for each of 1 names"):
        count_boxes(["1"], np.zeros((1, 4)), x_title="x", y_title="y")
