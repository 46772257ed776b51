"""AxBench's score: the mean itself, the choice of the strength, and why halves are needed."""

import numpy as np
import pytest

from interp.errors import InputError
from interp.steering.axbench import choose_and_report, harmonic


def test_harmonic_mean_of_ratings():
    found = harmonic(np.array([2.0, 2, 1, 0, np.nan]), np.array([2.0, 1, 1, 2, 2]), np.array([2.0, 1, 2, 2, 0]))
    assert found[:4] == pytest.approx([2, 3 / (1 / 2 + 1 + 1), 3 / (1 + 1 + 1 / 2), 0])
    assert np.isnan(found[4])
    with pytest.raises(InputError, match="expected 0 to 2"):
        harmonic(np.array([3.0]), np.array([1.0]), np.array([1.0]))


def test_the_best_factor_is_found_and_missing_ratings_are_left_out():
    scores = np.array([[0.2] * 8, [1.5] * 8, [0.9] * 8])
    scores[1, :3] = np.nan
    found = choose_and_report((0.5, 1, 2), scores)
    assert found.factor == 1 and found.score == pytest.approx(1.5) and 1 <= found.n <= 4


def test_choosing_on_one_half_removes_the_luck_that_choosing_adds():
    """Twenty factors of no difference: the chosen one looks better than it is where it was chosen, not elsewhere."""
    generator = np.random.default_rng(0)
    runs = [choose_and_report(range(20), generator.uniform(0, 2, (20, 10)), seed=seed) for seed in range(200)]
    assert np.mean([run.chosen_by for run in runs]) > 1.3
    assert np.mean([run.score for run in runs]) == pytest.approx(1.0, abs=0.07)


def test_one_prompt_cannot_be_halved():
    with pytest.raises(InputError, match="two prompts or more"):
        choose_and_report((1,), np.ones((1, 1)))
    with pytest.raises(InputError, match="choosing half"):
        choose_and_report((1,), np.full((1, 6), np.nan))
