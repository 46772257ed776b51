"""Counted sign-flip p-values: bounds of the exact ones, tight, valid, and as small as a dictionary needs."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from interp.stats import benjamini_hochberg, paired_permutations
from saes.primitives.sign_tests import fewest_pairs, needed, sign_flip_bound, sign_flip_tests

DRAWS = {
    "normal": lambda rng, n: rng.normal(0.4, 1, n),
    "heavy": lambda rng, n: rng.standard_t(1.5, n) + 0.5,
    "whole numbers": lambda rng, n: rng.integers(-2, 5, n).astype(float),
    "sparse": lambda rng, n: rng.normal(1, 1, n) * (rng.random(n) < 0.6),
    "tiny": lambda rng, n: rng.normal(1e-9, 1e-9, n),
}


def exact(x: np.ndarray) -> float:
    """By all sign vectors, one after the other."""
    seen = abs(x.sum()) * (1 - 1e-12)
    return float(np.mean([abs(np.dot(signs, x)) >= seen for signs in itertools.product((-1, 1), repeat=len(x))]))


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("n", [1, 4, 11])
def test_the_bound_is_above_the_exact_value_and_close_to_it(kind: str, n: int):
    for seed in range(6):
        x = DRAWS[kind](np.random.default_rng(seed), n)
        p, bound = exact(x), sign_flip_bound(x)
        assert p <= bound * (1 + 1e-12)
        assert bound <= 1.05 * p + 1e-3
        assert sign_flip_bound(x, steps=40) >= p * (1 - 1e-12)  # coarse, and still a bound


def test_equal_sizes_give_the_binomial_far_into_the_tail():
    for n, positive in ((60, 60), (60, 52), (75, 70), (100, 51)):
        x = np.where(np.arange(n) < positive, 0.3, -0.3)
        least = max(positive, n - positive)
        expected = min(Fraction(1), 2 * sum((Fraction(comb(n, i), 2**n) for i in range(least, n + 1)), Fraction(0)))
        assert sign_flip_bound(x) == pytest.approx(float(expected), rel=1e-9)


def test_one_clear_feature_among_thousands_is_seen_by_counting_only():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (40, 3000))
    x[:, 7] += 1.5
    drawn, counted = (benjamini_hochberg(p) for p in (paired_permutations(x, draws=2_000), sign_flip_tests(x)))
    assert drawn.min() > 0.05
    assert np.flatnonzero(counted <= 0.05).tolist() == [7]


@pytest.mark.parametrize("n", [12, 20])
def test_p_values_without_an_effect_are_valid(n: int):
    """Shares below alpha, up to four standard errors; differences are symmetric, heavy-tailed and often zero."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(2, (n, 6000)) * (rng.random((n, 6000)) < 0.7)
    p = sign_flip_tests(x, draws=500)
    for alpha in (0.001, 0.01, 0.05, 0.2):
        assert (p <= alpha).mean() <= alpha + 4 * (alpha / 6000) ** 0.5


def test_fewest_pairs_reach_alpha_and_one_less_does_not():
    for alpha in (0.2, 0.05, 0.01, 2.0**-9):
        n = fewest_pairs(alpha)
        assert exact(np.ones(n)) <= alpha < exact(np.ones(n - 1))


def test_as_many_as_needed_are_found_and_one_less_is_not():
    for smallest, m, alpha in ((2.0**-11, 400, 0.05), (1e-4, 131_072, 0.05), (1e-9, 50, 0.01)):
        k = needed(smallest, m, alpha)
        p = np.ones(m)
        p[:k] = smallest
        assert benjamini_hochberg(p)[0] <= alpha
        p[k - 1] = 1
        assert k == 1 or benjamini_hochberg(p)[0] > alpha


def test_no_difference_at_all_is_no_evidence():
    assert sign_flip_bound(np.zeros(5)) == 1
    assert (sign_flip_tests(np.zeros((30, 2))) == 1).all()
