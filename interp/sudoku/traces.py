"""Solution traces as tokens: clues, END_CLUES, forced moves and guesses with PUSH and POP, SUCCESS.

    tokens   c_1 .. c_k  END_CLUES  m_1  m_2  PUSH  g  m_3 ..  POP  PUSH  g' ..  SUCCESS  PAD ..

A PUSH opens a branch and the guess follows it; a contradiction closes the branch with POP, and the next alternative
has a PUSH of its own, the last one too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int8, Int16

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.replay import replay
from interp.sudoku.tokens import Vocabulary
from interp.tensorfile import read_tensors, write_tensors


class Reason(IntEnum):
    """Why a token stands in a trace; CONTROL is every token that is no placement, padding among them."""

    CLUE = 0
    CONTROL = 1
    NAKED = 2
    HIDDEN = 3
    GUESS = 4


@dataclass(frozen=True)
class Trace:
    """One trace without its padding; `boards` are those after each token."""

    tokens: Int16[np.ndarray, " t"]
    boards: Int8[np.ndarray, "t cells"]
    reasons: Int8[np.ndarray, " t"]


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

    def __getitem__(self, chosen: slice | Int[np.ndarray, " k"]) -> "TraceSet":
        return TraceSet(self.rules, *(getattr(self, name)[chosen] for name in ARRAYS))

    def trace(self, i: int) -> Trace:
        """Trace `i` with its boards."""
        tokens = self.tokens[i, : self.lengths[i]]
        boards = replay(self.rules, tokens[None]).boards[0]
        return Trace(tokens, boards, self.reasons[i, : self.lengths[i]])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, the facts as JSON in its header."""
        tensors = {name: torch.from_numpy(np.array(getattr(self, name))) for name in ARRAYS}
        write_tensors(Path(path), tensors, {"kind": "sudoku traces", "n": self.rules.n})

    @staticmethod
    def load(path: str | Path) -> "TraceSet":
        """Read what `save` wrote."""
        tensors, facts = read_tensors(Path(path), "set of Sudoku traces")
        if not isinstance(facts, dict) or facts.get("kind") != "sudoku traces" or set(tensors) != set(ARRAYS):
            raise InputError(f"{path} is no set of Sudoku traces: it holds {', '.join(sorted(tensors))}; see TraceSet")
        return TraceSet(Rules.of(facts["n"]), *(tensors[name].numpy() for name in ARRAYS))

    @staticmethod
    def joined(parts: Sequence["TraceSet"]) -> "TraceSet":
        """The traces of all parts, one after the other, padded to the longest."""
        if not parts or len({part.rules for part in parts}) > 1:
            raise InputError(f"cannot join traces of boards of side {sorted({part.rules.n for part in parts})}")
        width, rules = max(part.tokens.shape[1] for part in parts), parts[0].rules
        fill = {"tokens": Vocabulary(rules).pad, "reasons": Reason.CONTROL}

        def wide(name: str, array: np.ndarray) -> np.ndarray:
            if name not in fill:
                return array
            return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill[name])

        return TraceSet(rules, *(np.concatenate([wide(n, getattr(p, n)) for p in parts]) for n in ARRAYS))
