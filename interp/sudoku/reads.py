"""States of boards in traces, and what a model makes of them: logits and activations at the position that reads them.

A state is a place in a trace: the board after token `at` of row `row`; the model's next move is read off at `at`. Each
state is run as a sequence of its own, cut off behind `at`, so that edits can differ between states.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit
from interp.probe_metrics import Estimate
from interp.sites import Site
from interp.stats import bootstrap_ratio
from interp.sudoku.board import Rules, candidates
from interp.sudoku.model import SudokuModel
from interp.sudoku.replay import replay
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import TraceSet

BATCH = 512


@dataclass(frozen=True)
class States:
    """n states of a set of traces."""

    traces: TraceSet
    row: Int[np.ndarray, " n"]
    at: Int[np.ndarray, " n"]
    boards: Int8[np.ndarray, "n cells"]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: slice | np.ndarray) -> "States":
        return States(self.traces, self.row[chosen], self.at[chosen], self.boards[chosen])

    @property
    def rules(self) -> Rules:
        """Those of the board."""
        return self.traces.rules

    @property
    def next_token(self) -> Int[np.ndarray, " n"]:
        """What the trace goes on with."""
        return self.traces.tokens[self.row, self.at + 1].astype(np.int64)


def clue_states(traces: TraceSet, *, after: int = 0) -> States:
    """Each trace at END_CLUES (the board holds the clues), or `after` tokens later."""
    at = traces.n_clues.astype(np.int64) + after
    if (at >= traces.lengths).any():
        raise InputError(f"some of the traces end before token {after} behind END_CLUES; leave those out")
    boards = replay(traces.rules, traces.tokens).boards
    rows = np.arange(len(traces))
    return States(traces, rows, at, boards[rows, at])


def solving_states(traces: TraceSet) -> States:
    """Every state behind a placement of the solution, outside branches, with a legal past and an empty cell left.

    So neither END_CLUES, PUSH, POP nor SUCCESS is the last token of a state.
    """
    words, played = Vocabulary(traces.rules), replay(traces.rules, traces.tokens)
    place = np.arange(traces.tokens.shape[1])
    fits = (place > traces.n_clues[:, None]) & (place < traces.lengths[:, None] - 1)
    fits &= (traces.tokens < words.n_placements) & played.valid & (played.depth == 0)
    fits &= (played.boards == 0).any(-1)
    row, at = np.nonzero(fits)
    return States(traces, row, at, played.boards[row, at])


def sampled(states: States, *, per_trace: int, seed: int) -> States:
    """`per_trace` states of each trace that has one, in blocks; drawn with replacement where a trace has fewer."""
    rng, chosen = np.random.default_rng(seed), []
    starts = np.flatnonzero(np.diff(states.row, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(states)], strict=True):
        held = stop - start
        chosen.append(start + np.sort(rng.choice(held, per_trace, replace=held < per_trace)))
    return states[np.concatenate(chosen) if chosen else np.zeros(0, np.int64)]


@torch.no_grad()
def read(
    model: SudokuModel,
    states: States,
    sites: Sequence[Site] = (),
    *,
    edits: Callable[[slice], Mapping[Site, Edit]] | None = None,
    batch: int = BATCH,
) -> tuple[Float[Tensor, "n v"], dict[Site, Float[Tensor, "n ..."]]]:
    """Logits and sites at the reading positions; `edits` gives those for a slice of the states."""
    if not len(states):
        raise InputError("there is no state to read: no trace of these has one of the kind asked for")
    logits, found = [], {site: [] for site in sites}
    for start in range(0, len(states), batch):
        part = slice(start, min(start + batch, len(states)))
        at = torch.from_numpy(states.at[part])
        tokens = torch.from_numpy(states.traces.tokens[states.row[part], : int(at.max()) + 1].astype(np.int64))
        rows = torch.arange(len(at))
        with model.hooked.edited(dict(edits(part)) if edits else {}):
            out, kept = model.hooked.run_recorded(tokens, list(sites), lengths=at + 1)
        assert out is not None
        logits.append(out[rows, at].float().cpu())
        for site in sites:
            found[site].append(kept[site][rows, at].float().cpu())
    return torch.cat(logits), {site: torch.cat(parts) for site, parts in found.items()}


def at_read(change: Callable[[Tensor], Tensor], at: Int[np.ndarray, " b"]) -> Edit:
    """The edit that changes each row's vector at its reading position."""

    def edit(x: Tensor, where: object) -> Tensor:
        rows, places = torch.arange(len(at), device=x.device), torch.from_numpy(at).to(x.device)
        x[rows, places] = change(x[rows, places])
        return x

    return edit


def legal_tokens(rules: Rules, boards: Int8[np.ndarray, "n cells"]) -> Bool[np.ndarray, "n v"]:
    """Tokens that may follow a board outside branches: candidates, PUSH, and SUCCESS once it is full."""
    words = Vocabulary(rules)
    legal = np.zeros((len(boards), words.size), bool)
    legal[:, : words.n_placements] = candidates(rules, boards).reshape(len(boards), -1)
    legal[:, words.push], legal[:, words.success] = (boards == 0).any(1), (boards > 0).all(1)
    return legal


def mean_of(values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """The mean over puzzles with its bootstrap interval; NaN values are left out."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(float(values.mean()), *bootstrap_ratio(values, np.ones(len(values)), seed=seed))
