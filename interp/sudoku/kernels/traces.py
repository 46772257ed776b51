"""Solution traces: forced moves one by one, guesses with PUSH and POP, and the reason of each token.

    contradiction: an empty cell without candidates, or (with hidden singles) a digit without a place in a unit

Where nothing is forced: the cell of fewest candidates, ties at random, its digits in random order, each behind a PUSH.
"""

from typing import no_type_check

from interp.sudoku.kernels.random import begin, below, shuffle
from interp.sudoku.kernels.search import (
    count_bits,
    digit_of,
    fill_used,
    free,
    hidden_of,
    put,
    take_bit,
    undo,
)

TRACE_STREAM = 2
CLUE, CONTROL, NAKED, HIDDEN, GUESS = range(5)


@no_type_check
def emit(tokens, reasons, at, end, token, reason):
    """Write a token unless the row is full; the next place, counted on either way."""
    if at < end:
        tokens[at], reasons[at] = token, reason
    return at + 1


@no_type_check
def emit_clues(n, board, shuffled, tokens, reasons, at, end, state, order):
    """The placements of the givens, then END_CLUES."""
    clues = 0
    for cell in range(n * n):
        if board[cell]:
            order[clues] = cell
            clues += 1
    if shuffled:
        shuffle(state, order, clues)
    for k in range(clues):
        at = emit(tokens, reasons, at, end, order[k] * n + board[order[k]] - 1, CLUE)
    return emit(tokens, reasons, at, end, n**3, CONTROL)


@no_type_check
def find_hidden(n, units, units_of, board, used, masks, hidden):
    """Bits of the hidden singles of each cell; False if a digit has no place in a unit."""
    for cell in range(n * n):
        hidden[cell] = 0
    for unit in range(3 * n):
        bits = hidden_of(n, units, units_of, board, used, unit)
        if bits < 0:
            return False
        if bits:
            for k in range(n):
                cell = units[unit * n + k]
                hidden[cell] |= masks[cell] & bits
    return True


@no_type_check
def forced(n, units, units_of, board, used, with_hidden, masks, hidden, moves):
    """Placements forced on the board, naked singles first: how many naked, how many in all, or -1 if none can be."""
    full, naked = (1 << n) - 1, 0
    for cell in range(n * n):
        masks[cell] = 0 if board[cell] else free(units_of, used, full, cell)
        if masks[cell] == 0 and board[cell] == 0:
            return 0, -1
        if masks[cell] and masks[cell] & (masks[cell] - 1) == 0:
            moves[naked] = cell * n + digit_of(masks[cell]) - 1
            naked += 1
    total = naked
    if with_hidden:
        if not find_hidden(n, units, units_of, board, used, masks, hidden):
            return 0, -1
        for cell in range(n * n):
            bits = hidden[cell] if masks[cell] & (masks[cell] - 1) else 0
            while bits:
                moves[total] = cell * n + digit_of(bits & -bits) - 1
                total += 1
                bits &= bits - 1
    return naked, total


@no_type_check
def fewest(n, masks, state):
    """An empty cell of fewest candidates, or -1 on a full board."""
    least, where, ties = n + 1, -1, 0
    for cell in range(n * n):
        if masks[cell]:
            count = count_bits(masks[cell])
            if count < least:
                least, where, ties = count, cell, 1
            elif count == least:
                ties += 1
                if below(state, ties) == 0:
                    where = cell
    return where


@no_type_check
def trace(n, units, units_of, with_hidden, naked_first, tokens, reasons, at, end, board, used, work, state, extra):
    """Solve the board, writing tokens from `at` on; the next place, or -1 if there is no solution."""
    masks, hidden, moves = extra
    cells, push, pop, success = n * n, n**3 + 2, n**3 + 3, n**3 + 4
    top, depth = 0, 0
    while True:
        naked, total = forced(n, units, units_of, board, used, with_hidden, masks, hidden, moves)
        if total > 0:
            choice = below(state, naked if naked_first and naked else total)
            reason = NAKED if choice < naked else HIDDEN
            token = moves[choice]
            at = emit(tokens, reasons, at, end, token, reason)
            top = put(units_of, board, used, work, top, token // n, 1 << token % n)
            continue
        if total == 0:
            where = fewest(n, masks, state)
            if where < 0:
                return emit(tokens, reasons, at, end, success, CONTROL)
            work[cells + depth], work[2 * cells + depth], work[3 * cells + depth] = top, where, masks[where]
            depth += 1
        else:
            if depth:
                at = emit(tokens, reasons, at, end, pop, CONTROL)
            while depth and work[3 * cells + depth - 1] == 0:
                depth -= 1
                if depth:
                    at = emit(tokens, reasons, at, end, pop, CONTROL)
            if depth == 0:
                return -1
        top = undo(units_of, board, used, work, top, work[cells + depth - 1])
        bit = take_bit(state, work[3 * cells + depth - 1], True)
        work[3 * cells + depth - 1] ^= bit
        at = emit(tokens, reasons, at, end, push, CONTROL)
        at = emit(tokens, reasons, at, end, work[2 * cells + depth - 1] * n + digit_of(bit) - 1, GUESS)
        top = put(units_of, board, used, work, top, work[2 * cells + depth - 1], bit)


@no_type_check
def make_traces(
    n, units, units_of, seed, first, puzzles, count, options, width, tokens, reasons, lengths, board, used, work, state,
    order, extra
):  # fmt: skip
    """Traces of `count` puzzles in rows of `width` tokens; `lengths` tells the true ones, -1 where unsolvable."""
    with_hidden, naked_first, shuffled = options
    for item in range(count):
        begin(state, seed, TRACE_STREAM, first + item)
        for cell in range(n * n):
            board[cell] = puzzles[item * n * n + cell]
        fill_used(n, units_of, board, used)
        start, end = item * width, (item + 1) * width
        at = emit_clues(n, board, shuffled, tokens, reasons, start, end, state, order)
        at = trace(
            n, units, units_of, with_hidden, naked_first, tokens, reasons, at, end, board, used, work, state, extra
        )
        lengths[item] = at - start if at >= 0 else -1
