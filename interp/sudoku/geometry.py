"""How the probes for one digit's candidates in two cells lie to each other, and how the rows of W_U do.

    cos(w_c, w_c')  of the candidate probes of one digit,  the mean over pairs of cells that share the same units

What to expect, of orthogonal unit vectors (the first is the paper's, arXiv 2605.18847; the second is our own):

    substructure   w_c = -(u_row + u_column + u_box)          cos = units shared / 3:  2/3, 1/3, 0
    cell-wise      w_c = -sum of the cells that see c         cos = cells that see both / cells that see one

On a 9x9 board the two are nearly the same where units are shared (.65 and .35 cell-wise), and differ where none is:
cells of one stack have .3 instead of 0, unrelated ones .1. Weights that a penalty and correlated digits shape come near
these values only; `tests/sudoku/test_sudoku_geometry.py` holds what planted codes give.

Groups of W_U: the rows of placements, 16 by whether row, column, box, digit are the same (those that occur), centred
over all placements, since a vector added to every row changes no probability among them.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.probe_metrics import Estimate
from interp.probes import LinearProbe
from interp.sudoku.board import Rules
from interp.sudoku.model import SudokuModel
from interp.sudoku.probe_records import GeometryRow

RELATIONS = ("row & box", "column & box", "row", "column", "box", "stack", "band", "none")


def relations(rules: Rules) -> Int[np.ndarray, "cells cells"]:
    """Index in `RELATIONS` of each pair of cells; -1 on the diagonal. A stack is the boxes above each other."""
    row, column, box = (rules.units_of[:, None, k] == rules.units_of[None, :, k] for k in range(3))
    cell = np.arange(rules.n_cells)
    stack, band = cell % rules.n // rules.box[1], cell // rules.n // rules.box[0]
    same_stack, same_band = (of[:, None] == of[None] for of in (stack, band))
    found = np.full(row.shape, RELATIONS.index("none"))
    for name, there in (  # from the weakest relation to the strongest
        ("band", same_band),
        ("stack", same_stack),
        ("box", box),
        ("column", column),
        ("row", row),
        ("column & box", column & box),
        ("row & box", row & box),
    ):
        found[there] = RELATIONS.index(name)
    np.fill_diagonal(found, -1)
    return found


def expected_cosines(rules: Rules) -> dict[str, tuple[float, float]]:
    """Substructure and cell-wise expectation of each relation that occurs on the board."""
    kind = relations(rules)
    shared = (rules.units_of[:, None] == rules.units_of[None]).sum(2) / 3
    sees = np.zeros((rules.n_cells, rules.n_cells))
    np.put_along_axis(sees, rules.peers, 1.0, axis=1)
    common = sees @ sees.T / rules.peers.shape[1]
    return {
        name: (float(shared[kind == i].mean()), float(common[kind == i].mean()))
        for i, name in enumerate(RELATIONS)
        if (kind == i).any()
    }


def candidate_geometry(rules: Rules, probe: LinearProbe) -> list[GeometryRow]:
    """Mean cosine of each relation, over digits and pairs; the interval is of the digits' means (normal)."""
    n, cells = rules.n, rules.n_cells
    if probe.classes is not None or len(probe.weight) != cells * n:
        raise InputError(f"a probe of {len(probe.weight)} outputs; expected the {cells * n} binary ones of candidates")
    w = torch.nn.functional.normalize(probe.weight[:, 0].double().reshape(cells, n, -1), dim=2)
    cosines = torch.einsum("cnd,knd->nck", w, w).cpu().numpy()
    kind = relations(rules)
    return [
        GeometryRow(name, _mean(cosines[:, kind == RELATIONS.index(name)].mean(1)), _pairs(kind, name), *expected)
        for name, expected in expected_cosines(rules).items()
    ]


def unembedding_geometry(model: SudokuModel) -> list[GeometryRow]:
    """Mean cosine of the groups of W_U, of weights alone; the expectations do not apply to it."""
    weight = model.hooked.hf.get_parameter("lm_head.weight").detach().double().cpu()
    return grouped_unembedding(model.rules, weight[: model.vocabulary.n_placements])


def grouped_unembedding(rules: Rules, weight: Float[Tensor, "p d"]) -> list[GeometryRow]:
    """The same of placements' rows."""
    w = torch.nn.functional.normalize(weight - weight.mean(0), dim=1)
    cosines = (w @ w.T).numpy()
    token = np.arange(len(w))
    cell, digit = token // rules.n, token % rules.n
    same = [rules.units_of[cell, k][:, None] == rules.units_of[cell, k][None] for k in range(3)]
    same.append(digit[:, None] == digit[None])
    code = sum(there.astype(int) << i for i, there in enumerate(same))
    upper = np.triu(np.ones_like(cosines, dtype=bool), 1)
    found = []
    for value in range(16):
        there = upper & (code == value)
        if there.any():
            names = [name for i, name in enumerate(("row", "column", "box", "digit")) if value >> i & 1]
            parts = [there & (digit == k)[:, None] for k in range(rules.n)]
            by_digit = [cosines[part].mean() for part in parts if part.any()]
            group = "same " + ", ".join(names) if names else "none"
            found.append(GeometryRow(group, _mean(np.array(by_digit), cosines[there].mean()), int(there.sum())))
    return found


def _pairs(kind: Int[np.ndarray, "cells cells"], name: str) -> int:
    return int((kind == RELATIONS.index(name)).sum()) // 2


def _mean(values: Float[np.ndarray, " n"], value: float | None = None) -> Estimate:
    middle = float(values.mean() if value is None else value)
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(middle, middle - half, middle + half)
