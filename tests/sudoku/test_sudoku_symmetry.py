"""Symmetries of the token vocabulary: they keep games valid, form a group of the right order, and no other map does."""

import numpy as np
import pytest
from scipy.stats import chisquare

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.replay import forced_moves, replay
from interp.sudoku.symmetry import (
    apply,
    apply_to_grids,
    apply_to_traces,
    first_then,
    inverse,
    is_symmetry,
    n_symmetries,
    random_symmetries,
    random_symmetry,
)
from interp.sudoku.traces import TraceSet, make_traces
from tests import plain_sudoku as plain

SIDES = [4, 6, 9]


@pytest.fixture(scope="module", params=SIDES)
def traces(request: pytest.FixtureRequest) -> TraceSet:
    rules = Rules.of(request.param)
    return make_traces(rules, generate(rules, 60, seed=request.param).puzzles, seed=1, max_length=120)[:40]


def follows(rules: Rules, tokens: np.ndarray) -> np.ndarray:
    """Whether each trace is legal to its end and fills the board."""
    found = replay(rules, tokens)
    return found.valid[:, -1] & (found.boards[:, -1] > 0).all(axis=1)


def test_a_trace_stays_valid(traces: TraceSet):
    rules, rng = traces.rules, np.random.default_rng(0)
    states = replay(rules, traces.tokens).boards
    for _ in range(10):
        symmetry = random_symmetry(rules, rng)
        assert is_symmetry(rules, symmetry)
        moved = apply_to_traces(symmetry, traces)
        assert follows(rules, moved.tokens).all()
        assert moved.tokens.dtype == traces.tokens.dtype
        boards = replay(rules, moved.tokens).boards
        assert np.array_equal(boards[:, -1], moved.solutions)
        assert np.array_equal(boards[np.arange(40), moved.n_clues], moved.puzzles)
        at = 15
        assert np.array_equal(boards[:, at], apply_to_grids(rules, symmetry, states[:, at]))
        forced = forced_moves(rules, states[:, at])
        assert np.array_equal(forced_moves(rules, boards[:, at])[:, symmetry[: rules.n**3]], forced)


def test_it_is_a_group_action(traces: TraceSet):
    rules, rng = traces.rules, np.random.default_rng(1)
    for _ in range(20):
        a, b, c = random_symmetries(rules, 3, rng)
        both = first_then(a, b)
        assert is_symmetry(rules, both)
        assert np.array_equal(apply(both, traces.tokens), apply(b, apply(a, traces.tokens)))
        one_by_one = apply_to_grids(rules, b, apply_to_grids(rules, a, traces.puzzles))
        assert np.array_equal(apply_to_grids(rules, both, traces.puzzles), one_by_one)
        assert np.array_equal(first_then(first_then(a, b), c), first_then(a, first_then(b, c)))
        assert is_symmetry(rules, inverse(a))
        assert np.array_equal(first_then(a, inverse(a)), np.arange(len(a)))
        assert np.array_equal(apply(inverse(a), apply(a, traces.tokens)), traces.tokens)


def test_a_symmetry_for_each_row(traces: TraceSet):
    each = random_symmetries(traces.rules, len(traces), np.random.default_rng(2))
    moved = apply(each, traces.tokens)
    assert follows(traces.rules, moved).all()
    for i in range(len(traces)):
        assert np.array_equal(moved[i], each[i][traces.tokens[i]])
    assert len(np.unique(each, axis=0)) == len(traces)


def relabelled(n: int, cell: np.ndarray, digit: np.ndarray | None = None) -> np.ndarray:
    digit = np.arange(n) if digit is None else digit
    return np.concatenate([(cell[:, None] * n + digit).ravel(), np.arange(n**3, n**3 + 5)])


def others(n: int) -> dict[str, np.ndarray]:
    """Permutations of the vocabulary that are not symmetries."""
    grid = np.arange(n * n).reshape(n, n)
    rows = list(range(n))
    across = plain.BOX[n][0] - 1  # the last row of the first band and the first of the second
    rows[across], rows[across + 1] = rows[across + 1], rows[across]
    cells = np.arange(n * n)
    cells[[0, n * n - 1]] = cells[[n * n - 1, 0]]
    one_digit = np.arange(n**3 + 5)
    one_digit[[0, 1]] = 1, 0
    control = np.arange(n**3 + 5)
    control[[n**3 + 2, n**3 + 3]] = n**3 + 3, n**3 + 2
    found = {"rows": relabelled(n, grid[rows].ravel()), "cells": relabelled(n, cells), "digits": one_digit}
    found["PUSH and POP"] = control
    if n == 6:
        found["turned"] = relabelled(n, grid.T.ravel())
    return found


def test_no_other_permutation_does(traces: TraceSet):
    """Rows of two bands exchanged, two cells, the digits of one cell, two control tokens; 6x6 turned over."""
    rules = traces.rules
    for name, permutation in others(rules.n).items():
        assert not is_symmetry(rules, permutation), name
        if name != "PUSH and POP" or rules.n == 9:  # smaller puzzles may need no guess
            assert not follows(rules, apply(permutation, traces.tokens)).all(), name
        with pytest.raises(
            InputError, match=rf"no symmetry of a board of side {rules.n}; take one from random_symmetry"
        ):
            apply_to_grids(rules, permutation, traces.puzzles)
    assert not is_symmetry(rules, np.zeros(rules.n**3 + 5, np.int64))


@pytest.mark.parametrize("n", [4, 9])
def test_square_boards_can_be_turned(n: int):
    turned = relabelled(n, np.arange(n * n).reshape(n, n).T.ravel())
    assert is_symmetry(Rules.of(n), turned)


def automorphisms(n: int) -> int:
    """Number of cell permutations that map rows, columns and boxes to rows, columns and boxes: counted by search."""
    units = {frozenset(unit) for unit in plain.UNITS[n]}
    seen = [sum(1 << other for other in cells) for cells in plain.SEEN[n]]
    everywhere = (1 << n * n) - 1

    def extend(image: list[int]) -> int:
        cell, left = len(image), everywhere
        if cell == n * n:
            return {frozenset(image[c] for c in unit) for unit in plain.UNITS[n]} == units
        for c, place in enumerate(image):
            left &= (seen[place] if seen[cell] >> c & 1 else ~seen[place]) & ~(1 << place)
        return sum(extend([*image, other]) for other in range(n * n) if left >> other & 1)

    return extend([])


@pytest.mark.parametrize(("n", "cells"), [(4, 128), (6, 3456)])
def test_the_group_is_whole(n: int, cells: int):
    """All permutations of cells that keep the units are drawn, each equally often, and no others."""
    assert automorphisms(n) == cells
    factorial = {4: 24, 6: 720}[n]
    assert n_symmetries(Rules.of(n)) == cells * factorial
    drawn = random_symmetries(Rules.of(n), cells * 12, np.random.default_rng(3))
    found, counts = np.unique(drawn[:, : n**3 : n] // n, axis=0, return_counts=True)
    assert len(found) == cells
    assert chisquare(counts).pvalue > 1e-4
    digits, counts = np.unique(drawn[:, :n] % n, axis=0, return_counts=True)
    assert len(digits) == factorial
    assert chisquare(counts).pvalue > 1e-4


def test_9x9_has_the_order_that_is_known():
    """2 * 6^8 * 9! (Russell and Jarvis 2006)."""
    assert n_symmetries(Rules.of(9)) == 3359232 * 362880
