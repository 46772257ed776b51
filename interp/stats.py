"""Intervals for what was measured on few cases.

    wilson:     the p with |p̂ - p| <= z sqrt(p (1 - p) / n),  p̂ = successes / n     (Wilson 1927)
    bootstrap:  the middle of Σ_i sums_i / Σ_i sizes_i over draws of n cases i with replacement     (Efron 1979)

Unlike p̂ ± z s, Wilson's interval stays inside [0, 1] and has its width where p̂ is 0 or 1. The bootstrap here is of a
mean over tokens whose cases are documents: tokens of one document are drawn together, for they are not independent.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

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


def bootstrap_ratio(
    sums: Shaped[np.ndarray, " n"],
    sizes: Shaped[np.ndarray, " n"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of Σ sums / Σ sizes over cases; of no width for one case.

    Paired differences of two measurements of the same cases: give the differences as `sums`.
    """
    sums, sizes = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    if not len(sums) or sums.shape != sizes.shape or not (sizes > 0).all() or not 0 < level < 1 or draws < 1:
        raise InputError(
            f"bootstrap_ratio: expected as many sums as sizes (at least one), sizes above 0, a level in (0, 1) and a "
            f"draw or more, got {len(sums)} and {len(sizes)}, level {level}, draws {draws}"
        )
    generator = np.random.default_rng(seed)
    ratios = np.concatenate([_drawn(sums, sizes, part, generator) for part in _parts(draws, len(sums))])
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _parts(draws: int, n: int) -> list[int]:
    size = max(1, 2**22 // n)  # indices at a time: 32 MB
    return [min(size, draws - start) for start in range(0, draws, size)]


def _drawn(sums: np.ndarray, sizes: np.ndarray, draws: int, generator: np.random.Generator) -> Float[np.ndarray, " r"]:
    chosen = generator.integers(0, len(sums), size=(draws, len(sums)))
    return sums[chosen].sum(1) / sizes[chosen].sum(1)
