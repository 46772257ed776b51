"""Solution traces as tokens: clues, END_CLUES, forced moves and guesses with PUSH and POP, SUCCESS.

    tokens   c_1 .. c_k  END_CLUES  m_1  m_2  PUSH  g  m_3 ..  POP  PUSH  g' ..  SUCCESS  PAD ..

A PUSH opens a branch and the guess follows it; a contradiction closes the branch with POP, and the next alternative
has a PUSH of its own, the last one too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int8, Int16

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids
from interp.sudoku.jit import kernels
from interp.sudoku.kernels import traces as kernel
from interp.sudoku.replay import SINGLES, Singles, replay
from interp.sudoku.solve import check_puzzles
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.workers import check_seed, spread
from interp.tensorfile import read_tensors, write_tensors

Order = Literal["random", "naked-first"]
ORDERS = ("random", "naked-first")


class Reason(IntEnum):
    """Why a token stands in a trace; CONTROL is every token that is no placement, padding among them."""

    CLUE = kernel.CLUE
    CONTROL = kernel.CONTROL
    NAKED = kernel.NAKED
    HIDDEN = kernel.HIDDEN
    GUESS = kernel.GUESS


@dataclass(frozen=True)
class Trace:
    """One trace without its padding; `boards` are those after each token."""

    tokens: Int16[np.ndarray, " t"]
    boards: Int8[np.ndarray, "t cells"]
    reasons: Int8[np.ndarray, " t"]


_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)
ARRAYS = ("tokens", "lengths", "n_clues", "reasons", "puzzles", "solutions")


@dataclass(frozen=True)
class TraceSet:
    """Traces of many puzzles of one size. END_CLUES stands at index `n_clues`, PAD from index `lengths` on."""

    rules: Rules
    tokens: Int16[np.ndarray, "b t"]
    lengths: Int[np.ndarray, " b"]
    n_clues: Int[np.ndarray, " b"]
    reasons: Int8[np.ndarray, "b t"]
    puzzles: Int8[np.ndarray, "b cells"]
    solutions: Int8[np.ndarray, "b cells"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: slice | int | Int[np.ndarray, " k"] | Bool[np.ndarray, " b"]) -> "TraceSet":
        if isinstance(chosen, int | np.integer):
            raise InputError(f"traces[{chosen}] would be no set of traces; one of them is traces.trace({chosen})")
        return TraceSet(self.rules, *(getattr(self, name)[chosen] for name in ARRAYS))

    def trace(self, i: int) -> Trace:
        """Trace `i` with its boards."""
        tokens = self.tokens[i, : self.lengths[i]]
        boards = replay(self.rules, tokens[None]).boards[0]
        return Trace(tokens, boards, self.reasons[i, : self.lengths[i]])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, the facts as JSON in its header."""
        if not len(self):
            raise InputError("there is no trace to save")
        tensors = {name: torch.from_numpy(np.array(getattr(self, name))) for name in ARRAYS}
        write_tensors(Path(path), tensors, {"kind": "sudoku traces", "n": self.rules.n})

    @staticmethod
    def load(path: str | Path) -> "TraceSet":
        """Read what `save` wrote."""
        tensors, facts = read_tensors(Path(path), "set of Sudoku traces")
        whole = {name for name, tensor in tensors.items() if tensor.dtype in _WHOLE}
        if (
            not isinstance(facts, dict)
            or facts.get("kind") != "sudoku traces"
            or not set(tensors) == whole == set(ARRAYS)
        ):
            raise InputError(f"{path} is no set of Sudoku traces: it holds {', '.join(sorted(tensors))}; see TraceSet")
        if type(n := facts.get("n")) is not int:
            raise InputError(f"{path} is damaged: its boards have the side {n!r:.40}")
        found = TraceSet(Rules.of(n), *(tensors[name].numpy() for name in ARRAYS))
        return found._checked(str(path))

    def _checked(self, path: str) -> "TraceSet":
        """The same, if the arrays can be those of traces: nothing that reads them looks beyond an end then."""
        b, t = self.tokens.shape if self.tokens.ndim == 2 else (0, 0)
        shapes = [(b, t), (b,), (b,), (b, t), (b, self.rules.n_cells), (b, self.rules.n_cells)]
        if [getattr(self, name).shape for name in ARRAYS] != shapes:
            raise InputError(
                f"{path} is damaged: its arrays are not those of {b} traces on boards of side {self.rules.n}"
            )
        ends = {"tokens": Vocabulary(self.rules).size - 1, "reasons": max(Reason), "lengths": t, "n_clues": t}
        for name, array in ((name, getattr(self, name)) for name in ARRAYS):
            if array.size and not (0 <= array.min() and array.max() <= ends.get(name, self.rules.n)):
                raise InputError(f"{path} is damaged: {name} from {array.min()} to {array.max()}")
        if (self.n_clues >= self.lengths).any():
            raise InputError(f"{path} is damaged: a trace is shorter than its clues")
        return self

    @staticmethod
    def joined(parts: Sequence["TraceSet"]) -> "TraceSet":
        """The traces of all parts, one after the other, in rows as wide as the longest needs."""
        if not parts or len({part.rules for part in parts}) > 1:
            raise InputError(f"cannot join traces of boards of side {sorted({part.rules.n for part in parts})}")
        width, rules = max(int(part.lengths.max(initial=0)) for part in parts), parts[0].rules
        fill = {"tokens": Vocabulary(rules).pad, "reasons": Reason.CONTROL}

        def wide(name: str, array: np.ndarray) -> np.ndarray:
            if name not in fill:
                return array
            more = max(0, width - array.shape[1])
            return np.pad(array[:, :width], ((0, 0), (0, more)), constant_values=fill[name])

        return TraceSet(rules, *(np.concatenate([wide(n, getattr(p, n)) for p in parts]) for n in ARRAYS))


