"""Labels, oracle codes, verdicts on planted activations, the crossing, and the study as a whole."""

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.probe_metrics import Counts, Estimate
from interp.sudoku import probe_study as module
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.labels import TARGETS, filled, labels, substructure
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model
from interp.sudoku.oracle import cell_code, random_projection, substructure_code
from interp.sudoku.probe_parts import Split, fit_and_score, states_with, untrained
from interp.sudoku.probe_records import CurvePoint, ProbeConfig, ProbeStudy, Verdict
from interp.sudoku.probe_study import probe_study
from interp.sudoku.traces import make_traces
from interp.sudoku.worldmodel import CURVE, crossing, damaged, decide, noisy

TINY = SudokuModelConfig(n=4, d_model=16, n_layers=1, n_heads=2, d_mlp=16, n_ctx=18)
FAST = ProbeConfig(puzzles=100, probes=("logistic",), draws=50, tol=1e-3)


def dense(n, count, seed=0):
    return generate(Rules.of(n), count, kind="dense", seed=seed).puzzles


def test_labels_are_those_of_plain_loops():
    rules, boards = Rules.of(6), dense(6, 5)
    may = labels(rules, boards, "candidates")
    state, present = labels(rules, boards, "cell state"), substructure(rules, boards)
    assert may.mask is not None and state.mask is not None
    for m, board in enumerate(boards):
        for u, unit in enumerate(rules.units):
            assert [d + 1 for d in range(6) if present[m, u, d]] == sorted(x for x in board[unit] if x)
        for cell in range(36):
            row, column = divmod(cell, 6)
            seen = {
                board[other]
                for other in range(36)
                if other // 6 == row
                or other % 6 == column
                or (other // 12 == cell // 12 and other % 6 // 3 == column // 3)
            }
            assert bool(state.mask[m, cell]) == bool(board[cell]) == filled(rules, boards)[m, cell]
            assert not board[cell] or state.y[m, cell] == board[cell] - 1
            for digit in range(6):
                assert bool(may.mask[m, cell * 6 + digit]) == (board[cell] == 0)
                assert bool(may.y[m, cell * 6 + digit]) == (board[cell] == 0 and digit + 1 not in seen)


def test_units_are_linear_in_cells_and_cells_are_not_in_units():
    rules, boards = Rules.of(4), dense(4, 1500)
    units, cells = substructure_code(rules, boards).double(), cell_code(rules, boards).double()

    def residual(x, y):
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        found = torch.linalg.lstsq(x, y, driver="gelsd").solution
        return float(((y - x @ found) ** 2).mean())

    assert residual(cells, units) < 1e-20 < 0.01 < residual(units, cells)
    assert random_projection(cells, 7, seed=1).shape == (1500, 7)
    assert torch.equal(random_projection(cells, 7, seed=1), random_projection(cells, 7, seed=1))


@lru_cache
def planted_world(n, count, kind="dense"):
    """Boards with their labels, split and reference curves, in a width that loses some of the cell code."""
    rules, config = Rules.of(n), dataclasses.replace(FAST, puzzles=count)
    boards = generate(rules, count, kind=kind, seed=5).puzzles
    d, split = {4: 48, 6: 144}[n], Split.of(count, config)
    own = {target: labels(rules, boards, target) for target in ("substructure", "cell state")}

    def read(x):
        scores = {t: fit_and_score(x, own[t], split, "logistic", config)[1].scores for t in own}
        return scores["substructure"].auc.value, scores["cell state"].accuracy

    curve = []
    for one in CURVE:
        auc, cells = read(damaged(rules, boards, d, *one, seed=0))
        curve.append(CurvePoint(*one, auc, cells.value))
    return rules, boards, d, read, tuple(curve)


def verdict_of(world, x) -> Verdict:
    auc, cells = world[3](x)
    return decide(("planted", "trained", 1), cells, auc, world[4], min_gap=0.05)


def planted_verdicts(n, count, seeds, noises):
    world = planted_world(n, count)
    rules, boards, d = world[:3]
    found = {}
    for truth, code in (("substructure", substructure_code(rules, boards)), ("cell-wise", cell_code(rules, boards))):
        for noise in noises:
            for seed in seeds:
                x = noisy(random_projection(code, d, seed=100 + seed), noise, seed=200 + seed)
                found[truth, noise, seed] = verdict_of(world, 3 * x + 1).verdict
    return found


def check_no_reversal(found):
    for (truth, noise, _), verdict in found.items():
        assert verdict in (truth, "undecided"), found
        assert noise > 1 or verdict == truth, found  # clear activations are decided


def test_planted_codes_are_never_mistaken_for_the_other():
    check_no_reversal(planted_verdicts(4, 900, seeds=(1, 2, 3), noises=(0.0, 0.7, 3.0)))


@pytest.mark.slow
def test_planted_codes_are_never_mistaken_on_larger_boards():
    check_no_reversal(planted_verdicts(6, 1500, seeds=(1, 2), noises=(0.0, 0.7, 3.0)))
    check_no_reversal(planted_verdicts(4, 900, seeds=range(4, 16), noises=(0.0, 0.3, 1.0, 2.0, 3.0, 6.0)))


def test_lost_parts_of_a_code_do_not_turn_the_verdict():
    world = planted_world(4, 900)
    for truth, code in (("substructure", "substructure"), ("cell-wise", "cell")):
        for lost in (0.1, 0.3):
            x = damaged(*world[:3], code, "loss", lost, seed=77)
            assert verdict_of(world, x).verdict == truth


def test_noise_and_sparse_boards_are_undecided():
    world = planted_world(4, 900)
    nothing = torch.randn(900, 48, generator=torch.Generator().manual_seed(0))
    assert verdict_of(world, nothing).verdict == "undecided"
    # On minimal 4x4 boards the units give all cells away, so that nothing can be told, however clear the code is.
    sparse = planted_world(4, 901, kind="minimal")
    for code in (substructure_code, cell_code):
        found = verdict_of(sparse, code(*sparse[:2]))
        assert found.verdict == "undecided" and "boards are too sparse" in found.reason


def sides(cell, units, n=400, seed=0):
    rng = np.random.default_rng(seed)
    counted = np.full(n, 10.0)
    drawn = {t: Counts(rng.binomial(10, p, n).astype(float), counted) for t, p in (("cell state", cell), ("s", units))}
    return {"cell state": drawn["cell state"], "substructure": drawn["s"], "candidates": drawn["s"]}


def test_the_crossing_needs_the_fall_the_rise_and_two_models():
    before = {("a", 1): sides(0.89, 0.3, seed=1), ("b", 1): sides(0.88, 0.3, seed=2)}
    after = {("a", 1): sides(0.73, 0.8, seed=3), ("b", 1): sides(0.74, 0.7, seed=4)}
    ceiling = sides(0.73, 1.0, seed=5)["cell state"]
    found = crossing("random", after, before, ceiling)
    assert (
        found.holds and found.crossed == found.raised == (1,) and "falls there in layer 1; 2 models" in found.statement
    )
    both = found.rows[-1]
    assert both.model == "all" and both.cell_state.value == pytest.approx(-0.15, abs=0.02)
    assert both.cell_state.high < 0 < both.substructure.low
    assert both.from_ceiling.value == pytest.approx(0.005, abs=0.02)
    higher = {key: sides(0.95, 0.8, seed=6) for key in after}
    not_fallen = crossing("random", higher, before, ceiling)
    assert not not_fallen.holds and not_fallen.raised == (1,) and "falls in none" in not_fallen.statement
    lower = {key: sides(0.7, 0.3, seed=7) for key in after}
    assert not crossing("random", {**after, ("b", 1): lower["b", 1]}, before, ceiling).raised
    alone = crossing("uniform", {("a", 1): after["a", 1]}, {("a", 1): before["a", 1]}, ceiling)
    assert alone.crossed == (1,) and not alone.holds and "two are needed" in alone.statement


def test_positions_with_so_many_empty_cells():
    rules = Rules.of(4)
    traces = make_traces(rules, dense(4, 30), seed=1)
    found = states_with(traces, 3)
    assert len(found) > 5 and (np.diff(found.row) > 0).all()
    for row, at, board in zip(found.row, found.at, found.boards, strict=True):
        trace = traces.trace(int(row))
        first = next(i for i in range(int(traces.n_clues[row]), len(trace.tokens)) if (trace.boards[i] == 0).sum() == 3)
        assert first == at and (trace.boards[at] == board).all()


def models(**names) -> dict[str, SudokuModel]:
    return {name: SudokuModel.of(build_model(TINY, seed=seed), TINY) for name, seed in names.items()}


def test_uniform_attention_averages():
    model = untrained(models(a=1)["a"], seed=3, uniform=True)
    pattern = model.hooked.capture(torch.arange(6)[None], "blocks.0.attn.hook_pattern")
    [found] = pattern.values()
    torch.testing.assert_close(found[0, 0, 5], torch.full((6,), 1 / 6))
    rest = untrained(models(a=1)["a"], seed=3).hooked.hf.transformer.wte.weight
    assert torch.equal(model.hooked.hf.transformer.wte.weight, rest)


@pytest.fixture(scope="module")
def study() -> ProbeStudy:
    return probe_study(models(a=1, b=2), FAST, show=False)


def test_a_study_has_every_control_beside_every_row(study: ProbeStudy):
    for target in TARGETS:
        for layer in (0, 1):
            for source in ("trained", "random", "uniform", "shuffled"):
                assert np.isfinite(study.row("b", source, layer, target).accuracy.value)
        ceiling = study.row("oracle", "cell", 0, target).accuracy
        assert ceiling.low > study.row("a", "random", 1, target).accuracy.high
    shuffled = study.row("a", "shuffled", 1, "substructure").auc
    assert abs(shuffled.value - 0.5) < 0.1
    assert {(row.to_layer, row.empties) for row in study.transfer if row.layer == 0} >= {(0, None), (1, None)}
    own = next(r for r in study.transfer if (r.model, r.target, r.layer, r.to_layer) == ("a", "filled", 1, 1))
    assert own.accuracy == study.row("a", "trained", 1, "filled").accuracy
    assert {one.source for one in study.geometry} == {"trained", "random", "uniform"}
    assert [one.reference for one in study.crossings] == ["random", "uniform"]
    with pytest.raises(
        InputError, match=r"no logistic probe of 'filled' from layer 1 of c, trained, .* has model: a, b, oracle;"
    ):
        study.row("c", "trained", 1, "filled")


def test_a_study_comes_back_from_json(study: ProbeStudy):
    text = json.dumps(study.to_json(), allow_nan=False)
    again = ProbeStudy.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert again.rows[0] == study.rows[0] and isinstance(again.rows[0].accuracy, Estimate)


def test_a_cut_off_study_goes_on_where_it_stopped(study: ProbeStudy, tmp_path, monkeypatch):
    real, done = module.fit_and_score, []

    def fit(*args, stop=None, **options):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **options)

    monkeypatch.setattr(module, "fit_and_score", lambda *a, **o: fit(*a, stop=40, **o))
    with pytest.raises(KeyboardInterrupt):
        probe_study(models(a=1, b=2), FAST, out=tmp_path, show=False)
    monkeypatch.setattr(module, "fit_and_score", fit)
    resumed = probe_study(models(a=1, b=2), FAST, out=tmp_path, show=False)
    fits, curve = (4 + 2 * 4 * 2) * 4, 2 * len(CURVE)
    assert len(done) == fits + curve
    assert json.dumps(resumed.to_json()) == json.dumps(study.to_json())
    with pytest.raises(InputError, match=r"other models or settings \(.*weights"):
        probe_study(models(a=1, b=3), FAST, out=tmp_path, show=False)
    with pytest.raises(InputError, match=r"C: 1\.0 there, 2\.0 asked for"):
        probe_study(models(a=1, b=2), dataclasses.replace(FAST, C=2.0), out=tmp_path, show=False)


