"""README: a handful of massive rows can hold most of the variance, so a figure over all rows is about them alone.

17 of 110,000 rows at 140 times the norm of the others hold  17 · 140² / (17 · 140² + 109,983) = 75 %  of the variance
"""

import pytest
import torch
from torch import Tensor

from saes.reconstruction import ReconstructionFitter

N, MASSIVE, FACTOR, D, ERROR = 110_000, 17, 140.0, 32, 0.15


@pytest.fixture(scope="module")
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    x /= x.norm(dim=1, keepdim=True)
    x[:MASSIVE] *= FACTOR
    return x


def reconstructed(x: Tensor, *, massive: float) -> Tensor:
    """Ordinary rows with 15 % of their energy missing, massive rows with the share `massive` missing."""
    missing = torch.full((len(x), 1), ERROR)
    missing[:MASSIVE] = massive
    return x * (1 - missing.sqrt())


def explained(x: Tensor, x_hat: Tensor) -> float:
    return ReconstructionFitter().update(x, x_hat).result().explained_variance


def test_they_hold_most_of_the_variance(rows: Tensor):
    share = MASSIVE * FACTOR**2 / (MASSIVE * FACTOR**2 + N - MASSIVE)
    assert share == pytest.approx(0.75, abs=0.005)
    measured = rows[:MASSIVE].square().sum() / rows.square().sum()
    assert float(measured) == pytest.approx(share, rel=1e-4)


def test_a_reconstruction_that_has_them_is_flattered_and_one_that_has_not_is_punished(rows: Tensor):
    share = MASSIVE * FACTOR**2 / (MASSIVE * FACTOR**2 + N - MASSIVE)
    having, lacking = reconstructed(rows, massive=0.0), reconstructed(rows, massive=1.0)
    for x_hat, missed in ((having, ERROR * (1 - share)), (lacking, ERROR * (1 - share) + share)):
        assert explained(rows[MASSIVE:], x_hat[MASSIVE:]) == pytest.approx(1 - ERROR, abs=1e-3)  # the headline: equal
        assert explained(rows, x_hat) == pytest.approx(1 - missed, abs=2e-3)
    assert explained(rows, having) > 0.95 and explained(rows, lacking) < 0.25