def make_traces(
    rules: Rules,
    puzzles: Int[np.ndarray, "b cells"],
    *,
    seed: int,
    singles: Singles = "naked+hidden",
    order: Order = "random",
    shuffle_clues: bool = True,
    max_length: int | None = None,
    first: int = 0,
    workers: int = 1,
) -> TraceSet:
    """Solve puzzles and write down how; trace i is a function of the seed, `first + i` and the puzzle.

    `order`: the next of the forced moves at random, or a naked single while there is one. Without `shuffle_clues` the
    clues stand in the order of the cells. Puzzles whose traces are longer than `max_length` are left out: without it,
    one long trace makes every row long.
    """
    for name, value, known in (("singles", singles, SINGLES), ("order", order, ORDERS)):
        if value not in known:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be 1 or more")
    check_seed(seed, first)
    puzzles = as_grids(rules, puzzles)
    solutions = check_puzzles(rules, puzzles, workers=workers)
    options = singles == "naked+hidden", order == "naked-first", shuffle_clues
    width = max_length or 4 * rules.n_cells

    def job(start: int, stop: int) -> TraceSet:
        some = rules, puzzles[start:stop], solutions[start:stop], seed, first + start, options
        part = _rows(*some, width)
        if max_length is not None:
            return part[part.lengths <= max_length]
        longest = int(part.lengths.max())
        return _rows(*some, longest) if longest > width else part

    empty = np.zeros((0, rules.n_cells), np.int8)
    return TraceSet.joined(list(spread(job, len(puzzles), workers)) or [_rows(rules, empty, empty, 0, 0, options, 0)])


def _rows(
    rules: Rules,
    puzzles: Int8[np.ndarray, "b cells"],
    solutions: Int8[np.ndarray, "b cells"],
    seed: int,
    first: int,
    options: tuple[bool, bool, bool],
    width: int,
) -> TraceSet:
    """Traces in rows of at most `width` tokens, longer ones cut off; `lengths` tells how long they are."""
    k, cells, count = kernels(), rules.n_cells, len(puzzles)
    tokens, reasons, lengths = k.zeros(count * width), k.zeros(count * width), k.zeros(count)
    extra = k.zeros(cells), k.zeros(cells), k.zeros(cells * rules.n)
    scratch = k.zeros(cells), k.zeros(3 * rules.n), k.zeros(4 * cells), k.zeros(4), k.zeros(cells), extra
    k.call.make_traces(
        *k.tables(rules), seed, first, k.given(puzzles), count, options, width, tokens, reasons, lengths, *scratch
    )
    long = np.array(lengths, np.int32)
    shape = (count, width)
    used = np.arange(width) < long[:, None]
    rows = np.where(used, np.array(tokens, np.int16).reshape(shape), Vocabulary(rules).pad).astype(np.int16)
    why = np.where(used, np.array(reasons, np.int8).reshape(shape), Reason.CONTROL).astype(np.int8)
    fill = min(width, int(long.max(initial=0)))
    clues = (puzzles > 0).sum(axis=1).astype(np.int32)
    return TraceSet(rules, rows[:, :fill], long, clues, why[:, :fill], puzzles, solutions)
