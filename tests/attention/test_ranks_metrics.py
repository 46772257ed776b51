"""Measures of rank against their definitions, metrics of heads against dense matrices, planted heads."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from interp.attention.bilinear import Bilinear
from interp.attention.metrics import HeadMetrics, directionality, head_metrics
from interp.attention.ranks import Ranks, rank_measures
from interp.errors import InputError
from tests.attention.test_bilinear import plane, random

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def by_numpy(sigma: np.ndarray) -> list[float]:
    sigma = np.sort(sigma)[::-1]
    p, w = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    counts = [next(r for r in range(1, len(w) + 1) if w[:r].sum() >= tau) for tau in (0.9, 0.95, 0.99)]
    entropies = [math.exp(-(x[x > 0] * np.log(x[x > 0])).sum()) for x in (p, w)]
    return [*entropies, 1 / (w**2).sum(), 1 / w.max(), *counts, (sigma > 1e-12 * sigma[0]).sum()]


def test_definitions():
    sigma = np.random.default_rng(0).exponential(size=(3, 17)) ** 3
    sigma[1, 5:9] = 0
    found = rank_measures(torch.from_numpy(sigma))
    expected = np.array([by_numpy(row) for row in sigma])
    np.testing.assert_allclose(np.stack([rank.numpy() for rank in found], -1), expected, rtol=1e-12)


def test_planes_count_twice():
    sigma = np.random.default_rng(1).exponential(size=9)
    found = rank_measures(torch.from_numpy(sigma), paired=True)
    expected = by_numpy(sigma.repeat(2))
    for name, rank, of_all in zip(Ranks._fields, found, expected, strict=True):
        rounded = 2 * math.ceil(of_all / 2) if name.startswith("r9") else of_all
        assert float(rank) == pytest.approx(rounded, rel=1e-12)


@pytest.mark.parametrize("count", [1, 3, 10, 20, 100])
def test_equal_values_count_as_many(count):
    found = rank_measures(torch.full((count,), 0.1))
    for name, rank in found._asdict().items():
        share = {"r90": 0.9, "r95": 0.95, "r99": 0.99}.get(name, 1)
        assert float(rank) == pytest.approx(math.ceil(round(share * count, 9)) if share < 1 else count)


@pytest.mark.parametrize("size", [1e-200, 1e-3, 1e200])
def test_scale_does_not_matter(size):
    sigma = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    for a, b in zip(rank_measures(size * sigma), rank_measures(sigma), strict=True):
        torch.testing.assert_close(a, b)


def test_ranks_of_nothing_are_zero():
    assert all(float(rank) == 0 for rank in rank_measures(torch.zeros(4), paired=True))
    assert all(float(rank) == 0 for rank in rank_measures(torch.zeros(0)))
    floor = torch.tensor(1e-3)
    assert all(float(rank) == 0 for rank in rank_measures(torch.tensor([1e-4, 1e-5]), floor=floor))
    with pytest.raises(InputError, match="none below zero"):
        rank_measures(torch.tensor([1.0, -1.0]))


def dense_directionality(M: torch.Tensor) -> float:
    excess = []
    for norms in (M.norm(dim=1), M.norm(dim=0)):
        threshold = norms.mean() + 2 * norms.std(unbiased=True)
        excess.append(float((norms[norms > threshold] - threshold).sum()))
    rows, columns = excess
    return (rows - columns) / (rows + columns) if rows + columns else 0.0


@pytest.mark.parametrize(("d", "e"), [(60, 5), (7, 5), (3, 5)])
def test_metrics_against_dense_matrices(d, e):
    m = random(d, e, heads=3)
    found = head_metrics(m)
    for h in range(3):
        M = m.dense()[h]
        A, S = (M - M.T) / 2, (M + M.T) / 2
        values = torch.linalg.eigvals(M)
        square = M.square().sum()
        departure = square - values.abs().square().sum()
        expected = HeadMetrics(
            *(square, A.square().sum(), S.square().sum(), A.square().sum() / square),
            symmetry=torch.trace(M @ M) / square,
            routing_filtering_ratio=A.norm() / S.norm(),
            trace=torch.trace(M),
            directionality=torch.tensor(dense_directionality(M), dtype=torch.float64),
            henrici=(departure / square).sqrt(),
            spectral_abscissa=values[values.abs() > 1e-9].real.max(),
            numerical_abscissa=torch.linalg.eigvalsh(S).max(),
            rotation_share=values.imag.abs().sum() / values.abs().sum(),
        )
        for name, value in expected._asdict().items():
            assert float(getattr(found, name)[h]) == pytest.approx(float(value), rel=1e-9, abs=1e-9), name


def test_the_three_ratios_say_the_same():
    found = head_metrics(random(30, 4))
    s = found.symmetry
    torch.testing.assert_close(found.routing_fraction, (1 - s) / 2, **EXACT)
    torch.testing.assert_close(found.routing_filtering_ratio, ((1 - s) / (1 + s)).sqrt(), **EXACT)


def test_a_rotation():
    x, y = plane()
    found = head_metrics(Bilinear(torch.stack([x, -y], -1), torch.stack([y, x], -1)))
    assert float(found.routing_fraction) == pytest.approx(1) and float(found.symmetry) == pytest.approx(-1)
    assert float(found.rotation_share) == pytest.approx(1) and float(found.henrici) < 1e-7
    assert abs(float(found.spectral_abscissa)) < 1e-12 and abs(float(found.numerical_abscissa)) < 1e-12


def test_a_symmetric_head():
    P = random(20, 3).left[0]
    found = head_metrics(Bilinear(P, P))
    assert float(found.symmetry) == pytest.approx(1) and float(found.rotation_share) == 0
    assert float(found.henrici) < 1e-7 and float(found.routing_filtering_ratio) < 1e-7
    assert float(found.spectral_abscissa) == pytest.approx(float(found.numerical_abscissa))


def test_what_is_not_normal_routes_without_rotating():
    """x y^T: nilpotent, no eigenvalue but zero, yet half of its energy is skew."""
    x, y = plane()
    found = head_metrics(Bilinear(x[:, None], y[:, None]))
    assert float(found.henrici) == pytest.approx(1) and float(found.routing_fraction) == pytest.approx(0.5)
    assert math.isnan(float(found.rotation_share))


def test_directionality_of_planted_rows_and_columns():
    left, right = random(200, 4, heads=1).left[0], random(200, 4, heads=1, seed=9).right[0]
    boosted = left.clone()
    boosted[7] *= 300
    rows, columns = directionality(Bilinear(boosted, right)), directionality(Bilinear(right, boosted))
    assert float(rows) > 0.4 and float(columns) == pytest.approx(-float(rows))
    assert abs(float(directionality(Bilinear(left, right)))) < 0.3
    flat = torch.eye(6, dtype=torch.float64)
    assert float(directionality(Bilinear(flat, flat[torch.randperm(6)]))) == 0


def test_a_zero_head():
    found = head_metrics(Bilinear(torch.zeros(9, 3), torch.randn(9, 3)))
    nan = {"routing_fraction", "symmetry", "routing_filtering_ratio", "henrici", "rotation_share"}
    for name, value in found._asdict().items():
        assert math.isnan(float(value)) if name in nan else float(value) == 0, name
