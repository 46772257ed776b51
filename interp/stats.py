"""Intervals for what was measured on few cases.

    wilson:  the p with |p̂ - p| <= z sqrt(p (1 - p) / n),  p̂ = successes / n        (Wilson 1927)

Unlike p̂ ± z s it stays inside [0, 1] and has its width where p̂ is 0 or 1.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

from interp.errors import InputError


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """The Wilson score interval of a proportion; (0, 1) for no cases at all."""
    if not 0 <= successes <= n or not 0 < level < 1:
        raise InputError(f"wilson: expected 0 <= successes <= n and a level in (0, 1), got {successes}, {n}, {level}")
    if n == 0:
        return Interval(0.0, 1.0)
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
