"""Cosines of probes and of the unembedding: planted directions give the derived values, fitted probes come near."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.probes import LinearProbe, fit_logistic
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.geometry import RELATIONS, candidate_geometry, expected_cosines, grouped_unembedding, relations
from interp.sudoku.labels import labels
from interp.sudoku.oracle import cell_code, substructure_code


def probe_of(weight: torch.Tensor) -> LinearProbe:
    """Weights of candidates: cells digits d."""
    flat = weight.reshape(-1, 1, weight.shape[2])
    return LinearProbe("logistic", flat, flat.new_zeros(len(flat), 1), flat.new_zeros(len(flat)))


def test_relations_on_the_paper_s_board():
    kind = relations(Rules.of(9))
    names = [RELATIONS[k] if k >= 0 else "self" for k in kind[0]]
    assert names[1] == names[2] == "row & box" and names[9] == "column & box" and names[10] == "box"
    assert names[3] == "row" and names[27] == "column" and names[12] == "band" and names[28] == "stack"
    assert names[30] == "none" and names[0] == "self"
    # 20 peers: 2 + 2 + 4 in the box, 6 in row and column; 12 other cells of band and stack each; 36 apart.
    assert {name: names.count(name) for name in RELATIONS} == dict(
        zip(RELATIONS, (2, 2, 6, 6, 4, 12, 12, 36), strict=True)
    )
    assert (kind == kind.T).all()


def test_derived_cosines():
    nine = expected_cosines(Rules.of(9))
    assert nine["row & box"] == pytest.approx((2 / 3, 13 / 20)) and nine["row"] == pytest.approx((1 / 3, 7 / 20))
    assert nine["box"] == pytest.approx((1 / 3, 7 / 20))
    assert nine["stack"] == pytest.approx((0, 6 / 20)) and nine["none"] == pytest.approx((0, 2 / 20))


@pytest.mark.parametrize("n", [4, 6, 9])
def test_planted_directions_have_the_derived_cosines(n):
    rules = Rules.of(n)
    units = torch.eye(3 * n * n, dtype=torch.float64).reshape(3 * n, n, -1)
    cells = torch.eye(n**3, dtype=torch.float64).reshape(n * n, n, -1)
    by_units = -units[torch.from_numpy(rules.units_of.astype(np.int64))].sum(1)
    by_cells = -cells[torch.from_numpy(rules.peers.astype(np.int64))].sum(1)
    for row in candidate_geometry(rules, probe_of(by_units)):
        assert (
            row.cosine.value == pytest.approx(row.substructure, abs=1e-12) and row.cosine.high - row.cosine.low < 1e-9
        )
    for row in candidate_geometry(rules, probe_of(by_cells)):
        assert row.cosine.value == pytest.approx(row.cell_wise, abs=1e-12)


def test_fitted_probes_tell_the_codes_apart_where_no_unit_is_shared():
    rules = Rules.of(6)
    boards = generate(rules, 2500, kind="dense", seed=0).puzzles
    own = labels(rules, boards, "candidates")
    found = {}
    for name, code in (("units", substructure_code), ("cells", cell_code)):
        probe = fit_logistic(code(rules, boards), own.y, mask=own.mask, dtype=torch.float32, tol=1e-3)
        found[name] = {row.group: row.cosine.value for row in candidate_geometry(rules, probe)}
    for group in ("stack", "band"):
        assert abs(found["units"][group]) < 0.08 and found["cells"][group] > 0.15
    assert abs(found["units"]["none"]) < 0.05
    for group in ("row & box", "column & box"):
        assert found["units"][group] > found["units"]["row"] > 0.25


def test_groups_of_a_planted_unembedding():
    """W = a cell's vector + a digit's: half of the squared norm is shared with the cell, half with the digit."""
    rules = Rules.of(9)
    vectors = torch.eye(90, dtype=torch.float64)
    weight = (vectors[:81, None] + vectors[None, 81:]).reshape(729, 90)
    found = {row.group: row for row in grouped_unembedding(rules, weight)}
    assert found["same row, column, box"].cosine.value == pytest.approx(0.5, abs=0.08)
    for name, row in found.items():
        expected = 0.5 if "digit" in name else 0.0
        if name != "same row, column, box":
            assert row.cosine.value == pytest.approx(expected, abs=0.08), name
    assert sum(row.pairs for row in found.values()) == 729 * 728 // 2
    shifted = grouped_unembedding(rules, weight + torch.arange(90.0, dtype=torch.float64))
    for one in shifted:  # a vector added to every row changes nothing
        assert one.cosine.value == pytest.approx(found[one.group].cosine.value, abs=1e-9)


def test_a_probe_of_something_else_is_refused():
    with pytest.raises(InputError, match="expected the 64 binary ones of candidates"):
        candidate_geometry(Rules.of(4), probe_of(torch.zeros(12, 4, 3)))
