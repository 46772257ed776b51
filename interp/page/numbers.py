"""Numbers as pages spell them."""

import math

MISSING = "−"  # a column of numbers stays one


def number(value: float | None, form: str = ".3f") -> str:
    """With a true minus sign, which alone stands for a number that is missing; zero has none."""
    if value is None or not math.isfinite(value):
        return MISSING
    said = format(value, form)
    return (said if said.strip("-+0.,%") else said.removeprefix("-")).replace("-", "−")
