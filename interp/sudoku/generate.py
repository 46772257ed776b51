"""Puzzles with one solution, each a function of the seed and its number.

    minimal   a full grid from which clues were taken in random order while the solution stayed the only one
    dense     a minimal puzzle with a share of its empty cells given back, uniform from 10 to 90 %

Item i is the same whatever the count and the number of workers: puzzles 1,000 to 1,999 are `first=1000, count=1000`.
Minimal 9x9 puzzles made this way have 24.4 clues in the mean, like the puzzles of arXiv 2605.18847; dense boards are
our own addition, for sizes on which a minimal puzzle shows too little to tell world models apart.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int8

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.jit import kernels
from interp.sudoku.workers import check_seed, spread

Kind = Literal["minimal", "dense"]
KINDS = ("minimal", "dense")


class PuzzleSet(NamedTuple):
    """Puzzles and their solutions."""

    puzzles: Int8[np.ndarray, "b cells"]
    solutions: Int8[np.ndarray, "b cells"]


def generate(
    rules: Rules, count: int, *, kind: Kind = "minimal", seed: int, first: int = 0, workers: int = 1
) -> PuzzleSet:
    """Puzzles `first` to `first + count - 1` of the seed."""
    if kind not in KINDS:
        raise InputError(f"kind of puzzle is {kind!r}; it must be one of {', '.join(map(repr, KINDS))}")
    if count < 0:
        raise InputError(f"count is {count}; it must be 0 or more")
    check_seed(seed, first)
    k, cells = kernels(), rules.n_cells
    tables = k.tables(rules)

    def job(start: int, stop: int) -> PuzzleSet:
        size = stop - start
        puzzles, solutions = k.zeros(size * cells), k.zeros(size * cells)
        scratch = k.zeros(cells), k.zeros(3 * rules.n), k.zeros(4 * cells), k.zeros(4), k.zeros(cells), k.zeros(cells)
        k.call.make_puzzles(*tables, seed, first + start, size, kind == "dense", puzzles, solutions, *scratch)
        return PuzzleSet(*(np.array(found, np.int8).reshape(size, cells) for found in (puzzles, solutions)))

    parts = list(spread(job, count, workers)) or [PuzzleSet(*(np.zeros((0, cells), np.int8) for _ in range(2)))]
    return PuzzleSet(*(np.concatenate(column) for column in zip(*parts, strict=True)))
