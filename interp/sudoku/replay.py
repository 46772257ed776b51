"""What a sequence of tokens does to the board, and which moves a board forces.

    placement   writes its digit            PUSH  saves a copy of the board
    END_CLUES   nothing                     POP   takes the last copy back
    naked single:   the cell has one candidate          hidden single:   a unit has one place for the digit

Illegal are: a placement into a filled cell, or of a digit that a unit of the cell holds; POP without a copy; PUSH, POP
or SUCCESS before END_CLUES; a second END_CLUES; SUCCESS on a board that is not full; any token after SUCCESS or PAD but
PAD. An illegal placement is written all the same (as an evaluator without rules does), another illegal token does
nothing; `valid` is False from there on.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int8, Int16

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids, candidate_masks, unpack
from interp.sudoku.tokens import Vocabulary

Singles = Literal["naked", "naked+hidden"]
SINGLES = ("naked", "naked+hidden")
BOARDS = 256  # boards at a time: what is computed of them stays in the cache, 3 us a 9x9 board instead of 20


class Replay(NamedTuple):
    """Board AFTER each token, copies on the stack after it, and whether every token so far was legal."""

    boards: Int8[np.ndarray, "b t cells"]
    depth: Int[np.ndarray, "b t"]
    valid: Bool[np.ndarray, "b t"]


def replay(rules: Rules, tokens: Int[np.ndarray, "b t"]) -> Replay:
    """Carry out the tokens of each row on an empty board."""
    v = Vocabulary(rules)
    if tokens.size and not (0 <= tokens.min() and tokens.max() < v.size):
        raise InputError(
            f"tokens run from {tokens.min()} to {tokens.max()}; the vocabulary of a board of side {rules.n} has "
            f"0 to {v.size - 1}"
        )
    b, t = tokens.shape
    rows = np.arange(b)
    boards, depths = np.zeros((b, t, rules.n_cells), np.int8), np.zeros((b, t), np.int32)
    valid = np.ones((b, t), bool)
    board, depth, ok = np.zeros((b, rules.n_cells), np.int8), np.zeros(b, np.int32), np.ones(b, bool)
    started, over = np.zeros(b, bool), np.zeros(b, bool)
    stack = np.zeros((b, int((tokens == v.push).sum(axis=1).max(initial=0)) + 1, rules.n_cells), np.int8)
    for i in range(t):
        token = tokens[:, i].astype(np.int64)
        place = token < v.n_placements
        cell, digit = np.where(place, token // rules.n, 0), (token % rules.n + 1).astype(np.int8)
        taken = (board[rows, cell] != 0) | (board[rows[:, None], rules.peers[cell]] == digit[:, None]).any(axis=1)
        push, pop, success = token == v.push, token == v.pop, token == v.success
        bad = (place & taken) | ((push | pop | success) & ~started) | ((token == v.end_clues) & started)
        bad |= (pop & (depth == 0)) | (success & (board == 0).any(axis=1)) | (over & (token != v.pad))
        board[rows[place], cell[place]] = digit[place]
        push, pop = push & started, pop & started & (depth > 0)
        stack[rows[push], depth[push]] = board[push]
        depth = depth + push - pop
        board[pop] = stack[rows[pop], depth[pop]]
        started |= token == v.end_clues
        over |= (token == v.pad) | success
        ok = ok & ~bad
        boards[:, i], depths[:, i], valid[:, i] = board, depth, ok
    return Replay(boards, depths, valid)


def solved(
    rules: Rules, tokens: Int[np.ndarray, "b t"], solutions: Int[np.ndarray, "b cells"]
) -> Bool[np.ndarray, " b"]:
    """Whether the board equals the solution after some token."""
    boards = replay(rules, tokens).boards
    return (boards == as_grids(rules, solutions)[:, None]).all(axis=2).any(axis=1)


def forced_moves(
    rules: Rules, grids: Int[np.ndarray, "b cells"], *, singles: Singles = "naked+hidden"
) -> Bool[np.ndarray, "b placements"]:
    """All placements that are naked (or naked or hidden) singles of each board, by token."""
    if singles not in SINGLES:
        raise InputError(f"singles is {singles!r}; it must be one of {', '.join(map(repr, SINGLES))}")
    grids = as_grids(rules, grids)
    forced = np.zeros((len(grids), rules.n_cells, rules.n), bool)
    for start in range(0, len(grids), BOARDS):
        part = slice(start, start + BOARDS)
        forced[part] = unpack(rules, _forced_masks(rules, grids[part], singles == "naked+hidden"))
    return forced.reshape(len(grids), rules.n_cells * rules.n)


def _forced_masks(rules: Rules, grids: Int8[np.ndarray, "b cells"], with_hidden: bool) -> Int16[np.ndarray, "b cells"]:
    """Singles of each cell as bits."""
    masks = candidate_masks(rules, grids)
    forced = masks * ((masks & (masks - 1)) == 0)
    if with_hidden:
        once = more = np.zeros((len(masks), 3 * rules.n), np.int16)
        for cells in rules.units.T:
            more, once = more | (once & masks[:, cells]), once | masks[:, cells]
        hidden = once & ~more
        row, column, box = rules.units_of.T
        forced |= masks & (hidden[:, row] | hidden[:, column] | hidden[:, box])
    return forced
