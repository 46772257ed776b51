"""Sign-flip p-values fine enough for a dictionary of features: exact for few pairs, else counted instead of drawn.

    T = Σ_i e_i x_i, e_i = ±1 with equal chance;   p = P(|T| >= |Σ_i x_i|)                       x: n pairs of a feature

With m features Benjamini and Hochberg ask of a single discovery p <= alpha / m, 4e-7 of 131,072 features: 20,000 drawn
sign vectors, whose p-values end at 5e-5, would see it only in the company of 131 others. So drawn vectors only sort
out: what they find small is counted. In units of Δ = Σ|x| / K the differences are rounded to integers q, and the
distribution of Σ e_i q_i follows exactly from n steps of w(y) <- (w(y) + w(y - q_i)) / 2. With R the sum of the
roundings |x_i / Δ - q_i|, no sign vector's T changes by more than R, so that

    p <= P(|Σ e_i q_i| >= |Σ x_i| / Δ - R)

is an upper bound: the test stays valid, whatever K, and is tight for large K. Using the bound only where the drawn
p-value is small keeps it valid as well: below the bar a p-value of t or less needs a bound of t or less, above it a
drawn p-value of t or less. Exact distributions of sums by such steps: Pagano and Tritchler 1983; the rest is our own.
"""

import math

import numpy as np
from jaxtyping import Float

from interp.stats import paired_permutations

EXACT_UP_TO = 14  # pairs: `interp.stats.paired_permutations` then takes all sign vectors
_STEPS = 2**13  # K: at 60 pairs R is about 15 units, 0.014 of T's standard deviation
_SMALL = 20  # drawn sign vectors as extreme as the observed one, of `draws`: at most these are counted


def sign_flip_tests(x: Float[np.ndarray, "n m"], *, draws: int = 2_000, seed: int = 0) -> Float[np.ndarray, " m"]:
    """Two-sided p-values of m columns of n paired differences."""
    p = paired_permutations(x, draws=draws, seed=seed)
    if len(x) <= EXACT_UP_TO:
        return p
    for j in np.nonzero(p <= (_SMALL + 1) / (draws + 1))[0]:
        p[j] = sign_flip_bound(x[:, j])
    return p


def sign_flip_bound(x: Float[np.ndarray, " n"], *, steps: int = _STEPS) -> float:
    """The upper bound of one column's p-value, from about n * `steps` additions."""
    size = np.abs(x[x != 0])
    if not len(size):
        return 1.0
    scaled = size / size.sum() * steps
    units = np.rint(scaled).astype(np.int64)
    slack = float(np.abs(scaled - units).sum())
    seen = abs(float(x.sum())) / float(size.sum()) * steps - slack
    total = int(units.sum())
    # T = 2 y - total, where y is the sum of the units with a positive sign.
    first = math.ceil((seen + total) / 2 - 1e-9 * steps)
    if seen <= 0 or 2 * first <= total:
        return 1.0
    weights = np.zeros(total + 1)
    weights[0] = 1
    for unit in units:
        shifted = weights / 2
        weights = shifted.copy()
        weights[unit:] += shifted[: total + 1 - unit]
    return min(1.0, 2 * float(weights[first:].sum()))


def fewest_pairs(alpha: float) -> int:
    """How many differences other than zero a p-value of `alpha` needs: n of them reach 2^(1-n) at best."""
    return 1 + math.ceil(-math.log2(alpha))


def needed(smallest_p: float, m: int, alpha: float) -> int:
    """How many of m tests have to reach the smallest p-value together before Benjamini and Hochberg reject any."""
    return max(1, math.ceil(smallest_p * m / alpha))
