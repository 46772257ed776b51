"""Puzzles: clues are taken from a full grid in random order while the solution stays the only one.

    minimal: no clue can go without a second solution           dense: minimal + a share of its empty cells given back

Each clue is tried once: one that cannot go now cannot go later either, when fewer clues are left, so the result is
minimal. The share is uniform from 10 to 90 %. Full grids come from search with random digits, which is not exactly
uniform over all grids.
"""

from typing import no_type_check

from interp.sudoku.kernels.random import begin, below, shuffle
from interp.sudoku.kernels.search import digit_of, fill_used, free, hidden_of, search, toggle

PUZZLE_STREAM = 1


@no_type_check
def second_solution(n, units, units_of, board, used, work, state, cell, solution):
    """Whether the puzzle has another solution without the clue in `cell`. The board is left as it was."""
    digit, others = board[cell], 0
    bit = 1 << (digit - 1)
    board[cell] = 0
    toggle(units_of, used, cell, bit)
    others = free(units_of, used, (1 << n) - 1, cell) ^ bit
    for kind in range(3):
        if others and hidden_of(n, units, units_of, board, used, units_of[3 * cell + kind]) & bit:
            others = 0  # the digit has no other place in this unit
    found = 0
    while others and found == 0:
        other = others & -others
        others ^= other
        board[cell] = digit_of(other)
        toggle(units_of, used, cell, other)
        found = search(n, units, units_of, board, used, work, state, False, 1, solution)
        toggle(units_of, used, cell, other)
    board[cell] = digit
    toggle(units_of, used, cell, bit)
    return found > 0


@no_type_check
def take_clues(n, units, units_of, board, used, work, state, order, solution):
    """Make the full board minimal."""
    for cell in range(n * n):
        order[cell] = cell
    shuffle(state, order, n * n)
    for k in range(n * n):
        cell = order[k]
        if not second_solution(n, units, units_of, board, used, work, state, cell, solution):
            toggle(units_of, used, cell, 1 << (board[cell] - 1))
            board[cell] = 0


@no_type_check
def give_back(n, board, answer, at, state, order):
    """Fill 10 to 90 % of the empty cells, a uniform number of them, from the solution at `answer[at:]`."""
    empty = 0
    for cell in range(n * n):
        if board[cell] == 0:
            order[empty] = cell
            empty += 1
    least, most = (empty + 5) // 10, (9 * empty + 5) // 10
    count = least + below(state, most - least + 1)
    shuffle(state, order, empty)
    for k in range(count):
        board[order[k]] = answer[at + order[k]]


@no_type_check
def make_puzzles(
    n, units, units_of, seed, first, count, dense, puzzles, solutions, board, used, work, state, order, found
):
    """Puzzles `first` to `first + count - 1` of the seed, into flat `puzzles` and `solutions`."""
    for item in range(count):
        begin(state, seed, PUZZLE_STREAM, first + item)
        for cell in range(n * n):
            board[cell] = 0
        fill_used(n, units_of, board, used)
        search(n, units, units_of, board, used, work, state, True, 1, found)
        for cell in range(n * n):
            board[cell] = solutions[item * n * n + cell] = found[cell]
        fill_used(n, units_of, board, used)
        take_clues(n, units, units_of, board, used, work, state, order, found)
        if dense:
            give_back(n, board, solutions, item * n * n, state, order)
        for cell in range(n * n):
            puzzles[item * n * n + cell] = board[cell]


@no_type_check
def solve_puzzles(n, units, units_of, puzzles, count, limit, solutions, counts, board, used, work, state, found):
    """Solutions of each puzzle, counted up to `limit`, and the first one. Givens must not contradict each other."""
    for item in range(count):
        for cell in range(n * n):
            board[cell] = puzzles[item * n * n + cell]
        fill_used(n, units_of, board, used)
        counts[item] = search(n, units, units_of, board, used, work, state, False, limit, found)
        for cell in range(n * n):
            solutions[item * n * n + cell] = found[cell] if counts[item] else 0
