"""What the solver learns to predict: the move that was made, or any of the moves that were open.

    single:  -log p(y)                            y the next token of the trace (the paper's loss)
    multi:   -1/|F| sum_{y in F} log p(y)         F all forced moves on the board; {next token} where none is forced

Both are means over the tokens strictly behind END_CLUES: the first is predicted AT END_CLUES, from clues alone; clues
and END_CLUES are predicted nowhere. The multi-target loss is a cross-entropy against the uniform distribution over F,
so its least value is mean log|F|, reached by the model that spreads its probability evenly over F; `single` has the
same least value in expectation when traces pick among F at random. Multi-target: Giannoulis et al. 2025
(arXiv 2509.22023); here a state counts as forced if the trace's next token is a placement made for a single, so that
guesses, PUSH, POP and SUCCESS, a contradiction's included, are learnt from the trace.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.sudoku.packing import Places, every_position
from interp.sudoku.replay import Singles, forced_moves, replay
from interp.sudoku.traces import Reason, TraceSet

Objective = Literal["single", "multi"]


class Outcome(NamedTuple):
    """Of one batch, on the device."""

    loss: Float[Tensor, ""]
    floor: Float[Tensor, ""]
    """The least loss possible against these targets: mean log|F|, 0 for `single`."""
    hits: Float[Tensor, ""]
    """The fraction of positions whose most likely token is a target."""


class Predicted(NamedTuple):
    """Where something is predicted: token `position + 1` of `doc`, from what is seen up to `position`."""

    doc: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]

    def flat(self, places: Places, n_ctx: int) -> Int[Tensor, " n"]:
        """The same in packed rows, counted over all of them."""
        return torch.from_numpy(places.row[self.doc] * n_ctx + places.start[self.doc] + self.position)


def predicted(traces: TraceSet) -> Predicted:
    """Every position whose next token stands strictly behind END_CLUES."""
    doc, position = every_position(traces.lengths)
    wanted = (position >= traces.n_clues[doc]) & (position < traces.lengths[doc] - 1)
    return Predicted(doc[wanted], position[wanted])


def next_tokens(traces: TraceSet, where: Predicted) -> Int[np.ndarray, " n"]:
    """What follows in the trace."""
    return traces.tokens[where.doc, where.position + 1].astype(np.int64)


def open_moves(traces: TraceSet, where: Predicted, *, singles: Singles, size: int) -> Bool[np.ndarray, "n v"]:
    """All right answers: every forced move where the trace makes one, else its next token."""
    doc, position = where
    targets = np.zeros((len(doc), size), np.bool_)
    targets[np.arange(len(doc)), next_tokens(traces, where)] = True
    made = traces.reasons[doc, position + 1]
    forced = np.flatnonzero((made == Reason.NAKED) | (made == Reason.HIDDEN))
    boards = replay(traces.rules, traces.tokens).boards[doc[forced], position[forced]]
    moves = forced_moves(traces.rules, boards, singles=singles)
    targets[forced, : moves.shape[1]] |= moves
    return targets


def single_target(logits: Float[Tensor, "n v"], target: Int[Tensor, " n"]) -> Outcome:
    """Cross-entropy on the trace's next token."""
    loss = torch.nn.functional.cross_entropy(logits, target)
    with torch.no_grad():
        hits = (logits.argmax(-1) == target).float().mean()
    return Outcome(loss, torch.zeros_like(hits), hits)


def multi_target(logits: Float[Tensor, "n v"], targets: Bool[Tensor, "n v"]) -> Outcome:
    """Cross-entropy on the uniform distribution over each row's targets."""
    counts = targets.sum(-1)
    inside = (logits * targets).sum(-1) / counts
    loss = (logits.logsumexp(-1) - inside).mean()
    with torch.no_grad():
        hits = targets.gather(1, logits.argmax(-1, keepdim=True)).float().mean()
        return Outcome(loss, counts.float().log().mean(), hits)
