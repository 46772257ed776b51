"""Permutations, false discovery rate, kappa and binomial tails against scipy, published numbers and brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from interp.errors import InputError
from interp.stats import benjamini_hochberg, binomial_tail, fleiss_kappa, paired_permutation, paired_permutations

# Fleiss 1971, "Measuring nominal scale agreement among many raters", as the standard worked example of the statistic
# has it: 14 raters, 10 items, 5 categories; kappa = 0.210.
WORKED = """0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7"""


def _table(text: str) -> np.ndarray:
    return np.array([list(map(int, line.split())) for line in text.splitlines()])


def _kappa_by_pairs(counts: np.ndarray) -> float:
    """Kappa from the definition: draw two raters of an item, and two ratings of any items, with brute force."""
    ratings = [[c for c, k in enumerate(row) for _ in range(k)] for row in counts]
    agree = np.mean([np.mean([a == b for a, b in itertools.permutations(row, 2)]) for row in ratings])
    every = [c for row in ratings for c in row]
    chance = np.mean([a == b for a in every for b in every])
    return float((agree - chance) / (1 - chance))


def test_kappa_of_the_worked_example():
    assert fleiss_kappa(_table(WORKED)) == pytest.approx(0.210, abs=5e-4)


def test_kappa_against_its_definition_and_at_its_ends():
    rng = np.random.default_rng(0)
    for _ in range(5):
        counts = rng.multinomial(4, [0.2, 0.5, 0.3], size=9)
        assert fleiss_kappa(counts) == pytest.approx(_kappa_by_pairs(counts), abs=1e-12)
    perfect = 5 * np.eye(3, dtype=int)
    assert fleiss_kappa(perfect) == 1
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == -1, "two raters who never agree"
    assert math.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    raters = rng.multinomial(1, [0.5, 0.5], size=(20_000, 5)).sum(1)
    assert abs(fleiss_kappa(raters)) < 0.02, "raters who draw at random agree no better than chance"


@pytest.mark.parametrize("counts", [np.array([[2, 1], [1, 1]]), np.array([[1, 0]]), np.zeros((0, 2), int)])
def test_kappa_refuses_unequal_raters(counts: np.ndarray):
    with pytest.raises(InputError, match="the same number of raters"):
        fleiss_kappa(counts)


def test_exact_permutations_agree_with_scipy():
    x = np.random.default_rng(1).normal(0.4, 1, size=(10, 3))
    p = paired_permutations(x)
    for column in range(3):
        theirs = scipy.stats.permutation_test(
            (x[:, column],), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert p[column] == pytest.approx(theirs.pvalue, abs=1e-12)
        assert paired_permutation(x[:, column]) == p[column]


def test_drawn_permutations_are_near_scipys_exact_ones():
    x = np.random.default_rng(2).normal(0.3, 1, size=(16, 1))
    theirs = scipy.stats.permutation_test((x[:, 0],), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    # 20,000 draws of a probability: a standard error of at most 0.0036
    assert abs(float(paired_permutations(x, seed=3)[0]) - theirs) < 0.015


def test_permutations_of_columns_are_uniform_without_an_effect():
    x = np.random.default_rng(4).normal(size=(20, 2000))
    p = paired_permutations(x, draws=999)
    # shares of 2000 columns: standard error at most 0.011
    assert all(abs(np.mean(p <= level) - level) < 0.035 for level in (0.05, 0.2, 0.5))


def test_false_discovery_rate_agrees_with_scipy():
    rng = np.random.default_rng(5)
    for m in (1, 2, 50):
        p = np.concatenate([rng.random(m), rng.random(m) * 1e-3])
        assert np.allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p), rtol=1e-12)
    tied = np.array([0.5, 0.5, 0.01])
    assert np.allclose(benjamini_hochberg(tied), scipy.stats.false_discovery_control(tied))
    with pytest.raises(InputError, match=r"p-values in \[0, 1\]"):
        benjamini_hochberg(np.array([0.2, 1.5]))


def test_binomial_tail_agrees_with_scipy():
    for n, k, p in ((5, 3, 1 / 27), (5, 0, 0.3), (5, 6, 0.3), (40, 11, 0.25), (3, 1, 0.0), (3, 3, 1.0)):
        assert binomial_tail(n, k, p) == pytest.approx(scipy.stats.binom.sf(k - 1, n, p), rel=1e-10, abs=1e-15)
    with pytest.raises(InputError, match="a probability"):
        binomial_tail(3, 1, 1.2)


@pytest.mark.parametrize("x", [np.zeros((0, 2)), np.array([[1.0], [np.nan]])])
def test_permutations_refuse_what_is_no_table_of_differences(x: np.ndarray):
    with pytest.raises(InputError, match="expected one finite difference or more"):
        paired_permutations(x)
