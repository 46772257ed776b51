"""The paired permutation test: exact values, its size under the null, and what it refuses."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp.errors import InputError
from interp.stats import paired_permutation


def test_small_cases_are_exact():
    values = np.array([0.7, -0.2, 1.1, 0.4, 0.9])
    sums = [abs(float(np.dot(signs, values))) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([one >= abs(values.sum()) - 1e-9 for one in sums])
    assert paired_permutation(values) == pytest.approx(expected)
    assert paired_permutation(np.ones(10)) == pytest.approx(2 / 2**10)


def test_many_cases_agree_with_scipy():
    values = np.random.default_rng(3).normal(0.35, 1, size=40)
    reference = scipy_stats.permutation_test(
        (values, np.zeros(40)), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert paired_permutation(values) == pytest.approx(reference, abs=0.01)


def test_without_an_effect_five_percent_are_below_five_percent_and_with_one_most_are():
    generator = np.random.default_rng(0)
    null = [paired_permutation(generator.normal(size=12)) for _ in range(300)]
    real = [paired_permutation(generator.normal(1.5, 1, size=12)) for _ in range(60)]
    assert 0.01 < np.mean(np.array(null) < 0.05) < 0.1
    assert np.mean(np.array(real) < 0.05) > 0.9


def test_a_missing_score_is_refused():
    with pytest.raises(InputError, match="leave cases without a score out"):
        paired_permutation(np.array([1.0, np.nan]))
