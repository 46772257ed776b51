"""Puzzles as CSV, in the layout that is common: columns `puzzle` and `solution`, a grid in a line, row by row.

    puzzle,solution
    ..4.1...,2341...            0 or . for an empty cell

Other columns are passed over; `solution` may be missing or empty, and is then computed. Every puzzle is solved on the
way in: one that is malformed, contradicts itself, or has not exactly one solution is refused with its line.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from interp.errors import InputError
from interp.sealing import write_sealed
from interp.sudoku.board import BOXES, Rules
from interp.sudoku.generate import PuzzleSet
from interp.sudoku.solve import check_puzzles, puzzle_text

SIDES = {side * side: side for side in BOXES}


def read_csv(
    path: str | Path, *, rules: Rules | None = None, limit: int | None = None, workers: int = 1
) -> tuple[Rules, PuzzleSet]:
    """The rules (from the length of the first puzzle unless given), and the first `limit` puzzles of the file."""
    path = Path(path)
    lines, puzzles, solutions = _columns(path, limit)
    if rules is None and len(puzzles[0]) not in SIDES:
        raise InputError(
            f"{path}, line {lines[0]}: the puzzle has {len(puzzles[0])} characters; boards have "
            f"{', '.join(f'{cells} ({side}x{side})' for cells, side in SIDES.items())}"
        )
    rules = rules or Rules.of(SIDES[len(puzzles[0])])
    grids = _grids(rules, path, "puzzle", lines, puzzles, empty="0.")
    found = check_puzzles(rules, grids, workers=workers, name=lambda i: f"{path}, line {lines[i]}: the puzzle")
    told = [i for i, text in enumerate(solutions) if text]
    given = _grids(rules, path, "solution", [lines[i] for i in told], [solutions[i] for i in told], empty="")
    for i in np.flatnonzero((given != found[told]).any(axis=1))[:1].tolist():
        raise InputError(
            f"{path}, line {lines[told[i]]}: the solution {puzzle_text(given[i])} is not that of the puzzle, which is "
            f"{puzzle_text(found[told[i]])}; correct it, or leave it out"
        )
    return rules, PuzzleSet(grids, found)


def write_csv(path: str | Path, puzzles: PuzzleSet) -> None:
    """Write puzzles and solutions, whole or not at all."""
    rows = zip(puzzles.puzzles, puzzles.solutions, strict=True)
    lines = [f"{puzzle_text(puzzle)},{puzzle_text(solution)}\n" for puzzle, solution in rows]
    write_sealed(Path(path), "".join(["puzzle,solution\n", *lines]))


def _columns(path: Path, limit: int | None) -> tuple[list[int], list[str], list[str]]:
    """Line number, puzzle and solution (or an empty text) of each row."""
    lines, puzzles, solutions = [], [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip().lower() for name in next(rows, [])]
            if not header:
                raise InputError(f"{path} is empty; it should begin with the line puzzle,solution")
            if "puzzle" not in header:
                raise InputError(
                    f"{path}: the first line names the columns {', '.join(header)[:80]} and no puzzle; "
                    "it should be puzzle,solution"
                )
            puzzle, solution = header.index("puzzle"), header.index("solution") if "solution" in header else -1
            for row in rows:
                if limit is not None and len(puzzles) == limit:
                    break
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path}, line {rows.line_num}: {len(row)} columns, but the first line names {len(header)}"
                    )
                if row:
                    lines.append(rows.line_num)
                    puzzles.append(row[puzzle].strip())
                    solutions.append(row[solution].strip() if solution >= 0 else "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8: {error}") from None
    if not puzzles:
        raise InputError(f"{path} holds no puzzles, only the names of the columns")
    return lines, puzzles, solutions


def _grids(
    rules: Rules, path: Path, what: str, lines: Sequence[int], texts: Sequence[str], *, empty: str
) -> Int8[np.ndarray, "b cells"]:
    """Texts as grids; one of another length or with other characters is refused."""
    known = set(empty) | {str(digit) for digit in range(1, rules.n + 1)}
    for line, text in zip(lines, texts, strict=True):
        if len(text) != rules.n_cells:
            raise InputError(
                f"{path}, line {line}: the {what} has {len(text)} characters, a board of side {rules.n} has "
                f"{rules.n_cells} cells"
            )
        if not known.issuperset(text):
            wrong = next(character for character in text if character not in known)
            raise InputError(
                f"{path}, line {line}: the {what} has {wrong!r} at place {text.index(wrong) + 1}; a board of side "
                f"{rules.n} has digits 1 to {rules.n}" + (", and 0 or . for an empty cell" if empty else "")
            )
    codes = np.frombuffer("".join(texts).replace(".", "0").encode(), np.uint8)
    return (codes - ord("0")).astype(np.int8).reshape(len(texts), rules.n_cells)
