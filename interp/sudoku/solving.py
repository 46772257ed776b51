"""How many unseen puzzles the model solves by itself: greedy generation from the clues, replayed on a board.

    clues (shuffled)  END_CLUES  ->  argmax, argmax, ...  up to SUCCESS or the model's last position

As in the paper, a puzzle counts as solved as soon as the board equals its solution, and cell accuracy is the share of
the empty cells that hold their digit at the end. `invalid` counts sequences with any token that is against the rules.
Puzzles with equally many clues run in one batch with a key-value cache, so no prompt is padded.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int8

from interp.errors import InputError
from interp.stats import Interval, wilson
from interp.sudoku.board import Rules, as_grids
from interp.sudoku.model import SudokuModel
from interp.sudoku.replay import Singles, forced_moves, replay
from interp.sudoku.solve import check_puzzles
from interp.sudoku.traces import Reason, TraceSet

BATCH = 512


@dataclass(frozen=True)
class SolveReport:
    """What came of `n` puzzles."""

    n: int
    solved: int
    invalid: int
    """Sequences with an illegal token."""
    cells: int
    """Empty cells of all puzzles."""
    right_cells: int
    """Those that hold the solution's digit at the end."""

    @property
    def rate(self) -> float:
        """The share solved."""
        return self.solved / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the rate."""
        return wilson(self.solved, self.n)

    @property
    def cell_accuracy(self) -> float:
        """The share of empty cells filled rightly."""
        return self.right_cells / max(1, self.cells)

    @property
    def invalid_rate(self) -> float:
        """The share of sequences with an illegal token."""
        return self.invalid / self.n

    def to_json(self) -> dict[str, Any]:
        """The counts by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "SolveReport":
        """What `to_json` gave."""
        return cls(**fields)


def solve_rate(
    model: SudokuModel,
    puzzles: Int[np.ndarray, "m cells"],
    solutions: Int[np.ndarray, "m cells"],
    *,
    seed: int = 0,
    batch_size: int = BATCH,
) -> SolveReport:
    """Let the model solve `puzzles`; `seed` shuffles the clues."""
    traces = own_traces(model, puzzles, seed=seed, solutions=solutions, batch_size=batch_size)
    return report(traces)


def report(traces: TraceSet) -> SolveReport:
    """Count what a model's own traces came to."""
    played = replay(traces.rules, traces.tokens)
    done = (played.boards == traces.solutions[:, None]).all(-1).any(-1)
    last = traces.lengths - 1
    rows = np.arange(len(traces))
    empty = traces.puzzles == 0
    right = empty & (played.boards[rows, last] == traces.solutions)
    return SolveReport(
        n=len(traces),
        solved=int(done.sum()),
        invalid=int((~played.valid[rows, last]).sum()),
        cells=int(empty.sum()),
        right_cells=int(right.sum()),
    )


def own_traces(
    model: SudokuModel,
    puzzles: Int[np.ndarray, "m cells"],
    *,
    seed: int,
    solutions: Int[np.ndarray, "m cells"] | None = None,
    batch_size: int = BATCH,
) -> TraceSet:
    """The model's own greedy continuations as traces, in the order of `puzzles`.

    Reasons are read off the boards: a placement is NAKED or HIDDEN if it was such a single on the board it was made on,
    else GUESS, be it right or wrong. Without `solutions` the puzzles are solved first, and must have one each.
    """
    rules, words, n_ctx = model.rules, model.vocabulary, model.config.n_ctx
    puzzles = as_grids(rules, puzzles)
    if solutions is None:
        solutions = check_puzzles(rules, puzzles)
    n_clues = (puzzles > 0).sum(axis=1)
    if len(puzzles) == 0 or n_clues.max() + 2 > n_ctx:
        raise InputError(
            f"{len(puzzles)} puzzles of up to {n_clues.max(initial=0)} clues for a model of {n_ctx} positions: "
            f"expected at least one, and room for clues, END_CLUES and a token"
        )
    tokens = np.full((len(puzzles), n_ctx), words.pad, np.int16)
    clues = _shuffled_clues(rules, puzzles, seed)
    for count in np.unique(n_clues).tolist():
        same = np.flatnonzero(n_clues == count)
        tokens[same, :count], tokens[same, count] = clues[same, :count], words.end_clues
        for part in np.split(same, range(batch_size, len(same), batch_size)):
            prompt = torch.from_numpy(tokens[part, : count + 1].astype(np.int64))
            new = model.hooked.generate(prompt, max_new_tokens=n_ctx - count - 1, stop_tokens=[words.success])
            tokens[part, count + 1 : count + 1 + new.shape[1]] = new.cpu().numpy()
    lengths = _lengths(tokens, n_clues, words.success)
    tokens[np.arange(n_ctx) >= lengths[:, None]] = words.pad
    return TraceSet(
        rules, tokens, lengths, n_clues, reasons_of(rules, tokens, n_clues), puzzles, as_grids(rules, solutions)
    )


def _shuffled_clues(rules: Rules, puzzles: np.ndarray, seed: int) -> Int[np.ndarray, "m cells"]:
    """Placement tokens of each puzzle's clues in random order, then nothing of meaning."""
    keys = np.random.default_rng(seed).random(puzzles.shape)
    cells = np.where(puzzles > 0, keys, 2.0).argsort(axis=1)
    return cells * rules.n + np.take_along_axis(puzzles, cells, axis=1) - 1


def _lengths(tokens: np.ndarray, n_clues: np.ndarray, success: int) -> Int[np.ndarray, " m"]:
    """Up to the first SUCCESS, itself included."""
    over = tokens == success
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, tokens.shape[1]).astype(np.int64)


def reasons_of(rules: Rules, tokens: Int[np.ndarray, "m t"], n_clues: Int[np.ndarray, " m"]) -> Int8[np.ndarray, "m t"]:
    """Why each token may have been chosen, read off the board in front of it; codes of `Reason`."""
    place = tokens < rules.n_cells * rules.n
    columns = np.arange(tokens.shape[1])
    reasons = np.where(place, Reason.GUESS, Reason.CONTROL).astype(np.int8)
    boards = replay(rules, tokens).boards
    doc, position = np.nonzero(place & (columns > n_clues[:, None]))
    before, made = boards[doc, position - 1], tokens[doc, position]
    ways: tuple[tuple[Singles, Reason], ...] = (("naked+hidden", Reason.HIDDEN), ("naked", Reason.NAKED))
    for singles, reason in ways:
        single = forced_moves(rules, before, singles=singles)[np.arange(len(made)), made]
        reasons[doc[single], position[single]] = reason
    reasons[columns < n_clues[:, None]] = Reason.CLUE
    return reasons