def test_a_row_that_is_not_there_is_named_beside_those_that_are(study: ProbeStudy):
    have = study.rows[0]
    assert study.row(have.model, have.source, have.layer, have.target, have.probe) is have
    with pytest.raises(
        InputError, match=r"probe of 'cell-state' .* which has .*target: .*cell state.* make the study again"
    ):
        study.row(have.model, have.source, have.layer, "cell-state", have.probe)


def test_bad_input_is_named():
    rules, boards = Rules.of(4), dense(4, 3)
    with pytest.raises(InputError, match="expected one of cell state, candidates, substructure, filled"):
        labels(rules, boards, "units")
    with pytest.raises(InputError, match="targets="):
        ProbeConfig(targets=("units",))
    with pytest.raises(InputError, match="at least 20 puzzles on either side"):
        ProbeConfig(puzzles=50)
    with pytest.raises(InputError, match="C=-1: expected a number above 0"):
        ProbeConfig(C=-1)
    with pytest.raises(InputError, match="one or more of the same config"):
        probe_study({}, FAST, show=False)
    with pytest.raises(InputError, match="board of side 6 for models of side 4"):
        probe_study(models(a=1), FAST, traces=make_traces(Rules.of(6), dense(6, 2), seed=0), show=False)
    with pytest.raises(InputError, match="expected 1 dimension or more"):
        random_projection(torch.zeros(2, 3), 0, seed=0)
