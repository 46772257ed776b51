"""What is predicted where, and the two losses."""

import math

import numpy as np
import pytest
import torch

from interp.sudoku.board import Rules, candidates
from interp.sudoku.objectives import multi_target, next_tokens, open_moves, predicted, single_target
from interp.sudoku.replay import replay
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import Reason, TraceSet

RULES = Rules.of(4)
WORDS = Vocabulary(RULES)
SOLUTION = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1], np.int8)


def trace_set(*rows: tuple[list[int], list[int], int]) -> TraceSet:
    """Of (tokens, reasons, clues)."""
    width = max(len(tokens) for tokens, _, _ in rows) + 2
    tokens = np.full((len(rows), width), WORDS.pad, np.int16)
    reasons = np.full((len(rows), width), Reason.CONTROL, np.int8)
    for i, (row, why, _) in enumerate(rows):
        tokens[i, : len(row)], reasons[i, : len(row)] = row, why
    lengths, clues = (np.array(x) for x in ([len(row[0]) for row in rows], [row[2] for row in rows]))
    solutions = np.tile(SOLUTION, (len(rows), 1))
    return TraceSet(RULES, tokens, lengths, clues, reasons, np.zeros_like(solutions), solutions)


def moves(cells: list[int]) -> list[int]:
    return [WORDS.placement(cell, int(SOLUTION[cell])) for cell in cells]


def example() -> TraceSet:
    """Two traces: three moves behind 13 clues; a guess in a branch behind 8."""
    first = moves(list(range(13))), moves([13, 14, 15])
    one = [*first[0], WORDS.end_clues, *first[1], WORDS.success]
    clues = moves([0, 1, 2, 3, 8, 9, 10, 11])
    two = [*clues, WORDS.end_clues, WORDS.push, *moves([4]), *moves([5]), WORDS.pop]
    control, naked, guess = Reason.CONTROL, Reason.NAKED, Reason.GUESS
    return trace_set(
        (one, [Reason.CLUE] * 13 + [control] + [naked] * 3 + [control], 13),
        (two, [Reason.CLUE] * 8 + [control, control, guess, naked, control], 8),
    )


def test_predictions_begin_at_end_clues_and_end_before_the_last_token():
    traces = example()
    where = predicted(traces)
    assert list(zip(*where, strict=True)) == [(0, p) for p in (13, 14, 15, 16)] + [(1, p) for p in (8, 9, 10, 11)]
    expected = [*moves([13, 14, 15]), WORDS.success, WORDS.push, *moves([4, 5]), WORDS.pop]
    assert next_tokens(traces, where).tolist() == expected


def test_targets_are_all_forced_moves_where_one_is_made_and_the_next_token_elsewhere():
    traces = example()
    where = predicted(traces)
    targets = open_moves(traces, where, singles="naked", size=WORDS.size)
    found = [set(np.flatnonzero(row)) for row in targets]
    assert found[0] == set(moves([13, 14, 15])) and found[1] == set(moves([14, 15])) and found[2] == set(moves([15]))
    assert found[3] == {WORDS.success} and found[4] == {WORDS.push}
    assert found[5] == set(moves([4]))  # the guess alone, whatever else is open
    board = replay(RULES, traces.tokens).boards[1, 10]
    open_cells = candidates(RULES, board[None])[0]
    naked = {WORDS.placement(c, int(open_cells[c].argmax()) + 1) for c in range(16) if open_cells[c].sum() == 1}
    assert found[6] == naked and len(naked) > 1 and set(moves([5])) < naked
    assert found[7] == {WORDS.pop}


def test_the_losses_are_the_cross_entropies_they_state():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 69, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.rand(6, 69, generator=generator) < 0.1
    targets[:, 3] = True
    outcome = multi_target(logits, targets)
    p = torch.softmax(logits.detach(), -1).numpy()
    rows = [-np.mean([math.log(p[i, v]) for v in np.flatnonzero(targets[i])]) for i in range(6)]
    assert outcome.loss.item() == pytest.approx(np.mean(rows), abs=1e-12)
    counts = targets.sum(-1).double()
    assert float(outcome.floor) == pytest.approx(float(counts.log().mean()), abs=1e-6)
    (gradient,) = torch.autograd.grad(outcome.loss, logits)
    expected = (torch.softmax(logits.detach(), -1) - targets / counts[:, None]) / 6
    assert (gradient - expected).abs().max() < 1e-12
    one = torch.full((6,), 3)
    only = torch.nn.functional.one_hot(one, 69).bool()
    assert (single_target(logits, one).loss - multi_target(logits, only).loss).abs() < 1e-12


def test_the_floor_is_reached_by_the_uniform_distribution_over_the_targets_and_by_no_other():
    targets = torch.zeros(1, 69, dtype=torch.bool)
    targets[0, [3, 8, 9]] = True
    perfect = torch.where(targets, 0.0, -60.0)
    outcome = multi_target(perfect, targets)
    assert float(outcome.loss) == float(outcome.floor) == pytest.approx(math.log(3), abs=1e-6)
    lopsided = multi_target(perfect + torch.nn.functional.one_hot(torch.tensor([8]), 69) * 2.0, targets)
    assert float(lopsided.loss) > math.log(3) + 0.3 and float(lopsided.hits) == 1
    assert float(multi_target(-perfect, targets).hits) == 0
