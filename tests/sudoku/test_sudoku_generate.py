"""Random numbers, puzzles and the solver, against plain Python; compiled and plain kernels; any number of workers."""

import inspect
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from interp.errors import InputError
from interp.sudoku import jit
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.kernels import random
from interp.sudoku.solve import check_puzzles, count_solutions, solve
from interp.sudoku.traces import ARRAYS, make_traces
from tests import plain_sudoku as plain

EMPTY = np.zeros(16, np.int8)


def test_random_numbers_are_those_published():
    """xoshiro128** from the state 1, 2, 3, 4, and MurmurHash3's finaliser: values of other implementations."""
    state = [1, 2, 3, 4]
    found = [random.below(state, 1 << 32) for _ in range(6)]
    assert found == [11520, 0, 5927040, 70819200, 2031721883, 1637235492]
    assert random.mix(1) == 0x514E28B7


def test_states_of_items_differ():
    def state(*key: int) -> tuple[int, ...]:
        words = [0] * 4
        random.begin(words, *key)
        return tuple(words)

    keys = [(s, stream, i) for s in (0, 1, 2**32, 2**63 - 1) for stream in (1, 2) for i in (*range(200), 2**32, 2**40)]
    assert len({state(*key) for key in keys}) == len(keys)


def test_shuffles_are_uniform():
    state, counts = [1, 2, 3, 4], {}
    for _ in range(6000):
        items = [0, 1, 2, 3]
        random.shuffle(state, items, 3)
        counts[tuple(items)] = counts.get(tuple(items), 0) + 1
    assert set(counts) == {(a, b, 3 - a - b, 3) for a in range(3) for b in range(3) if a != b}
    assert chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize(("n", "count"), [(4, 120), (6, 25), (9, 2)])
def test_minimal_puzzles_are_minimal_and_have_one_solution(n: int, count: int):
    made = generate(Rules.of(n), count, seed=11)
    for puzzle, solution in zip(made.puzzles.tolist(), made.solutions.tolist(), strict=True):
        assert [s for _, s in zip(range(2), plain.solutions(n, puzzle), strict=False)] == [solution]
        for cell in np.flatnonzero(puzzle).tolist():
            assert plain.count(n, [*puzzle[:cell], 0, *puzzle[cell + 1 :]], 2) == 2


def test_every_4x4_grid_is_made():
    """There are 288."""
    assert count_solutions(Rules.of(4), EMPTY, limit=1000) == 288
    assert len(np.unique(generate(Rules.of(4), 5000, seed=0).solutions, axis=0)) == 288


@settings(deadline=None, max_examples=60)
@given(n=st.sampled_from([4, 6]), item=st.integers(0, 500), keep=st.integers(2, 12), wrong=st.booleans())
def test_numbers_of_solutions(n: int, item: int, keep: int, wrong: bool):
    """Grids with none, one or many solutions: a few clues of a full grid, one of them perhaps made wrong."""
    full = generate(Rules.of(n), 1, seed=2, first=item).solutions[0]
    rng = np.random.default_rng(item)
    grid = np.zeros_like(full)
    chosen = rng.choice(n * n, keep, replace=False)
    grid[chosen] = full[chosen]
    if wrong:
        grid[chosen[0]] = grid[chosen[0]] % n + 1
    legal = all(int(d) in plain.allowed(n, [*grid[:c], 0, *grid[c + 1 :]], c) for c, d in enumerate(grid) if d)
    assert count_solutions(Rules.of(n), grid, limit=5) == (plain.count(n, grid.tolist(), 5) if legal else 0)


def test_dense_puzzles_are_minimal_ones_with_cells_given_back():
    rules, m = Rules.of(4), 3000
    dense, bare = generate(rules, m, kind="dense", seed=4), generate(rules, m, seed=4)
    assert np.array_equal(dense.solutions, bare.solutions)
    assert np.array_equal(dense.puzzles * (bare.puzzles > 0), bare.puzzles)
    assert np.array_equal(dense.puzzles, dense.solutions * (dense.puzzles > 0))
    of_twelve = (bare.puzzles == 0).sum(axis=1) == 12
    back = (dense.puzzles[of_twelve] > 0).sum(axis=1) - 4
    counts = np.bincount(back, minlength=13)
    assert counts[0] == counts[12] == 0  # 10 % and 90 % of 12, rounded: 1 to 11
    assert chisquare(counts[1:12]).pvalue > 1e-4
    share = 1 - (dense.puzzles == 0).sum(axis=0) / (bare.puzzles == 0).sum(axis=0)
    assert abs(share - 0.5).max() < 0.06  # whichever cell: 5 standard errors of the mean of 2,100 shares


