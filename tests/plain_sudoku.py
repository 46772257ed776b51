"""Sudoku in plain Python, written apart from the package: what its tests compare with."""

from collections.abc import Iterator, Sequence

BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
Grid = Sequence[int]


def see_each_other(n: int, a: int, b: int) -> bool:
    """Whether two different cells share a row, a column or a box."""
    (r, c), (s, d) = divmod(a, n), divmod(b, n)
    height, width = BOX[n]
    return a != b and (r == s or c == d or (r // height == s // height and c // width == d // width))


def units(n: int) -> list[list[int]]:
    """Rows, columns, boxes from top left to bottom right."""
    height, width = BOX[n]
    rows = [[r * n + c for c in range(n)] for r in range(n)]
    columns = [[r * n + c for r in range(n)] for c in range(n)]
    corners = [(r, c) for r in range(0, n, height) for c in range(0, n, width)]
    return rows + columns + [[(r + i) * n + c + j for i in range(height) for j in range(width)] for r, c in corners]


SEEN = {n: [[b for b in range(n * n) if see_each_other(n, a, b)] for a in range(n * n)] for n in BOX}
UNITS = {n: units(n) for n in BOX}


def allowed(n: int, grid: Grid, cell: int) -> set[int]:
    """Digits an empty cell may take; none for a filled one."""
    return set() if grid[cell] else set(range(1, n + 1)) - {grid[other] for other in SEEN[n][cell]}


def naked(n: int, grid: Grid) -> set[tuple[int, int]]:
    """(cell, digit) where the cell has one candidate."""
    found = {cell: allowed(n, grid, cell) for cell in range(n * n)}
    return {(cell, digit) for cell, digits in found.items() for digit in digits if len(digits) == 1}


def hidden(n: int, grid: Grid) -> set[tuple[int, int]]:
    """(cell, digit) where the digit has one place in some unit."""
    found = set()
    for unit in UNITS[n]:
        for digit in range(1, n + 1):
            places = [cell for cell in unit if digit in allowed(n, grid, cell)]
            if len(places) == 1:
                found.add((places[0], digit))
    return found


def dead(n: int, grid: Grid) -> bool:
    """Whether an empty cell has no candidate, or a unit no place for a digit that it lacks."""
    if any(grid[cell] == 0 and not allowed(n, grid, cell) for cell in range(n * n)):
        return True
    return any(
        all(grid[cell] != digit and digit not in allowed(n, grid, cell) for cell in unit)
        for unit in UNITS[n]
        for digit in range(1, n + 1)
    )


def solutions(n: int, grid: Grid) -> Iterator[list[int]]:
    """All solutions of a grid without contradictions, by search over the cell with fewest candidates."""
    empty = [cell for cell in range(n * n) if not grid[cell]]
    if not empty:
        yield list(grid)
        return
    cell = min(empty, key=lambda c: len(allowed(n, grid, c)))
    for digit in sorted(allowed(n, grid, cell)):
        yield from solutions(n, [*grid[:cell], digit, *grid[cell + 1 :]])


def count(n: int, grid: Grid, limit: int) -> int:
    """Number of solutions, up to `limit`."""
    return sum(1 for _ in zip(range(limit), solutions(n, list(grid)), strict=False))


def replay(n: int, tokens: Sequence[int]) -> tuple[list[list[int]], list[int], list[bool]]:
    """Boards, depths and legality after each token, by the words of `interp.sudoku.replay`."""
    grid, stack, started, over, legal = [0] * (n * n), [], False, False, True
    end, pad, push, pop, success = range(n**3, n**3 + 5)
    boards, depths, flags = [], [], []
    for token in tokens:
        legal = legal and not (over and token != pad)
        if token < n**3:
            cell, digit = token // n, token % n + 1
            legal = legal and digit in allowed(n, grid, cell)
            grid = [*grid[:cell], digit, *grid[cell + 1 :]]
        elif token == end:
            legal, started = legal and not started, True
        elif token == pad:
            over = True
        elif token == success:
            legal, over = legal and started and 0 not in grid, True
        elif not started or (token == pop and not stack):
            legal = False
        elif token == push:
            stack.append(grid)
        else:
            grid = stack.pop()
        boards.append(grid)
        depths.append(len(stack))
        flags.append(legal)
    return boards, depths, flags
