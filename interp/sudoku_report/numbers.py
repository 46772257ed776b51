"""Numbers as the page spells them."""

import math
from collections.abc import Sequence

from interp.sudoku.board import Rules

MISSING = "−"


def number(value: float | None, form: str = ".3f") -> str:
    """With a true minus sign, which alone stands for a number that is missing; zero has none."""
    if value is None or not math.isfinite(value):
        return MISSING
    said = format(value, form)
    return (said if float(said) else said.removeprefix("-")).replace("-", "−")


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