def test_items_do_not_depend_on_count_workers_or_first():
    rules = Rules.of(4)
    whole = generate(rules, 700, seed=9)
    assert all(map(np.array_equal, generate(rules, 700, seed=9, workers=2), whole))
    assert all(
        np.array_equal(a, b[300:600]) for a, b in zip(generate(rules, 300, seed=9, first=300), whole, strict=True)
    )
    assert not np.array_equal(generate(rules, 700, seed=10).solutions, whole.solutions)
    traces = make_traces(rules, whole.puzzles, seed=9)
    for other in (
        make_traces(rules, whole.puzzles, seed=9, workers=2),
        make_traces(rules, whole.puzzles, seed=9, max_length=18),
    ):
        assert all(np.array_equal(getattr(other, name), getattr(traces, name)) for name in ARRAYS)
    later = make_traces(rules, whole.puzzles[300:600], seed=9, first=300)
    assert all(np.array_equal(getattr(later, name), getattr(traces[300:600], name)) for name in ARRAYS)
    assert not np.array_equal(make_traces(rules, whole.puzzles, seed=10).tokens, traces.tokens)


@pytest.mark.parametrize(("n", "count"), [(4, 60), (6, 40), (9, 8)])
def test_compiled_and_plain_kernels_agree(n: int, count: int, monkeypatch: pytest.MonkeyPatch):
    def everything():
        made = generate(Rules.of(n), count, kind="dense", seed=2**40 + 1, first=2**33)
        bare = generate(Rules.of(n), count, seed=3)
        traces = [
            make_traces(Rules.of(n), bare.puzzles, seed=3, order=order, max_length=150, first=2**33)
            for order in ("random", "naked-first")
        ]
        fields = [getattr(t, name) for t in traces for name in ARRAYS]
        return [*made, *bare, check_puzzles(Rules.of(n), bare.puzzles), *fields]

    assert jit.kernels().compiled
    compiled = everything()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not jit.kernels().compiled
    for a, b in zip(compiled, everything(), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_solver():
    rules = Rules.of(9)
    made = generate(rules, 40, seed=6)
    assert np.array_equal(check_puzzles(rules, made.puzzles, workers=2), made.solutions)
    assert np.array_equal(solve(rules, made.puzzles[0]), made.solutions[0])
    assert np.array_equal(solve(rules, made.solutions[0]), made.solutions[0])
    assert count_solutions(rules, made.puzzles[0]) == 1
    assert check_puzzles(rules, made.puzzles[:0]).shape == (0, 81)


def grid(text: str) -> np.ndarray:
    return np.array([int(c) for c in text.replace(".", "0")], np.int8)


def test_bad_puzzles_are_refused_with_number_and_reason():
    rules = Rules.of(4)
    good = grid("1234341221434321")
    twice, none = grid("11.............."), grid("12..34.........5".replace("5", "."))
    assert plain.count(4, grid("123.......4.....").tolist(), 1) == 1
    none = grid("123...4.........")  # row 1 needs a 4 in column 4, which box 2 cannot take twice
    assert plain.count(4, none.tolist(), 1) == 0
    with pytest.raises(
        InputError, match=r"puzzle 1 \(counted from 0\) has more than one solution: \.{16}; give puzzles"
    ):
        check_puzzles(rules, np.stack([good, EMPTY, twice]))
    with pytest.raises(
        InputError, match=r"puzzle 1 .*contradicts itself: row 1 holds the digit 1 in R1C1 and R1C2; it is 11"
    ):
        check_puzzles(rules, np.stack([good, twice, EMPTY]))
    with pytest.raises(InputError, match=r"puzzle 2 .*has no solution: 123\.\.\.4"):
        check_puzzles(rules, np.stack([good, good, none]))
    with pytest.raises(InputError, match="the puzzle has more than one solution"):
        solve(rules, EMPTY)
    with pytest.raises(InputError, match="column 2 holds the digit 3 in R1C2 and R4C2"):
        solve(rules, grid(".3...........3.."))
    with pytest.raises(InputError, match="box 4 holds the digit 3 in R3C3 and R4C4"):
        solve(rules, grid("..........3....3"))
    with pytest.raises(InputError, match=r"puzzle 0 .*has more than one"):
        make_traces(rules, EMPTY[None], seed=0)
    assert count_solutions(rules, twice) == 0
    assert count_solutions(rules, none) == 0


def test_bad_requests():
    rules = Rules.of(4)
    with pytest.raises(InputError, match="seed is -1; it must be 0 or more, and less than"):
        generate(rules, 1, seed=-1)
    with pytest.raises(InputError, match="first is -3"):
        make_traces(rules, EMPTY[None], seed=0, first=-3)
    with pytest.raises(InputError, match="count is -1; it must be 0 or more"):
        generate(rules, -1, seed=0)
    with pytest.raises(InputError, match="workers is 0; it must be 1 or more"):
        generate(rules, 1, seed=0, workers=0)
    with pytest.raises(InputError, match="limit is 0; it must be 1 or more"):
        count_solutions(rules, EMPTY, limit=0)
    with pytest.raises(InputError, match="kind of puzzle is 'hard'; it must be one of 'minimal', 'dense'"):
        inspect.unwrap(generate)(rules, 1, kind="hard", seed=0)
    assert generate(rules, 0, seed=0).puzzles.shape == (0, 16)
