"""Traces walked token by token in plain Python: each move has the reason it says, each branch is opened and closed."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.generate import generate
from interp.sudoku.traces import ARRAYS, Reason, TraceSet, make_traces
from interp.tensorfile import write_tensors
from tests import plain_sudoku as plain


class Walk:
    """One trace followed with a stack of (board, cell, digits tried); asserts at every token."""

    def __init__(self, n: int, *, singles: str = "naked+hidden", order: str = "random") -> None:
        self.n, self.hidden, self.naked_first = n, singles == "naked+hidden", order == "naked-first"
        self.grid = [0] * (n * n)
        self.open: list[tuple[list[int], int, set[int]]] = []
        self.closed: tuple[list[int], int, set[int]] | None = None  # the branch that the last token left
        self.pushed = False

    def forced(self) -> set[tuple[int, int]]:
        return plain.naked(self.n, self.grid) | (plain.hidden(self.n, self.grid) if self.hidden else set())

    def dead(self) -> bool:
        empty_handed = any(not d and not plain.allowed(self.n, self.grid, c) for c, d in enumerate(self.grid))
        return plain.dead(self.n, self.grid) if self.hidden else empty_handed

    def step(self, token: int, reason: int) -> None:
        end = self.n**3
        if token < end:
            cell, digit = token // self.n, token % self.n + 1
            assert digit in plain.allowed(self.n, self.grid, cell)
            if self.pushed:
                assert reason == Reason.GUESS
                self.guess(cell, digit)
            else:
                self.forced_move(cell, digit, reason)
            self.grid = [*self.grid[:cell], digit, *self.grid[cell + 1 :]]
            self.pushed, self.closed = False, None
            return
        assert reason == Reason.CONTROL
        assert not self.pushed
        if token == end + 2:
            self.pushed = True
        else:
            assert token == end + 3
            self.pop()

    def forced_move(self, cell: int, digit: int, reason: int) -> None:
        assert self.closed is None
        assert not self.dead()
        naked = plain.naked(self.n, self.grid)
        if reason == Reason.NAKED:
            assert (cell, digit) in naked
        else:
            assert reason == Reason.HIDDEN
            assert self.hidden
            assert (cell, digit) in plain.hidden(self.n, self.grid) - naked
            assert not (self.naked_first and naked)

    def guess(self, cell: int, digit: int) -> None:
        tried: set[int] = set()
        if self.closed is not None:  # the next alternative of the branch just left
            before, same, tried = self.closed
            assert (cell, before) == (same, self.grid)
            assert digit not in tried
        assert not self.dead()
        assert not self.forced()
        sizes = {c: len(plain.allowed(self.n, self.grid, c)) for c, d in enumerate(self.grid) if not d}
        assert sizes[cell] == min(sizes.values())
        self.open.append((self.grid, cell, tried | {digit}))

    def pop(self) -> None:
        """The board is dead, or the branch inside has no alternative left."""
        if self.closed is None:
            assert self.dead()
        else:
            before, cell, tried = self.closed
            assert plain.allowed(self.n, before, cell) == tried
        self.closed = self.open.pop()
        self.grid = self.closed[0]


def walk(traces: TraceSet, i: int, **style: str) -> Walk:
    n, k, length = traces.rules.n, int(traces.n_clues[i]), int(traces.lengths[i])
    tokens, reasons = traces.tokens[i].tolist(), traces.reasons[i].tolist()
    follow = Walk(n, **style)
    clues = {(c, d) for c, d in enumerate(traces.puzzles[i].tolist()) if d}
    assert {(t // n, t % n + 1) for t in tokens[:k]} == clues
    assert len(clues) == k
    assert reasons[: k + 1] == [Reason.CLUE] * k + [Reason.CONTROL]
    assert tokens[k] == n**3
    follow.grid = traces.puzzles[i].tolist()
    for token, reason in zip(tokens[k + 1 : length - 1], reasons[k + 1 : length - 1], strict=True):
        follow.step(token, reason)
    assert follow.grid == traces.solutions[i].tolist()
    assert tokens[length - 1 :] == [n**3 + 4] + [n**3 + 1] * (len(tokens) - length)
    assert reasons[length - 1 :] == [Reason.CONTROL] * (len(tokens) - length + 1)
    return follow


STYLES = [{}, {"order": "naked-first"}, {"singles": "naked"}]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("n", "count"), [(4, 40), (6, 40), (9, 5)])
def test_every_token_has_its_reason(n: int, count: int, style: dict):
    made = generate(Rules.of(n), count, seed=21)
    if style.get("singles") == "naked":  # without hidden singles, minimal 9x9 puzzles take hundreds of tokens
        count, made = count // 2, generate(Rules.of(n), count // 2, kind="dense", seed=21)
    traces = make_traces(Rules.of(n), made.puzzles, seed=8, **style)
    assert len(traces) == count
    assert np.array_equal(traces.solutions, made.solutions)
    assert traces.tokens.shape[1] == traces.lengths.max()
    for i in range(count):
        walk(traces, i, **style)


@pytest.fixture(scope="module")
def hard() -> TraceSet:
    """6x6 puzzles whose traces have branches that fail."""
    rules = Rules.of(6)
    traces = make_traces(rules, generate(rules, 4000, seed=0).puzzles, seed=0)
    return traces[(traces.tokens == 6**3 + 3).sum(axis=1) >= 2]


def test_failed_branches(hard: TraceSet):
    """With two POPs or more, whole branches run out of alternatives; and a walk notices what is planted."""
    assert len(hard) >= 20
    nested = 0
    for i in range(20):
        walk(hard, i)
        pops = np.flatnonzero(hard.tokens[i] == 6**3 + 3)
        nested += (np.diff(pops) == 1).any()
    assert nested > 0
    spoilt = hard.reasons.copy()
    spoilt[spoilt == Reason.HIDDEN] = Reason.NAKED
    with pytest.raises(AssertionError):
        walk(TraceSet(hard.rules, hard.tokens, hard.lengths, hard.n_clues, spoilt, hard.puzzles, hard.solutions), 0)
    pop = int(np.flatnonzero(hard.tokens[0] == 6**3 + 3)[0])
    early = hard.tokens[0].copy()
    early[pop - 1], early[pop] = early[pop], early[pop - 1]
    with pytest.raises(AssertionError):
        tokens = np.concatenate([early[None], hard.tokens[1:]])
        walk(TraceSet(hard.rules, tokens, *(getattr(hard, name) for name in ARRAYS[1:])), 0)


def test_the_random_order_is_uniform_over_forced_moves():
    """The same puzzle many times: item numbers differ, so do the traces."""
    rules = Rules.of(4)
    puzzle = generate(rules, 1, seed=1, kind="dense").puzzles
    grid = puzzle[0].tolist()
    moves = plain.naked(4, grid) | plain.hidden(4, grid)
    traces = make_traces(rules, np.tile(puzzle, (3000, 1)), seed=0)
    k = int(traces.n_clues[0])
    counts = np.bincount(traces.tokens[:, k + 1], minlength=64)
    assert set(np.flatnonzero(counts).tolist()) == {cell * 4 + digit - 1 for cell, digit in moves}
    assert chisquare(counts[counts > 0]).pvalue > 1e-4
    first = np.bincount(traces.tokens[:, 0], minlength=64)
    assert chisquare(first[first > 0]).pvalue > 1e-4
    assert (first > 0).sum() == k
    hidden_only = plain.hidden(4, grid) - plain.naked(4, grid)
    assert hidden_only  # so naked-first leaves moves out
    bare = make_traces(rules, np.tile(puzzle, (300, 1)), seed=0, order="naked-first")
    assert set(bare.tokens[:, k + 1].tolist()) == {cell * 4 + digit - 1 for cell, digit in plain.naked(4, grid)}


def test_clues_in_order():
    rules = Rules.of(6)
    made = generate(rules, 50, seed=2)
    plainly = make_traces(rules, made.puzzles, seed=0, shuffle_clues=False)
    mixed = make_traces(rules, made.puzzles, seed=0)
    for i, k in enumerate(plainly.n_clues.tolist()):
        assert plainly.tokens[i, :k].tolist() == sorted(mixed.tokens[i, :k].tolist())
    assert any((np.diff(mixed.tokens[i, : mixed.n_clues[i]]) < 0).any() for i in range(50))


def test_long_traces_are_left_out_or_make_all_rows_long():
    """Longer than the first guess of a row, too: those rows are written again."""
    rules = Rules.of(6)
    made = generate(rules, 300, seed=1)
    whole = make_traces(rules, made.puzzles, seed=0, singles="naked")
    assert whole.lengths.max() > 60
    some = make_traces(rules, made.puzzles, seed=0, singles="naked", max_length=40)
    kept = whole[whole.lengths <= 40]
    assert 0 < len(some) < 300
    assert some.tokens.shape[1] == kept.lengths.max()
    assert np.array_equal(some.tokens, kept.tokens[:, : kept.lengths.max()])
    assert np.array_equal(some.puzzles, kept.puzzles)
    nine = Rules.of(9)
    puzzles = generate(nine, 40, seed=1).puzzles
    long = make_traces(nine, puzzles, seed=0, singles="naked")
    assert long.lengths.max() > 4 * 81
    assert (long.tokens[np.arange(40), long.lengths - 1] == 733).all()
    assert len(make_traces(rules, made.puzzles, seed=0, max_length=5)) == 0
    assert make_traces(rules, made.puzzles[:0], seed=0).tokens.shape == (0, 0)


def test_one_trace_and_some_traces(hard: TraceSet):
    one = hard.trace(3)
    length = int(hard.lengths[3])
    assert one.tokens.tolist() == hard.tokens[3, :length].tolist()
    assert one.boards.tolist() == plain.replay(6, one.tokens.tolist())[0]
    assert one.reasons.tolist() == hard.reasons[3, :length].tolist()
    for chosen in (slice(2, 5), np.array([2, 3, 4])):
        assert np.array_equal(hard[chosen].puzzles, hard.puzzles[2:5])
    joined = TraceSet.joined([hard[:4], hard[4:9]])
    width = hard.lengths[:9].max()
    assert np.array_equal(joined.tokens, hard.tokens[:9, :width])
    assert np.array_equal(joined.reasons, hard.reasons[:9, :width])
    assert all(
        np.array_equal(getattr(joined, n), getattr(hard[:9], n)) for n in ARRAYS if n not in ("tokens", "reasons")
    )
    narrow = make_traces(Rules.of(6), hard.puzzles[:2], seed=3, max_length=300)
    both = TraceSet.joined([narrow, hard])
    assert (both.tokens[:2, narrow.tokens.shape[1] :] == 217).all()
    with pytest.raises(InputError, match=r"cannot join traces of boards of side \[4, 6\]"):
        TraceSet.joined([hard, make_traces(Rules.of(4), np.zeros((0, 16), np.int8), seed=0)])
    with pytest.raises(InputError, match=r"one of them is traces\.trace\(3\)"):
        hard[3]


def test_saving(hard: TraceSet, tmp_path: Path):
    path = tmp_path / "some.safetensors"
    hard.save(path)
    again = TraceSet.load(path)
    assert again.rules == hard.rules
    for name in ARRAYS:
        assert getattr(again, name).dtype == getattr(hard, name).dtype
        assert np.array_equal(getattr(again, name), getattr(hard, name))
    write_tensors(path, {"weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"some\.safetensors is no set of Sudoku traces: it holds weight"):
        TraceSet.load(path)
    with pytest.raises(InputError, match=r"holds no none\.safetensors, so it is no finished set of Sudoku traces"):
        TraceSet.load(tmp_path / "none.safetensors")


def test_unknown_choices():
    puzzles = np.zeros((0, 16), np.int8)
    make = inspect.unwrap(make_traces)  # without the type checker of the tests
    with pytest.raises(InputError, match=r"singles is 'hidden'; it must be one of 'naked', 'naked\+hidden'"):
        make(Rules.of(4), puzzles, seed=0, singles="hidden")
    with pytest.raises(InputError, match="order is 'fifo'; it must be one of 'random', 'naked-first'"):
        make(Rules.of(4), puzzles, seed=0, order="fifo")
    with pytest.raises(InputError, match="max_length is 0; it must be 1 or more"):
        make(Rules.of(4), puzzles, seed=0, max_length=0)
