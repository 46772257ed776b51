"""Codes of boards that are known to be of one kind: what a probe reads from them is a ceiling, or a planted truth.

    substructure   the 3 n^2 bits "digit d stands in unit u"
    cell           the n^3 bits "digit d stands in cell c" (one-hot; all 0 where empty)
    projected      a code times a random matrix with entries N(0, 1 / d): what is left of it in d dimensions

Cells can be read from the substructure code only as far as the units of a cell give them away, so its cell-state
accuracy is a ceiling for every linear function of it; the cell code has none. Rank of the substructure code: below
3 n^2, since rows, columns and boxes of a band tell of the same cells.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.labels import cell_state, substructure


def substructure_code(rules: Rules, boards: Int[np.ndarray, "m cells"]) -> Float[Tensor, "m d"]:
    """3 n^2 bits, by unit and digit."""
    return torch.from_numpy(substructure(rules, boards).reshape(len(boards), -1)).float()


def cell_code(rules: Rules, boards: Int[np.ndarray, "m cells"]) -> Float[Tensor, "m d"]:
    """n^3 bits, by cell and digit."""
    hot = cell_state(rules, boards)[:, :, None] == np.arange(1, rules.n + 1)
    return torch.from_numpy(hot.reshape(len(boards), -1)).float()


def random_projection(code: Float[Tensor, "m c"], d: int, *, seed: int) -> Float[Tensor, "m d"]:
    """The code in d dimensions, by a matrix that is a function of (its width, d, seed)."""
    if d < 1:
        raise InputError(f"d={d}: expected 1 dimension or more")
    maker = torch.Generator().manual_seed(seed)
    return code @ (torch.randn(code.shape[1], d, generator=maker) / d**0.5).to(code)
