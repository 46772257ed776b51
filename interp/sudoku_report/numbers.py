"""Numbers as the page spells them."""

from collections.abc import Sequence

from interp.page.numbers import MISSING, number
from interp.sudoku.board import Rules


def interval(estimate: Sequence[float], form: str = ".3f") -> str:
    """`0.812 [0.790, 0.834]`."""
    value, low, high = (number(x, form) for x in estimate)
    return value if value == MISSING else f"{value} [{low}, {high}]"


def unit_name(rules: Rules, unit: int) -> str:
    """`row 1`, `column 3`, `box 2`."""
    kind, which = divmod(unit, rules.n)
    return f"{('row', 'column', 'box')[kind]} {which + 1}"


def short_unit(rules: Rules, unit: int) -> str:
    """`R1`, `C3`, `B2`."""
    kind, which = divmod(unit, rules.n)
    return f"{'RCB'[kind]}{which + 1}"
