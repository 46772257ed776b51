"""Boards, vocabulary, replay and forced moves, against plain Python."""

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.sudoku.board import Rules, candidates
from interp.sudoku.generate import generate
from interp.sudoku.replay import forced_moves, replay, solved
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import make_traces
from tests import plain_sudoku as plain

SIDES = [4, 6, 9]


@pytest.mark.parametrize("n", SIDES)
def test_units_and_peers(n: int):
    rules = Rules.of(n)
    assert rules.units.tolist() == plain.units(n)
    assert rules.peers.tolist() == plain.SEEN[n]
    for cell, units in enumerate(rules.units_of.tolist()):
        assert units == [u for u, cells in enumerate(plain.units(n)) if cell in cells]
    assert Rules.of(n) is Rules.of(n)
    with pytest.raises(ValueError, match="read-only"):
        rules.units[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.n = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_no_other_side():
    with pytest.raises(InputError, match="no board of side 8 here; take one of 4, 6, 9"):
        Rules.of(8)


def boards(n: int, count: int) -> np.ndarray:
    """States on the way of real traces, dead ends included, with some digits changed at random."""
    rng = np.random.default_rng(n)
    traces = make_traces(Rules.of(n), generate(Rules.of(n), 30, seed=3).puzzles, seed=3)
    grids = replay(Rules.of(n), traces.tokens).boards.reshape(-1, n * n)
    grids = grids[rng.choice(len(grids), count, replace=False)]
    changed = rng.random(grids.shape) < 0.03
    return np.where(changed, rng.integers(0, n + 1, grids.shape), grids).astype(np.int8)


@pytest.mark.parametrize("n", SIDES)
def test_candidates_and_forced_moves(n: int):
    rules, grids = Rules.of(n), boards(n, 300 if n < 9 else 60)
    found, forced = candidates(rules, grids), forced_moves(rules, grids)
    bare = forced_moves(rules, grids, singles="naked")
    v = Vocabulary(rules)
    for i, grid in enumerate(grids.tolist()):
        for cell in range(n * n):
            assert set((np.flatnonzero(found[i, cell]) + 1).tolist()) == plain.allowed(n, grid, cell)
        naked, hidden = plain.naked(n, grid), plain.hidden(n, grid)
        assert set(np.flatnonzero(bare[i]).tolist()) == {v.placement(*move) for move in naked}
        assert set(np.flatnonzero(forced[i]).tolist()) == {v.placement(*move) for move in naked | hidden}


def test_forced_moves_of_many_boards_are_those_of_each():
    """More boards than are done at a time."""
    rules, grids = Rules.of(4), np.tile(boards(4, 100), (11, 1))
    one_by_one = np.concatenate([forced_moves(rules, grid[None]) for grid in grids[:100]])
    assert np.array_equal(forced_moves(rules, grids), np.tile(one_by_one, (11, 1)))
    assert forced_moves(rules, grids[:0]).shape == (0, 64)


def test_bad_grids():
    rules = Rules.of(4)
    with pytest.raises(InputError, match=r"grids have 81 cells, but a board of side 4 has 16.*\[m, 16\]"):
        candidates(rules, np.zeros((2, 81), np.int8))
    with pytest.raises(
        InputError, match=r"values from 0 to 5; cells of a board of side 4 hold 0 \(empty\) or digits 1 to 4"
    ):
        candidates(rules, np.eye(16, dtype=np.int64)[:2] * 5)
    with pytest.raises(InputError, match=r"singles is 'all'; it must be one of 'naked', 'naked\+hidden'"):
        inspect.unwrap(forced_moves)(rules, np.zeros((1, 16), np.int8), singles="all")


def test_vocabulary():
    v = Vocabulary(Rules.of(9))
    assert (v.end_clues, v.pad, v.push, v.pop, v.success, v.size, v.n_placements) == (729, 730, 731, 732, 733, 734, 729)
    assert [Vocabulary(Rules.of(n)).size for n in (4, 6)] == [69, 221]
    for n in SIDES:
        v = Vocabulary(Rules.of(n))
        pairs = [(v.cell(token), v.digit(token)) for token in range(v.n_placements)]
        assert [v.placement(*pair) for pair in pairs] == list(range(v.n_placements))
        assert len(set(pairs)) == n**3
        assert {token // n for token in range(v.n_placements)} == {cell for cell, _ in pairs}
    v = Vocabulary(Rules.of(9))
    assert v.describe(v.placement(1, 3)) == "R1C2=3"
    assert v.describe(v.placement(80, 9)) == "R9C9=9"
    assert [v.describe(t) for t in range(729, 734)] == ["END_CLUES", "PAD", "PUSH", "POP", "SUCCESS"]


@pytest.mark.parametrize("token", [-1, 729, 734])
def test_what_is_no_placement(token: int):
    with pytest.raises(InputError, match=f"token {token} is no placement; those of a board of side 9 are 0 to 728"):
        Vocabulary(Rules.of(9)).cell(token)
    if token != 729:
        with pytest.raises(InputError, match="no placement"):
            Vocabulary(Rules.of(9)).describe(token)


@pytest.mark.parametrize(("cell", "digit"), [(16, 1), (-1, 1), (0, 0), (0, 5)])
def test_no_such_placement(cell: int, digit: int):
    with pytest.raises(InputError, match=f"cell {cell}, digit {digit} is no placement on a board of side 4"):
        Vocabulary(Rules.of(4)).placement(cell, digit)


def compare(n: int, tokens: list[list[int]]) -> np.ndarray:
    found = replay(Rules.of(n), np.array(tokens, np.int16).reshape(len(tokens), -1))
    for i, row in enumerate(tokens):
        boards, depths, flags = plain.replay(n, row)
        assert found.boards[i].tolist() == boards
        assert found.depth[i].tolist() == depths
        assert found.valid[i].tolist() == flags
    return found.valid


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_replay_of_any_tokens(data: st.DataObject):
    """Few different tokens, so that placements collide, branches open and close, and controls come out of place."""
    some = st.sampled_from([0, 1, 4, 5, 22, 63, *range(64, 69), 66, 67])
    length = data.draw(st.integers(1, 25))
    compare(4, data.draw(st.lists(st.lists(some, min_size=length, max_size=length), min_size=1, max_size=4)))


@pytest.mark.parametrize("n", SIDES)
def test_replay_of_traces(n: int):
    """Real traces are legal to their end; one wrong token in the middle is noticed by both."""
    rules = Rules.of(n)
    traces = make_traces(rules, generate(rules, 12, seed=5).puzzles, seed=5)
    assert compare(n, traces.tokens.tolist()).all()
    assert solved(rules, traces.tokens, traces.solutions).all()
    spoilt = traces.tokens.copy()
    at = traces.n_clues + 2
    spoilt[np.arange(12), at] = spoilt[np.arange(12), 0]  # the first clue once more
    valid = compare(n, spoilt.tolist())
    assert all(valid[i, : at[i]].all() and not valid[i, at[i] :].any() for i in range(12))


def test_replay_refuses_other_tokens():
    with pytest.raises(InputError, match="tokens run from 0 to 69; the vocabulary of a board of side 4 has 0 to 68"):
        replay(Rules.of(4), np.array([[0, 69]]))
    assert replay(Rules.of(4), np.zeros((0, 3), np.int16)).boards.shape == (0, 3, 16)


def test_solved_as_soon_as_the_board_is():
    """Also when later tokens spoil the board; not when the last cell lacks, nor for another solution."""
    rules = Rules.of(4)
    traces = make_traces(rules, generate(rules, 2, seed=0).puzzles, seed=0)
    assert not (traces.solutions[0] == traces.solutions[1]).all()
    last = int(traces.lengths[0]) - 2
    tokens = traces.tokens[:1, : last + 2].copy()
    tokens[0, -1] = (tokens[0, 0] + 1) % 4 + tokens[0, 0] // 4 * 4  # instead of SUCCESS another digit over a clue
    assert solved(rules, tokens, traces.solutions[:1]).tolist() == [True]
    assert solved(rules, tokens[:, :last], traces.solutions[:1]).tolist() == [False]
    assert solved(rules, tokens, traces.solutions[1:]).tolist() == [False]
