"""Substructure patches: their algebra, their measures by hand, and a model in which their effect is known."""

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.errors import InputError
from interp.probes import LinearProbe
from interp.sites import Point, Site
from interp.sudoku import interventions
from interp.sudoku.generate import generate
from interp.sudoku.interventions import (
    PatchStudy,
    fit_substructure,
    orthogonal_patch,
    patch_study,
    probe_sites,
    substructure_patch,
    unit_directions,
)
from interp.sudoku.model import SudokuModel
from interp.sudoku.reads import States, clue_states, legal_tokens, read, sampled, solving_states
from interp.sudoku.solving import own_traces
from interp.sudoku.traces import TraceSet
from tests import plain_sudoku
from tests.planted_solver import planted_solver, unit_probe_weights


@functools.cache
def setting() -> tuple[SudokuModel, TraceSet]:
    model = planted_solver()
    puzzles = generate(model.rules, 150, kind="dense", seed=3)
    return model, own_traces(model, puzzles.puzzles, seed=1, solutions=puzzles.solutions)


def probe_of(weight: Tensor) -> LinearProbe:
    flat = weight.reshape(-1, 1, weight.shape[-1])
    return LinearProbe("logistic", flat, torch.zeros(len(flat), 1), torch.zeros(len(flat)))


def probes(weight: Tensor) -> dict[Site, LinearProbe]:
    return {site: probe_of(weight) for site in probe_sites(setting()[0])}


def three(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in ((5, 3, 9), (5, 9), (5, 9))]


def test_the_patch_by_hand():
    w, before, after = three(0)
    expected = torch.zeros(5, 9)
    for i in range(5):
        for s in range(3):
            expected[i] += (w[i, s] @ after[i] - w[i, s] @ before[i]) * w[i, s]
    torch.testing.assert_close(substructure_patch(w, before, after), expected)


def test_only_the_orthogonalised_patch_takes_over_the_coordinates():
    """Simultaneous steps along directions that overlap overshoot; where they do not, the two patches are one."""
    w, before, after = three(1)
    w = w / w.norm(dim=-1, keepdim=True)

    def coordinates(x: Tensor) -> Tensor:
        return torch.einsum("nsd,nd->ns", w, x)

    moved = before + orthogonal_patch(w, before, after)
    torch.testing.assert_close(coordinates(moved), coordinates(after), rtol=1e-4, atol=1e-5)
    aside = torch.linalg.qr(w.transpose(1, 2), mode="complete").Q[:, :, 3:]
    torch.testing.assert_close(torch.einsum("nds,nd->ns", aside, moved - before), torch.zeros(5, 6), atol=1e-5, rtol=0)
    assert (coordinates(before + substructure_patch(w, before, after)) - coordinates(after)).abs().max() > 0.1
    apart = torch.linalg.qr(w.transpose(1, 2)).Q.transpose(1, 2)
    torch.testing.assert_close(orthogonal_patch(apart, before, after), substructure_patch(apart, before, after))


def test_directions_are_those_of_unit_and_digit():
    rules = setting()[0].rules
    weight = torch.arange(1.0, 3 * 4 * 4 * 2 + 1).view(12, 4, 2)
    found = unit_directions(rules, probe_of(weight))
    torch.testing.assert_close(found[7, 2], weight[7, 2] / weight[7, 2].norm())
    with pytest.raises(InputError, match=r"a probe of 16 outputs: expected the binary ones of 48 \(unit"):
        unit_directions(rules, probe_of(weight[:4]))


def by_hand(model: SudokuModel, states: States, layer: int, change: Tensor) -> Tensor:
    """Each state alone, the change added by a plain hook on the block."""
    hf: Any = model.hooked.hf
    rows = []
    for i in range(len(states)):
        tokens = torch.from_numpy(states.traces.tokens[states.row[i], : states.at[i] + 1].astype(np.int64))

        def hook(module: Any, args: Any, out: Any, i: int = i) -> Any:
            whole = out[0] if isinstance(out, tuple) else out
            moved = torch.cat([whole[:, :-1], whole[:, -1:] + change[i]], 1)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        handle = hf.transformer.h[layer].register_forward_hook(hook)
        with torch.no_grad():
            rows.append(hf(tokens[None], use_cache=False).logits[0, -1])
        handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("layer", [0, 1])
