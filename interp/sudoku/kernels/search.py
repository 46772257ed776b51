"""Bit-mask boards and the search for solutions by naked and hidden singles, then by fewest candidates.

    candidates of an empty cell = full & ~(used[row] | used[column] | used[box])        bit `digit - 1`

`board [cells]` holds digits, `used [3n]` the digits of each unit, `trail` the cells written since the start, from which
`undo` takes them back.
"""

from typing import no_type_check

from interp.sudoku.kernels.random import below


@no_type_check
def count_bits(mask):
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@no_type_check
def digit_of(bit):
    """The digit of a mask with one bit."""
    digit = 1
    while bit > 1:
        bit >>= 1
        digit += 1
    return digit


@no_type_check
def take_bit(state, mask, random):
    """One bit of the mask: a random one, or the lowest."""
    if random:
        for _ in range(below(state, count_bits(mask))):
            mask &= mask - 1
    return mask & -mask


@no_type_check
def free(units_of, used, full, cell):
    """Digits that no unit of the cell holds."""
    return full & ~(used[units_of[3 * cell]] | used[units_of[3 * cell + 1]] | used[units_of[3 * cell + 2]])


@no_type_check
def toggle(units_of, used, cell, bit):
    """Enter the digit into the cell's units, or take it out of them."""
    for kind in range(3):
        used[units_of[3 * cell + kind]] ^= bit


@no_type_check
def put(units_of, board, used, trail, top, cell, bit):
    """Write a digit and note it on the trail; the new length of the trail."""
    board[cell] = digit_of(bit)
    toggle(units_of, used, cell, bit)
    trail[top] = cell
    return top + 1


@no_type_check
def undo(units_of, board, used, trail, top, mark):
    """Take back what was written since the trail had length `mark`."""
    while top > mark:
        top -= 1
        cell = trail[top]
        toggle(units_of, used, cell, 1 << (board[cell] - 1))
        board[cell] = 0
    return top


@no_type_check
def fill_used(n, units_of, board, used):
    """The digits each unit holds."""
    for unit in range(3 * n):
        used[unit] = 0
    for cell in range(n * n):
        if board[cell]:
            toggle(units_of, used, cell, 1 << (board[cell] - 1))


@no_type_check
def put_naked(n, units_of, board, used, trail, top):
    """Write naked singles in one pass: whether none contradicts, trail, cell of fewest candidates (-1: board full)."""
    full, fewest, where = (1 << n) - 1, n + 1, -1
    for cell in range(n * n):
        if board[cell]:
            continue
        mask = free(units_of, used, full, cell)
        if mask == 0:
            return False, top, -1
        if mask & (mask - 1) == 0:
            top = put(units_of, board, used, trail, top, cell, mask)
        elif fewest > 2 and count_bits(mask) < fewest:
            fewest, where = count_bits(mask), cell
    return True, top, where


@no_type_check
def hidden_of(n, units, units_of, board, used, unit):
    """Digits with one place in the unit, or -1 if a digit has none."""
    full, once, more = (1 << n) - 1, 0, 0
    for k in range(n):
        cell = units[unit * n + k]
        if board[cell] == 0:
            mask = free(units_of, used, full, cell)
            more |= once & mask
            once |= mask
    return -1 if once | used[unit] != full else once & ~more


@no_type_check
def put_hidden(n, units, units_of, board, used, trail, top):
    """Write hidden singles in one pass over the units: whether nothing contradicts, and the trail."""
    full = (1 << n) - 1
    for unit in range(3 * n):
        hidden = hidden_of(n, units, units_of, board, used, unit)
        if hidden < 0:
            return False, top
        k = 0
        while hidden and k < n:
            cell = units[unit * n + k]
            mask = 0 if board[cell] else free(units_of, used, full, cell) & hidden
            if mask & (mask - 1):
                return False, top
            if mask:
                top = put(units_of, board, used, trail, top, cell, mask)
            hidden &= ~mask
            k += 1
    return True, top


@no_type_check
def search(n, units, units_of, board, used, work, state, random, limit, solution):
    """Number of solutions, counted up to `limit`, the first one copied; `board` and `used` are left as they were.

    Naked and hidden singles, then the cell of fewest candidates. `work` holds the trail, and mark, cell and digits left
    of each open branch.
    """
    cells, full, top, depth, found = n * n, (1 << n) - 1, 0, 0, 0
    while True:
        before = -1
        alive, where = True, 0
        while alive and top != before and where >= 0:
            before = top
            alive, top, where = put_naked(n, units_of, board, used, work, top)
            if alive and top == before and where >= 0:
                alive, top = put_hidden(n, units, units_of, board, used, work, top)
        if alive and where >= 0:
            work[cells + depth], work[2 * cells + depth] = top, where
            work[3 * cells + depth] = free(units_of, used, full, where)
            depth += 1
        elif alive:
            if found == 0:
                for cell in range(cells):
                    solution[cell] = board[cell]
            found += 1
        while depth and work[3 * cells + depth - 1] == 0:
            depth -= 1
        if depth == 0 or found >= limit:
            undo(units_of, board, used, work, top, 0)
            return found
        top = undo(units_of, board, used, work, top, work[cells + depth - 1])
        bit = take_bit(state, work[3 * cells + depth - 1], random)
        work[3 * cells + depth - 1] ^= bit
        top = put(units_of, board, used, work, top, work[2 * cells + depth - 1], bit)
