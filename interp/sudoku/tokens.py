"""The vocabulary of traces: a token for each placement, and five control tokens.

    placement(cell, digit) = cell * n + digit - 1        so token // n = cell, token % n = digit - 1
    then  END_CLUES, PAD, PUSH, POP, SUCCESS              9x9: 729 .. 733, 734 tokens in all

Numbering and meaning are those of the code published with arXiv 2605.18847; clues use the placement tokens too.
"""

from dataclasses import dataclass

from interp.errors import InputError
from interp.sudoku.board import Rules

CONTROLS = ("END_CLUES", "PAD", "PUSH", "POP", "SUCCESS")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a board's traces."""

    rules: Rules

    @property
    def n_placements(self) -> int:
        return self.rules.n_cells * self.rules.n

    @property
    def end_clues(self) -> int:
        return self.n_placements

    @property
    def pad(self) -> int:
        return self.n_placements + 1

    @property
    def push(self) -> int:
        return self.n_placements + 2

    @property
    def pop(self) -> int:
        return self.n_placements + 3

    @property
    def success(self) -> int:
        return self.n_placements + 4

    @property
    def size(self) -> int:
        return self.n_placements + len(CONTROLS)

    def placement(self, cell: int, digit: int) -> int:
        """The token that writes `digit` (1..n) into `cell` (0..cells-1)."""
        if not (0 <= cell < self.rules.n_cells and 1 <= digit <= self.rules.n):
            raise InputError(
                f"cell {cell}, digit {digit} is no placement on a board of side {self.rules.n}; "
                f"cells are 0 to {self.rules.n_cells - 1}, digits 1 to {self.rules.n}"
            )
        return cell * self.rules.n + digit - 1

    def cell(self, token: int) -> int:
        """The cell a placement token writes to."""
        return self._placement(token) // self.rules.n

    def digit(self, token: int) -> int:
        """The digit a placement token writes."""
        return self._placement(token) % self.rules.n + 1

    def describe(self, token: int) -> str:
        """`"R1C2=3"` for a placement (rows and columns counted from 1), the name of a control token."""
        if self.n_placements <= token < self.size:
            return CONTROLS[token - self.n_placements]
        row, column = divmod(self.cell(token), self.rules.n)
        return f"R{row + 1}C{column + 1}={self.digit(token)}"

    def _placement(self, token: int) -> int:
        if not 0 <= token < self.n_placements:
            raise InputError(
                f"token {token} is no placement; those of a board of side {self.rules.n} are 0 to "
                f"{self.n_placements - 1}, and {self.end_clues} to {self.success} are {', '.join(CONTROLS)}"
            )
        return int(token)