def test_measures_are_those_of_the_states_run_alone(layer):
    model, traces = setting()
    study = patch_study(model, traces[:40], probes(unit_probe_weights(model.rules)), draws=2, seed=5)
    first, second = clue_states(traces[:40]), clue_states(traces[:40], after=1)
    assert study.n == 40
    site, zero = Site(Point.RESID_POST, layer), torch.zeros(40, 144)
    clean = by_hand(model, first, layer, zero)
    (_, before), (_, after) = (read(model, states, [site]) for states in (first, second))
    w = unit_probe_weights(model.rules)
    w = w / w.norm(dim=-1, keepdim=True)
    change = torch.zeros(40, 144)
    for i, move in enumerate(first.next_token.tolist()):
        for unit in model.rules.units_of[move // 4]:
            direction = w[unit, move % 4]
            change[i] += (direction @ (after[site][i] - before[site][i])) * direction
    patched = by_hand(model, first, layer, change)
    rows, effect = torch.arange(40), study.layers[layer].effects["substructure"]
    moves = torch.from_numpy(first.next_token)
    assert torch.equal(clean.argmax(-1), moves)
    fall = clean - patched
    assert effect.drop.value == pytest.approx(float(fall[rows, moves].mean()), rel=1e-4)
    assert study.layers[layer].norm.value == pytest.approx(float(change.norm(dim=-1).mean()), rel=1e-4)
    told = {name: [] for name in ("changed", "valid", "illegal", "conflicting", "others")}
    for i, move in enumerate(moves.tolist()):
        grid = first.boards[i].tolist()
        placed = [move % 4 + 1 if cell == move // 4 else digit for cell, digit in enumerate(grid)]
        now, later = (
            {cell * 4 + d - 1 for cell in range(16) for d in plain_sudoku.allowed(4, g, cell)} for g in (grid, placed)
        )
        p = patched[i].softmax(-1)
        top = int(p.argmax())
        told["changed"].append(top != move)
        told["valid"].append(top in now)
        told["illegal"].append(1 - float(p[sorted(now | {64 + 2})].sum()))  # PUSH may follow too
        for name, group in (("conflicting", now - later - {move}), ("others", now & later)):
            if group:
                told[name].append(float(fall[i, sorted(group)].mean()))
    for name, values in told.items():
        assert getattr(effect, name).value == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5), name


def test_where_the_model_reads_its_board_off_the_directions_the_patch_beats_its_controls():
    model, traces = setting()
    study = patch_study(model, traces, probes(unit_probe_weights(model.rules)), draws=4)
    for layer in study.layers:
        assert layer.excess.low > 0 and layer.excess_other.low > 0
        assert layer.effects["substructure"].drop.low > layer.effects["random"].drop.high
        assert layer.effects["substructure"].conflicting.low > layer.effects["other puzzle"].conflicting.high
    assert study.clean.drop.value == 0 and study.clean.changed.value == 0 and study.clean.valid.value == 1


def test_directions_that_mean_nothing_do_no_more_than_random_ones():
    model, traces = setting()
    nothing = torch.randn(12, 4, 144, generator=torch.Generator().manual_seed(3))
    study = patch_study(model, traces, probes(nothing), draws=4)
    real = patch_study(model, traces, probes(unit_probe_weights(model.rules)), draws=4)
    for none, some in zip(study.layers, real.layers, strict=True):
        assert none.excess.value < 0.2 * some.excess.value


def test_probes_fitted_on_other_puzzles_give_such_directions():
    model, traces = setting()
    fitted = fit_substructure(model, traces[:100])
    assert set(fitted) == set(probe_sites(model))
    study = patch_study(model, traces[100:], fitted, draws=2)
    assert study.n == 50 and study.layers[0].excess.low > 0


def test_the_study_survives_json_and_is_a_function_of_its_seed():
    model, traces = setting()
    args = model, traces[:30], probes(unit_probe_weights(model.rules))
    study = patch_study(*args, samples=20, draws=2, seed=1)
    assert study.n == 20
    fields = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert PatchStudy.from_json(fields) == study == patch_study(*args, samples=20, draws=2, seed=1)
    assert study != patch_study(*args, samples=20, draws=2, seed=2)
    with pytest.raises(InputError, match=r"a PatchStudy has the fields \['clean', 'draws', 'layers', 'n'\]"):
        PatchStudy.from_json({**fields, "more": 1})


def test_another_puzzles_patch_is_of_another_move():
    moves = np.array([3, 3, 5, 7, 9, 5])
    given = interventions._others(moves, 0).numpy()
    assert (given != np.arange(6)).all()
    assert (np.sort(given) == np.arange(6)).all()


def test_states_are_read_as_they_are_alone():
    model, traces = setting()
    states = sampled(solving_states(traces), per_trace=2, seed=0)
    logits, _ = read(model, states[:30], batch=7)
    torch.testing.assert_close(logits, by_hand(model, states[:30], 0, torch.zeros(30, 144)), rtol=1e-4, atol=1e-4)
    assert (np.bincount(states.row)[np.unique(states.row)] == 2).all()


def test_solving_states_are_legal_boards_behind_placements():
    model, traces = setting()
    found = solving_states(traces)
    expected = []
    for row in range(len(traces)):
        boards, depth, legal = plain_sudoku.replay(4, traces.tokens[row].tolist())
        for at in range(traces.n_clues[row] + 1, traces.lengths[row] - 1):
            if traces.tokens[row, at] < 64 and depth[at] == 0 and legal[at] and 0 in boards[at]:
                expected.append((row, at, boards[at]))
    assert [(r, a, b.tolist()) for r, a, b in zip(found.row, found.at, found.boards, strict=True)] == expected
    assert len(expected) > 100
    legal = legal_tokens(model.rules, found.boards)
    for board, row in list(zip(found.boards, legal, strict=True))[:20]:
        moves = {c * 4 + d - 1 for c in range(16) for d in plain_sudoku.allowed(4, board.tolist(), c)}
        assert set(np.flatnonzero(row).tolist()) == moves | {66}


def test_what_cannot_be_patched_is_refused():
    model, traces = setting()
    good = probes(unit_probe_weights(model.rules))
    with pytest.raises(InputError, match=r"no probe for blocks\.1\.hook_resid_post"):
        patch_study(model, traces[:5], {k: v for k, v in good.items() if k.layer == 0})
    with pytest.raises(InputError, match="1 of 1 traces begin with a legal placement; expected at least 2"):
        patch_study(model, traces[:1], good)
    other = planted_solver(strength=-1.0)
    with pytest.raises(InputError, match="not this model's own"):
        patch_study(other, traces[:5], good)
    with pytest.raises(InputError, match="end before token 30 behind END_CLUES"):
        clue_states(traces, after=30)
