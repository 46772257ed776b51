"""The circuit study finds what was planted, and nothing where labels are shuffled."""

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from interp.errors import InputError
from interp.sites import Point, Site
from interp.sudoku.board import Rules, candidates
from interp.sudoku.circuit import CircuitStudy, circuit_study, head_scores, margins, neuron_ablation, neuron_tokens
from interp.sudoku.generate import generate
from interp.sudoku.model import SudokuModel
from interp.sudoku.neuron_effects import _several_singles, ratio_of
from interp.sudoku.neuron_scan import GapScan, Sample, gap_scan, neuron_scan, scan_sample
from interp.sudoku.ranking import Ranking, aucs, centred_ranks, ranking
from interp.sudoku.reads import clue_states, read, sampled, solving_states
from interp.sudoku.replay import forced_moves
from interp.sudoku.solving import own_traces
from interp.sudoku.traces import TraceSet, make_traces
from tests import plain_sudoku
from tests.planted_solver import HALF, UNIT, planted_solver

RULES = Rules.of(4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def setting() -> tuple[SudokuModel, TraceSet]:
    model = planted_solver(neurons=0.05)
    puzzles = generate(model.rules, 240, kind="dense", seed=3)
    return model, own_traces(model, puzzles.puzzles, seed=1, solutions=puzzles.solutions)


@functools.cache
def solver_states() -> Sample:
    """Boards of true solutions, neurons of noise."""
    puzzles = generate(RULES, 1500, kind="dense", seed=5)
    states = sampled(solving_states(make_traces(RULES, puzzles.puzzles, seed=0)), per_trace=1, seed=0)
    return Sample(states, noise(len(states), 30), 1)


# AUCs and their null


def test_aucs_with_ties_are_sklearns():
    x, labels = noise(80, 6).mul(2).round(), noise(80, 4, seed=1) > 0.5
    found = aucs(centred_ranks(x), labels)
    for q in range(4):
        for m in range(6):
            assert found[q, m] == pytest.approx(roc_auc_score(labels[:, q], x[:, m]), abs=1e-12)
    rare = torch.zeros(80, 1, dtype=torch.bool)
    rare[:9] = True
    assert aucs(centred_ranks(x), rare).isnan().all()


def test_a_planted_neuron_is_found_and_no_other_label_has_one():
    labels = noise(600, 5, seed=2) > 1.0
    x = noise(600, 40, seed=3)
    x[:, 17] += 4 * labels[:, 2]
    found = ranking(x, labels, block=1, draws=60)
    assert found.found.tolist() == [False, False, True, False, False]
    assert found.best[2] == 17 and found.auc[2] > 0.99 and found.p[2] == pytest.approx(1 / 61)
    assert (found.p[[0, 1, 3, 4]] > 0.02).all() and found.distinct == 1 and found.tested == 5
    x[:, 17] = noise(600, 1, seed=4)[:, 0]
    assert not ranking(x, labels, block=1, draws=60).found.any()


def test_states_of_one_trace_are_permuted_together():
    """A neuron and a label that differ between traces only, unrelated: as single states they look related."""
    block, traces = 10, 60
    x = noise(traces, 30, seed=5).repeat_interleave(block, 0)
    labels = (noise(traces, 1, seed=6) > 0.5).repeat_interleave(block, 0)
    assert ranking(x, labels, block=1, draws=60).found.all()
    together = ranking(x, labels, block=block, draws=60)
    assert not together.found.any() and together.p[0] > 0.05


def test_a_label_too_rare_to_rank_is_left_out():
    labels = torch.zeros(100, 2, dtype=torch.bool)
    labels[:50, 1] = True
    found = ranking(noise(100, 3), labels, block=2, draws=5)
    assert found.best[0] == -1 and np.isnan(found.auc[0]) and found.tested == 1
    with pytest.raises(InputError, match="whole blocks"):
        ranking(noise(99, 3), labels[:99], block=2)


# Scans


def with_planted(cell: int, digit: int, *, by_cell: bool = False) -> Tensor:
    sample = solver_states()
    x = sample.neurons.clone()
    for i, board in enumerate(sample.states.boards.tolist()):
        single = plain_sudoku.naked(4, board)
        fires = any(c == cell for c, _ in single) if by_cell else (cell, digit) in single
        x[i, 11] = 5 * fires + 0.1 * x[i, 11]
    return x


def test_a_neuron_for_one_naked_single_is_found_for_it_alone():
    model, sample = setting()[0], solver_states()
    scan = neuron_scan(model, sample._replace(neurons=with_planted(6, 3)), draws=40)
    pair = 6 * 4 + 2
    assert scan.naked.found[pair] and scan.naked.best[pair] == 11 and scan.naked.auc[pair] > 0.999
    same_cell = [6 * 4 + d for d in range(4)]
    assert not np.delete(scan.naked.found, same_cell).any()
    assert scan.forced.best[pair] == 11 and scan.forced.auc[pair] < scan.naked.auc[pair]
    assert scan.cells.best[6] == 11 and not np.delete(scan.cells.found, 6).any()


def test_shuffled_boards_find_nothing():
    model, sample = setting()[0], solver_states()
    order = np.random.default_rng(0).permutation(len(sample.states))
    scan = neuron_scan(model, Sample(sample.states[order], with_planted(6, 3), 1), draws=40)
    assert not scan.naked.found.any() and not scan.cells.found.any() and len(scan.gaps.kept) == 0


def test_the_published_rule_finds_a_neuron_of_a_cell_and_depends_on_the_scale():
    sample, x = solver_states(), with_planted(6, 0, by_cell=True)
    count = candidates(RULES, sample.states.boards).sum(-1)
    found, small = gap_scan(x, count, 4), gap_scan(x / 10, count, 4)
    assert found.kept == ((6, 11),) and found.neuron[6] == found.standard_neuron[6] == 11
    assert small.kept == () and small.standard_gap[6] == pytest.approx(found.standard_gap[6], rel=1e-4)
    groups = {c: [float(x[i, 11]) for i in range(len(x)) if count[i, 6] == c] for c in range(5)}
    means = {c: float(np.mean(v)) for c, v in groups.items() if len(v) >= 30}
    assert found.gap[6] == pytest.approx(means[1] - max(m for c, m in means.items() if c != 1), rel=1e-4)
    assert found.gap[6] == pytest.approx(5, abs=0.2)
    assert found.standard_gap[6] == pytest.approx(found.gap[6] / float(x[:, 11].std()), rel=1e-4)
    for c in range(5):
        assert found.means[6, c] == pytest.approx(means[c], rel=1e-4) if c in means else np.isnan(found.means[6, c])


# Heads


def test_the_head_that_suppresses_a_columns_digits_is_found_and_others_are_not():
    model, traces = setting()
    scores = head_scores(model, traces)
    by_name = {(s.layer, s.head): s for s in scores.heads}
    found = by_name[0, 1]
    assert found.unit == UNIT and found.difference.low > 5 and found.target.low > 10 * found.control.high
    for idle in (by_name[1, 0], by_name[1, 1]):
        assert idle.target.value == idle.difference.value == 0
    assert scores.suppression[0, 1].argmax() == UNIT
    split = scores.present - scores.absent
    assert split[0, 1].argmin() == UNIT and split[0, 1, UNIT] < -10
    assert np.abs(np.delete(split[0, 1], UNIT)).max() < 0.3 * -split[0, 1, UNIT]


def test_suppression_by_hand():
    """One puzzle at a time, the head's slice replaced by a plain hook, means over lists of moves."""
    model, traces = setting()
    traces = traces[:12]
    scores = head_scores(model, traces)
    hf: Any = model.hooked.hf
    tokens = [torch.from_numpy(traces.tokens[i, : traces.n_clues[i] + 1].astype(np.int64))[None] for i in range(12)]
    kept: list[Tensor] = []
    projection = hf.transformer.h[0].attn.c_proj
    handle = projection.register_forward_pre_hook(lambda m, a: kept.append(a[0][0, -1, HALF:].clone()))
    with torch.no_grad():
        clean = [hf(t, use_cache=False).logits[0, -1] for t in tokens]
    handle.remove()
    mean = torch.stack(kept).mean(0)

    def ablate(module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[0, -1, HALF:] = mean
        return (z,)

    handle = projection.register_forward_pre_hook(ablate)
    with torch.no_grad():
        ablated = [hf(t, use_cache=False).logits[0, -1] for t in tokens]
    handle.remove()
    cells, found = plain_sudoku.units(4)[UNIT], []
    for board, before, after in zip(traces.puzzles.tolist(), clean, ablated, strict=True):
        held = {board[c] for c in cells} - {0}
        moves = [c * 4 + d - 1 for c in cells if not board[c] for d in held]
        if moves:
            found.append(float((after - before)[moves].mean()))
    assert scores.suppression[0, 1, UNIT] == pytest.approx(np.mean(found), rel=1e-4)
    assert scores.heads[1].target.low <= scores.heads[1].target.value <= scores.heads[1].target.high


# Effects of neurons


def hand_ranking(best: np.ndarray, neurons: int = 24) -> Ranking:
    k = len(best)
    return Ranking(neurons, np.full(k, 50), best, np.full(k, 0.99), np.full(k, 0.01), 0.6, 100)


CELL_NEURONS = np.arange(64) // 4


def test_ablating_a_cells_neurons_is_the_change_of_the_last_stream():
    model, traces = setting()
    sample = scan_sample(model, traces[:120])
    found = neuron_ablation(model, traces[120:], hand_ranking(CELL_NEURONS), sample)
    states, clean, single = _several_singles(model, traces[120:])
    post, stream = Site(Point.MLP_POST, 1), Site(Point.RESID_POST, 1)
    _, kept = read(model, states, [post, stream])
    hf: Any = model.hooked.hf
    mean, drops, others = sample.neurons.mean(0), [], []
    for i, move in enumerate(clean.argmax(-1).tolist()):
        k = move // 4
        moved = kept[stream][i] + (mean[k] - kept[post][i, k]) * hf.transformer.h[1].mlp.c_proj.weight[k]
        with torch.no_grad():
            fall = clean[i] - hf.lm_head(hf.transformer.ln_f(moved))
        drops.append(float(fall[move]))
        rest = [c * 4 + d - 1 for c, d in plain_sudoku.naked(4, states.boards[i].tolist()) if c * 4 + d - 1 != move]
        others.append(float(fall[rest].mean()))
    assert found.n == len(drops) > 50 and found.neurons == 1
    assert found.drop.value == pytest.approx(np.mean(drops), rel=1e-3)
    assert found.others.value == pytest.approx(np.mean(others), rel=1e-2, abs=1e-4)
    assert found.difference.value == pytest.approx(np.mean(drops) - np.mean(others), rel=1e-3)
    assert found.specificity.value == pytest.approx(np.sum(drops) / np.sum(others), rel=1e-2)
    assert abs(found.drop.value) > 5 * abs(found.others.value), "the neuron writes to its own cell"
    assert abs(found.control_drop.value) < 0.5 * abs(found.drop.value)
    for i in range(len(states)):
        singles = {c * 4 + d - 1 for c, d in plain_sudoku.naked(4, states.boards[i].tolist())}
        assert len(singles) >= 2 and int(states.next_token[i]) in singles
        assert set(np.flatnonzero(single[i].numpy()).tolist()) == singles
    assert len(set(states.row.tolist())) == len(states), "one state of each trace"
    with pytest.raises(InputError, match="there is none to ablate"):
        nobody = hand_ranking(CELL_NEURONS)
        neuron_ablation(model, traces, Ranking(**{**vars(nobody), "auc": np.zeros(64)}), sample)


def test_tokens_of_neurons_by_hand():
    model, traces = setting()
    sample = scan_sample(model, traces)
    found = neuron_tokens(model, hand_ranking(CELL_NEURONS), sample)
    hf: Any = model.hooked.hf
    W = hf.lm_head.weight.detach().double()
    W = W - W.mean(1, keepdim=True)
    single = forced_moves(RULES, sample.states.boards, singles="naked")
    for t in (0, 17, 63):
        k = t // 4
        row = W @ hf.transformer.h[1].mlp.c_proj.weight[k].detach().double()
        row = (row - row.mean())[:64].numpy()
        own = list(range(4 * k, 4 * k + 4))
        assert found.own[t] == pytest.approx(row[t], rel=1e-4)
        assert found.cell[t] == pytest.approx(np.mean([row[c] for c in own if c != t]), rel=1e-4)
        assert found.other[t] == pytest.approx(np.delete(row, t).mean(), abs=1e-5)
        assert found.spatial[t] == pytest.approx(np.abs(row[own]).mean() / np.abs(np.delete(row, own)).mean(), rel=1e-4)
        assert found.fires[t] == pytest.approx(float(sample.neurons[single[:, t], k].mean()), rel=1e-4)
        assert found.rests[t] == pytest.approx(float(sample.neurons[~single[:, t], k].mean()), rel=1e-4)
    assert found.spatial.min() > 5 and found.own.min() > found.other.max()


def test_margins_are_those_of_the_models_own_logits():
    model, traces = setting()
    found = margins(model, traces)
    states = solving_states(traces)
    expected, forced = [], []
    for i in range(len(states)):
        single = [c * 4 + d - 1 for c, d in plain_sudoku.naked(4, states.boards[i].tolist())]
        if len(single) == 1 and single[0] == states.next_token[i]:
            logits, _ = read(model, states[i : i + 1])
            cell = [t for t in range(single[0] // 4 * 4, single[0] // 4 * 4 + 4) if t != single[0]]
            forced.append(float(logits[0, single[0]]))
            expected.append(forced[-1] - float(logits[0, cell].max()))
    assert found.n == len(expected) == found.counts.sum() > 50
    assert found.median == pytest.approx(np.median(expected), rel=1e-4)
    assert found.positive.value == np.mean(np.array(expected) > 0)
    assert found.forced[-1] == pytest.approx(np.mean(forced), rel=1e-4)
    assert found.forced[-1] - found.rival[-1] == pytest.approx(np.mean(expected), rel=1e-3)
    assert found.stages[-1] == "blocks.1.hook_resid_post" and len(found.stages) == 4
    assert (found.edges[0], found.edges[-1]) <= (0, max(expected) + 1e-3) and found.before_last_mlp.value > 0.9


def test_ratios_of_any_sign_have_intervals_that_cover_them():
    rng = np.random.default_rng(0)
    bottom = rng.normal(1, 0.5, 400)
    found = ratio_of(-2 * bottom + rng.normal(0, 0.5, 400), bottom)
    assert found.low < -2 < found.high < 0 and found.low < found.value < found.high
    exact = ratio_of(3 * bottom, bottom)
    assert exact.low == pytest.approx(3) and exact.high == pytest.approx(3)


def test_the_study_runs_and_survives_json():
    model, traces = setting()
    study = circuit_study(model, traces, per_trace=2, draws=5, head_puzzles=30)
    assert study.scan.states % 2 == 0 and study.heads.n == 30
    assert study.untrained.states == study.scan.states
    np.testing.assert_array_equal(study.untrained.naked.positives, study.scan.naked.positives)
    assert not np.array_equal(study.untrained.cells.auc, study.scan.cells.auc, equal_nan=True)
    fields = json.loads(json.dumps(study.to_json(), allow_nan=False))
    back = CircuitStudy.from_json(fields)
    assert json.loads(json.dumps(back.to_json(), allow_nan=False)) == fields
    for name in ("auc", "best", "found"):
        mine, theirs = getattr(study.scan.naked, name), getattr(back.scan.naked, name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert back.scan.gaps.kept == study.scan.gaps.kept
    assert back.heads.heads == study.heads.heads and isinstance(back.scan.gaps, GapScan)
    with pytest.raises(InputError, match="expected at least 8, half to find neurons"):
        circuit_study(model, traces[:6])
    with pytest.raises(InputError, match="3 puzzles: expected at least 4"):
        head_scores(model, traces[:3])
    assert len(clue_states(traces)) == len(traces)
