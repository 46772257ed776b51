"""Boards of 4x4, 6x6 and 9x9 cells: which cells form a unit, which digits a cell may still take.

    unit u of n:  rows 0..n-1, then columns n..2n-1, then boxes 2n..3n-1        each of n cells
    candidate(cell, digit)  <=>  the cell is empty and no unit of the cell holds the digit

A grid is int8 `[cells]`, row-major, 0 = empty, digits 1..n. Boxes of the 6x6 board have 2 rows and 3 columns.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Int, Int8, Int16

from interp.errors import InputError

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


@dataclass(frozen=True)
class Rules:
    """The board of side `n`: 4, 6 or 9."""

    n: int

    def __post_init__(self) -> None:
        if self.n not in BOXES:
            raise InputError(f"there is no board of side {self.n!r} here; take one of {', '.join(map(str, BOXES))}")

    @staticmethod
    @lru_cache
    def of(n: int) -> "Rules":
        """The one shared value of each size, so that its tables are computed once."""
        return Rules(n)

    @property
    def box(self) -> tuple[int, int]:
        """Rows and columns of a box."""
        return BOXES[self.n]

    @property
    def n_cells(self) -> int:
        return self.n * self.n

    @property
    def full(self) -> int:
        """The bit mask of all digits: bit `digit - 1`."""
        return (1 << self.n) - 1

    @cached_property
    def units_of(self) -> Int[np.ndarray, "cells 3"]:
        """Row, column and box (as unit numbers) of each cell."""
        row, column = np.divmod(np.arange(self.n_cells), self.n)
        rows, columns = self.box
        box = row // rows * (self.n // columns) + column // columns
        return _fixed(np.stack([row, self.n + column, 2 * self.n + box], axis=1))

    @cached_property
    def units(self) -> Int[np.ndarray, "units n"]:
        """Cells of each unit, in ascending order."""
        return _fixed(np.stack([np.flatnonzero((self.units_of == u).any(axis=1)) for u in range(3 * self.n)]))

    @cached_property
    def peers(self) -> Int[np.ndarray, "cells peers"]:
        """Cells that share a unit with each cell, itself not among them, in ascending order."""
        shared = (self.units_of[:, None] == self.units_of[None]).any(axis=2)
        np.fill_diagonal(shared, False)
        return _fixed(np.stack([np.flatnonzero(row) for row in shared]))


def _fixed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def candidate_masks(rules: Rules, grids: Int8[np.ndarray, "b cells"]) -> Int16[np.ndarray, "b cells"]:
    """Candidates of each cell as bits `digit - 1`; 0 on filled cells."""
    digit = (1 << np.arange(rules.n + 1, dtype=np.int16) >> 1)[grids]
    used = np.bitwise_or.reduce(digit[:, rules.units], axis=2)  # [b units]
    row, column, box = rules.units_of.T
    return (rules.full ^ (used[:, row] | used[:, column] | used[:, box])) * (grids == 0)


def candidates(rules: Rules, grids: Int[np.ndarray, "b cells"]) -> Bool[np.ndarray, "b cells digits"]:
    """Digits that no unit of the cell holds yet; all False on filled cells."""
    return unpack(rules, candidate_masks(rules, as_grids(rules, grids)))


def unpack(rules: Rules, masks: Int16[np.ndarray, "b cells"]) -> Bool[np.ndarray, "b cells digits"]:
    """Bit masks as booleans, one for each digit."""
    return (np.arange(rules.full + 1)[:, None] >> np.arange(rules.n) & 1).astype(bool)[masks]


def as_grids(rules: Rules, grids: Int[np.ndarray, "b c"]) -> Int8[np.ndarray, "b c"]:
    """The grids as int8, refused where they cannot be boards of these rules."""
    if grids.shape[1] != rules.n_cells:
        raise InputError(
            f"grids have {grids.shape[1]} cells, but a board of side {rules.n} has {rules.n_cells}; "
            f"give the rules that fit, or grids of shape [m, {rules.n_cells}]"
        )
    if grids.size and not (0 <= grids.min() and grids.max() <= rules.n):
        raise InputError(
            f"grids hold values from {grids.min()} to {grids.max()}; cells of a board of side {rules.n} hold "
            f"0 (empty) or digits 1 to {rules.n}"
        )
    return grids.astype(np.int8, copy=False)
