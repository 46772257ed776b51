"""What a board is, said in ways that a world model might say it: labels of probes.

    cell state          digit of each cell (0 where empty)          a board of cells
    cell candidates     digits not yet excluded in each empty cell  a board of candidates
    substructure state  digits present in each row, column and box  a board of units

The substructure state is a linear function of the cells' one-hot code (sum the cells of a unit), and candidates are an
AND of three of its bits; cell states are not a function of it, which is what tells the codes apart.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int8, Shaped
from torch import Tensor

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids, candidates

TARGETS = ("cell state", "candidates", "substructure", "filled")


def cell_state(rules: Rules, boards: Int[np.ndarray, "m cells"]) -> Int8[np.ndarray, "m cells"]:
    """0 for an empty cell, else its digit."""
    return as_grids(rules, boards)


def filled(rules: Rules, boards: Int[np.ndarray, "m cells"]) -> Bool[np.ndarray, "m cells"]:
    """Which cells hold a digit."""
    return as_grids(rules, boards) > 0


def substructure(rules: Rules, boards: Int[np.ndarray, "m cells"]) -> Bool[np.ndarray, "m units digits"]:
    """Which digits each row, column and box holds."""
    held = as_grids(rules, boards)[:, rules.units]  # [m units n]
    return (held[:, :, :, None] == np.arange(1, rules.n + 1)).any(axis=2)


@dataclass(frozen=True)
class Labels:
    """One target as `interp.probes` takes it."""

    y: Shaped[Tensor, "n q"]
    mask: Bool[Tensor, "n q"] | None
    classes: int | None
    group: int
    """Outputs that must all be right for an exact match: the digits of a cell or unit."""

    def rows(self, chosen: Int[np.ndarray, " k"] | slice) -> "Labels":
        """Of these boards only."""
        which = chosen if isinstance(chosen, slice) else torch.from_numpy(np.asarray(chosen))
        return Labels(self.y[which], None if self.mask is None else self.mask[which], self.classes, self.group)


def labels(rules: Rules, boards: Int[np.ndarray, "m cells"], target: str) -> Labels:
    """The target's labels of each board.

    Cell state: an output of n classes for each cell, on the boards where it is filled. Candidates: n binary outputs for
    each cell, where it is empty. Substructure: n for each of the 3 n units. Filled: one for each cell.
    """
    n, m = rules.n, len(boards)
    if target == "cell state":
        state = torch.from_numpy(cell_state(rules, boards).astype(np.int64))
        return Labels((state - 1).clamp_min(0), state > 0, n, 1)
    if target == "candidates":
        may = torch.from_numpy(candidates(rules, boards).reshape(m, -1))
        empty = torch.from_numpy(np.repeat(~filled(rules, boards), n, axis=1))
        return Labels(may, empty, None, n)
    if target == "substructure":
        return Labels(torch.from_numpy(substructure(rules, boards).reshape(m, -1)), None, None, n)
    if target == "filled":
        return Labels(torch.from_numpy(filled(rules, boards)), None, None, 1)
    raise InputError(f"{target!r} is no target of a probe; expected one of {', '.join(TARGETS)}")
