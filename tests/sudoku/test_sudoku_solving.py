"""The model's own traces, and what is counted on them."""

import dataclasses

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.stats import wilson
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model
from interp.sudoku.solving import SolveReport, own_traces, reasons_of, report, solve_rate
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import Reason, make_traces

CONFIG = SudokuModelConfig(n=4, d_model=32, n_layers=2, n_heads=4, d_mlp=64, n_ctx=20)
RULES = Rules.of(4)


@pytest.fixture(scope="module")
def model() -> SudokuModel:
    return SudokuModel.of(build_model(CONFIG, seed=0).double(), CONFIG)


@torch.no_grad()
def test_own_traces_are_the_greedy_continuations_of_the_clues(model: SudokuModel):
    found = generate(RULES, 12, kind="dense", seed=4)
    traces = own_traces(model, found.puzzles, seed=1, batch_size=3)
    words = model.vocabulary
    orders = set()
    for i, puzzle in enumerate(found.puzzles):
        clues = traces.tokens[i, : traces.n_clues[i]].tolist()
        expected = [words.placement(c, int(puzzle[c])) for c in range(16) if puzzle[c]]
        assert sorted(clues) == expected and traces.n_clues[i] == len(expected)
        orders.add(clues == expected)
        tokens = [*clues, words.end_clues]
        while len(tokens) < CONFIG.n_ctx and tokens[-1] != words.success:
            tokens.append(int(model.hooked.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert traces.tokens[i, : len(tokens)].tolist() == tokens and traces.lengths[i] == len(tokens)
        assert (traces.tokens[i, len(tokens) :] == words.pad).all()
        assert (traces.reasons[i, : len(clues)] == Reason.CLUE).all()
    assert False in orders  # clues are shuffled
    assert (traces.solutions == found.solutions).all() and (traces.puzzles == found.puzzles).all()
    again = own_traces(model, found.puzzles, seed=1, solutions=found.solutions)
    assert (again.tokens == traces.tokens).all()


@pytest.mark.parametrize("n", [6, 9])
def test_reasons_read_off_boards_are_those_of_the_solver(n: int):
    rules = Rules.of(n)
    traces = make_traces(rules, generate(rules, 60, kind="minimal", seed=2).puzzles, seed=5, singles="naked")
    forced_by_less = reasons_of(rules, traces.tokens, traces.n_clues)
    assert (traces.reasons == Reason.GUESS).any()
    naked_or_not = np.where(forced_by_less == Reason.HIDDEN, Reason.GUESS, forced_by_less)
    assert (naked_or_not == traces.reasons).all()  # the solver that knows naked singles guesses at the hidden ones
    traces = make_traces(rules, generate(rules, 60, kind="minimal", seed=2).puzzles, seed=5)
    assert (reasons_of(rules, traces.tokens, traces.n_clues) == traces.reasons).all()


def test_the_report_counts_solved_puzzles_cells_and_illegal_sequences():
    puzzles = generate(RULES, 10, kind="dense", seed=6)
    traces = make_traces(RULES, puzzles.puzzles, seed=0)
    words, empty = Vocabulary(RULES), (puzzles.puzzles == 0).sum(1)
    perfect = report(traces)
    assert perfect == SolveReport(n=10, solved=10, invalid=0, cells=int(empty.sum()), right_cells=int(empty.sum()))
    assert perfect.rate == perfect.cell_accuracy == 1 and perfect.invalid_rate == 0
    tokens, lengths = traces.tokens.copy(), traces.lengths.copy()
    end = int(traces.lengths[0]) - 2  # the last placement
    cell, digit = words.cell(int(tokens[0, end])), words.digit(int(tokens[0, end]))
    tokens[0, end] = words.placement(cell, digit % 4 + 1)  # a wrong digit there breaks a rule
    tokens[1, traces.lengths[1] - 2 :] = words.pad  # a last cell left empty breaks none
    lengths[1] -= 2
    tokens[2, traces.lengths[2] - 1] = words.pop  # solved before it goes wrong
    changed = report(dataclasses.replace(traces, tokens=tokens, lengths=lengths))
    assert (changed.solved, changed.invalid) == (8, 2) and changed.right_cells == int(empty.sum()) - 2
    assert changed.interval == wilson(8, 10) and SolveReport.from_json(changed.to_json()) == changed


def test_an_untrained_model_solves_next_to_nothing(model: SudokuModel):
    puzzles = generate(RULES, 30, kind="minimal", seed=3)
    found = solve_rate(model, puzzles.puzzles, puzzles.solutions)
    assert found.n == 30 and found.solved == 0 and found.invalid_rate > 0.9 and found.cell_accuracy < 0.3


def test_what_is_refused(model: SudokuModel):
    with pytest.raises(InputError, match=r"0 puzzles of up to 0 clues for a model of 20 positions: expected"):
        own_traces(model, np.zeros((0, 16), np.int8), seed=0)
    with pytest.raises(InputError, match=r"grids have 36 cells, but a board of side 4 has 16"):
        own_traces(model, np.zeros((1, 36), np.int8), seed=0)
