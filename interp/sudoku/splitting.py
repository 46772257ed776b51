"""Which puzzles training never sees: a split by what a puzzle is, not by when it was drawn.

    held out  <=>  h(puzzle) < fraction * 2^64,     h(g puzzle) = h(puzzle) for every symmetry g

Small boards have few puzzles, and millions of draws meet nearly all of them, so "drawn with another seed" would mean
nothing. Here a puzzle and all its images (digits renamed; rows, columns, bands and stacks permuted; transposed) fall on
one side, and the side depends on nothing else. "Unseen" then means: no puzzle that differs from this one by a symmetry
was ever trained on; and a symmetry of a training puzzle is a training puzzle again, so augmenting keeps the split.

h is the colour refinement of Weisfeiler and Leman on cells: each starts with whether it is filled and takes in, ROUNDS
times, the colours of its row, its column (the two added, since they trade places when transposed), its box, and the
cells that hold its digit. Equivalent puzzles get equal hashes for certain; others may, which makes the split coarser,
never leaky. Own construction; the paper splits its list of puzzles at random.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt64

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids

HELD_OUT = 0.1
"""The paper holds out 5 % to choose and 5 % to test."""
ROUNDS = 4
PART = 8192
"""Puzzles at a time: a 9x9 board takes 6 kB on the way."""

_FILLED, _LINE, _BOX, _DIGIT, _SUM = (np.uint64(k) for k in (0x51, 0x52, 0x53, 0x54, 0x55))


def held_out(
    rules: Rules, puzzles: Int[np.ndarray, "b cells"], *, fraction: float = HELD_OUT
) -> Bool[np.ndarray, " b"]:
    """Which puzzles belong to the side that is never trained on."""
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}: expected the share of puzzles to hold out, between 0 and 1")
    return symmetric_hash(rules, puzzles) < np.uint64(int(fraction * 2**64))


def symmetric_hash(rules: Rules, puzzles: Int[np.ndarray, "b cells"]) -> UInt64[np.ndarray, " b"]:
    """h: equal for puzzles that a symmetry takes into each other."""
    parts = np.split(as_grids(rules, puzzles), range(PART, len(puzzles), PART))
    return np.concatenate([_hash(rules, part) for part in parts])


def _hash(rules: Rules, grids: Int[np.ndarray, "b cells"]) -> UInt64[np.ndarray, " b"]:
    holds = grids[:, :, None] == np.arange(1, rules.n + 1, dtype=np.int8)  # [b cells digits]
    colour = _mix((grids > 0).astype(np.uint64), _FILLED)
    row, column, box = rules.units_of.T
    for _ in range(ROUNDS):
        lines = _mix(colour, _LINE)[:, rules.units[: 2 * rules.n]].sum(axis=2)
        boxes = _mix(colour, _BOX)[:, rules.units[2 * rules.n :]].sum(axis=2)
        digits = np.where(holds, _mix(colour, _DIGIT)[:, :, None], np.uint64(0)).sum(axis=1)
        same = np.where(holds, _mix(digits, _DIGIT)[:, None], np.uint64(0)).sum(axis=2)
        lines, boxes = _mix(lines, _LINE), _mix(boxes, _BOX)
        colour = _mix(_mix(colour, _SUM) + lines[:, row] + lines[:, column] + boxes[:, box - 2 * rules.n] + same, _SUM)
    return _mix(_mix(colour, _FILLED).sum(axis=1), _SUM)


def _mix(x: np.ndarray, salt: np.uint64) -> np.ndarray:
    """A bijection of 64-bit numbers that looks random (the finaliser of SplitMix64), another one for each salt."""
    x = x + salt * np.uint64(0x9E3779B97F4A7C)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
