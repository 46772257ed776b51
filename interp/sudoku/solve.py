"""The solution of a puzzle, how many there are, and what is wrong with one that is no proper puzzle.

A proper puzzle has one solution. Search is by naked and hidden singles, then over the cell of fewest candidates; the
same search with its reasons written down is `interp.sudoku.traces.make_traces`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int, Int8, Int64

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids
from interp.sudoku.jit import kernels
from interp.sudoku.workers import spread

Solutions = tuple[Int64[np.ndarray, " b"], Int8[np.ndarray, "b cells"]]


def solve(rules: Rules, puzzle: Int[np.ndarray, " cells"]) -> Int8[np.ndarray, " cells"]:
    """The one solution; a puzzle with none, or with several, is refused."""
    return check_puzzles(rules, puzzle[None], name=lambda _: "the puzzle")[0]


def count_solutions(rules: Rules, puzzle: Int[np.ndarray, " cells"], limit: int = 2) -> int:
    """Number of solutions, counted up to `limit`."""
    if limit < 1:
        raise InputError(f"limit is {limit}; it must be 1 or more")
    grids = as_grids(rules, puzzle[None])
    return 0 if contradictions(rules, grids) else int(_solutions(rules, grids, limit, 1)[0][0])


def check_puzzles(
    rules: Rules,
    puzzles: Int[np.ndarray, "b cells"],
    *,
    workers: int = 1,
    name: Callable[[int], str] = lambda i: f"puzzle {i} (counted from 0)",
) -> Int8[np.ndarray, "b cells"]:
    """The solutions, if every puzzle has exactly one; else the first bad one is refused by `name` and reason."""
    grids = as_grids(rules, puzzles)
    bad = contradictions(rules, grids)
    stop = min(bad, default=len(grids))
    counts, solutions = _solutions(rules, grids[:stop], 2, workers)
    for i in np.flatnonzero(counts != 1)[:1].tolist():
        many = "has no solution" if counts[i] == 0 else "has more than one solution"
        raise InputError(f"{name(i)} {many}: {puzzle_text(grids[i])}; give puzzles with exactly one")
    if bad:
        raise InputError(f"{name(stop)} contradicts itself: {bad[stop]}; it is {puzzle_text(grids[stop])}")
    return solutions


def contradictions(rules: Rules, grids: Int8[np.ndarray, "b cells"]) -> dict[int, str]:
    """Grids in which a unit holds a digit twice, by number, with the first such unit."""
    counts = np.stack([(grids[:, rules.units] == digit).sum(axis=2) for digit in range(1, rules.n + 1)], axis=2)
    found: dict[int, str] = {}
    for grid, unit, digit in np.argwhere(counts > 1).tolist():
        kind, number = divmod(unit, rules.n)
        cells = [cell for cell in rules.units[unit].tolist() if grids[grid, cell] == digit + 1]
        places = " and ".join(f"R{cell // rules.n + 1}C{cell % rules.n + 1}" for cell in cells)
        found.setdefault(grid, f"{('row', 'column', 'box')[kind]} {number + 1} holds the digit {digit + 1} in {places}")
    return found


def puzzle_text(grid: Int8[np.ndarray, " cells"]) -> str:
    """A grid in one line, `.` for an empty cell."""
    return "".join(str(digit) if digit else "." for digit in grid.tolist())


def _solutions(rules: Rules, grids: Int8[np.ndarray, "b cells"], limit: int, workers: int) -> Solutions:
    """Number of solutions of each grid (up to `limit`) and the first of them. No grid contradicts itself."""
    k, cells = kernels(), rules.n_cells
    tables = k.tables(rules)

    def job(start: int, stop: int) -> Solutions:
        count = stop - start
        solutions, counts = k.zeros(count * cells), k.zeros(count)
        scratch = k.zeros(cells), k.zeros(3 * rules.n), k.zeros(4 * cells), k.zeros(4), k.zeros(cells)
        k.call.solve_puzzles(*tables, k.given(grids[start:stop]), count, limit, solutions, counts, *scratch)
        return np.array(counts, np.int64), np.array(solutions, np.int8).reshape(count, cells)

    parts = list(spread(job, len(grids), workers))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, cells), np.int8)
    return np.concatenate([counts for counts, _ in parts]), np.concatenate([found for _, found in parts])
