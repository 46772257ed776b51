"""Intervals for what was measured on few cases, tests of paired differences, agreement of judges.

    wilson:     the p with |p̂ - p| <= z sqrt(p (1 - p) / n),  p̂ = successes / n     (Wilson 1927)
    bootstrap:  the middle of Σ_i sums_i / Σ_i sizes_i over draws of n cases i with replacement     (Efron 1979)
    benjamini_hochberg: q_(i) = min over j >= i of p_(j) m / j, p sorted                 (Benjamini & Hochberg 1995)
    fleiss_kappa: (P̄ - P̄_e) / (1 - P̄_e), P̄ the share of agreeing pairs of raters, P̄_e its expectation if every rater
                  drew from the categories' overall shares                                           (Fleiss 1971)
    binomial_tail: P(X >= k), X ~ Binomial(n, p)
    permutation: the share of sign vectors e in {-1, 1}^n with |Σ_i e_i x_i| >= |Σ_i x_i|          (Fisher 1935)

Unlike p̂ ± z s, Wilson's interval stays inside [0, 1] and has its width where p̂ is 0 or 1. The bootstrap here is of a
mean over tokens whose cases are documents: tokens of one document are drawn together, for they are not independent.
The permutation test is of paired differences x_i: without an effect, each has either sign with equal chance.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

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
    size = max(1, 2**22 // len(sums))  # indices at a time: 32 MB
    ratios = np.concatenate([_drawn(sums, sizes, part, generator) for part in _chunks(draws, size)])
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_permutation(differences: Shaped[np.ndarray, " n"], *, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of "the differences have no sign": all 2ⁿ sign vectors up to n = 14, else `draws` of them.

    Drawn ones count with the observed one among them (Phipson and Smyth 2010), so that no p-value is 0.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1:
        raise InputError(f"paired_permutation: expected a list of differences, got an array of shape {values.shape}")
    return float(paired_permutations(values[:, None], draws=draws, seed=seed)[0])


def paired_permutations(
    differences: Shaped[np.ndarray, "n m"], *, draws: int = 20_000, seed: int = 0
) -> Float[np.ndarray, " m"]:
    """`paired_permutation` of each of m columns, under the same sign vectors."""
    values = np.asarray(differences, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or draws < 1:
        raise InputError(
            f"paired_permutation: expected one finite difference or more and a draw or more, got an array of shape "
            f"{values.shape} and draws {draws}; leave cases without a score out"
        )
    n, seen = len(values), np.abs(values.sum(0))
    seen -= 1e-12 * np.abs(values).sum(0)  # equal sums differ by rounding
    exact = n <= 14
    generator = np.random.default_rng(seed)
    reached, start = np.zeros(values.shape[1], np.int64), 0
    for part in _chunks(2**n if exact else draws, max(1, 2**22 // max(values.shape))):
        if exact:
            bits = (np.arange(start, start + part)[:, None] >> np.arange(n)) & 1
        else:
            bits = generator.integers(0, 2, size=(part, n), dtype=np.int8)
        reached += (np.abs((2.0 * bits - 1) @ values) >= seen).sum(0)
        start += part
    return reached / start if exact else (reached + 1) / (start + 1)


def benjamini_hochberg(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Adjusted p-values: rejecting where they are at most q keeps the expected share of false discoveries under q."""
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"benjamini_hochberg: expected a list of p-values in [0, 1], got shape {p.shape}: {p}")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return adjusted


def fleiss_kappa(counts: Int[np.ndarray, "n c"]) -> float:
    """Agreement beyond chance of equally many raters of each of n items, from how many chose each of c categories.

    NaN where all ratings fall in one category: chance agreement is then perfect, and kappa undefined.
    """
    counts = np.asarray(counts)
    raters = counts.sum(1) if counts.ndim == 2 and counts.size else np.zeros(0)
    if not len(raters) or (counts < 0).any() or raters.min() < 2 or raters.min() != raters.max():
        raise InputError(
            "fleiss_kappa: expected how many raters chose each category, items x categories, with the same number of "
            f"raters (2 or more) for every item; got shape {counts.shape} with {sorted(set(raters.tolist()))} raters"
        )
    n, r = len(counts), int(raters[0])
    agreement = float(((counts * (counts - 1)).sum(1) / (r * (r - 1))).mean())
    chance = float(((counts.sum(0) / (n * r)) ** 2).sum())
    return math.nan if chance == 1 else (agreement - chance) / (1 - chance)


def binomial_tail(n: int, k: int, p: float) -> float:
    """The probability of k or more successes in n independent trials."""
    if n < 0 or not 0 <= p <= 1:
        raise InputError(f"binomial_tail: expected n >= 0 and a probability, got n={n}, p={p}")
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(max(0, k), n + 1))


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _drawn(sums: np.ndarray, sizes: np.ndarray, draws: int, generator: np.random.Generator) -> Float[np.ndarray, " r"]:
    chosen = generator.integers(0, len(sums), size=(draws, len(sums)))
    return sums[chosen].sum(1) / sizes[chosen].sum(1)
