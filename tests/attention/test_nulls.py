"""Random heads: reference values, the reduced draws against draws in d dimensions, scores of planted heads."""

import math

import numpy as np
import pytest
import torch

from interp.attention.bilinear import Bilinear
from interp.attention.nulls import gaussian_null, matched_cores, matched_null, measures
from interp.errors import InputError
from tests.attention.test_bilinear import random


def haar(d: int, k: int, rng: np.random.Generator) -> torch.Tensor:
    Q, R = np.linalg.qr(rng.standard_normal((d, k)))
    return torch.from_numpy(Q * np.sign(np.diag(R)))


@pytest.mark.parametrize(
    ("d", "e", "expected"),
    [(768, 64, (122.5, 109.0, 96.3, 52.4, 95)), (1280, 64, (124.7, 115.9, 106.5, 61.7, 101))],
)
def test_gaussian_heads_have_the_known_ranks(d, e, expected):
    """Means of four dense heads, from the literature of this project; stable rank and r90 vary most."""
    null = gaussian_null(d, e, 30)
    for part in ("routing", "filtering"):
        names = ("erank1", "erank2", "participation", "stable", "r90")
        for name, value, within in zip(names, expected, (0.5, 0.8, 1.2, 4, 1.5), strict=True):
            assert float(null.mean[f"{part}_{name}"]) == pytest.approx(value, abs=within), (part, name)
    assert float(null.mean["routing_filtering_ratio"]) == pytest.approx(1, abs=0.01)
    assert 0.59 < float(null.mean["rotation_share"]) < 0.63
    assert gaussian_null(d, e, 30) is null and "spectral_abscissa" not in null.mean


@pytest.mark.parametrize(("d", "e"), [(40, 3), (6, 3), (5, 3), (3, 3), (2, 3)])
def test_gaussian_triangles_against_whole_matrices(d, e):
    """Drawn as triangles and as d x e matrices, metrics have the same mean within four standard errors."""
    draws, rng = 400, np.random.default_rng(1)
    whole = measures(Bilinear(*torch.from_numpy(rng.standard_normal((2, draws, d, e)))))
    null = gaussian_null(d, e, draws, 7)
    for name in ("routing_fraction", "rotation_share", "routing_erank1", "filtering_erank2", "henrici"):
        error = math.hypot(float(whole[name].std()), float(null.std[name])) / draws**0.5
        assert float(whole[name].mean()) == pytest.approx(float(null.mean[name]), abs=4 * error + 1e-9), name


@pytest.mark.parametrize(("d", "k"), [(40, 3), (6, 3), (4, 3), (3, 3)])
def test_matched_draws_against_orientations_in_d_dimensions(d, k):
    """Means and spreads of the reduced cores are those of U Σ V^T with frames drawn in d dimensions."""
    draws, rng, sigma = 400, np.random.default_rng(2), torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)[:k]
    U, V = (torch.stack([haar(d, k, rng) for _ in range(draws)]) for _ in range(2))
    dense = measures(Bilinear(U * sigma, V))
    reduced = measures(Bilinear(*matched_cores(sigma, draws, d, np.random.default_rng(3))))
    for name in ("routing_fraction", "spectral_abscissa", "numerical_abscissa", "routing_erank1", "filtering_stable"):
        a, b = dense[name], reduced[name]
        error = math.hypot(float(a.std()), float(b.std())) / draws**0.5
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=4 * error + 1e-9), name
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.3, abs=1e-9), name


@pytest.mark.parametrize(("d", "k"), [(40, 4), (6, 4), (4, 4)])
def test_draws_keep_the_singular_values(d, k):
    sigma = torch.tensor([7.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    left, right = matched_cores(sigma, 5, d, np.random.default_rng(0))
    assert left.shape[-2] == min(d, 2 * k)
    for M in left @ right.mT:
        torch.testing.assert_close(torch.linalg.svdvals(M)[:k], sigma, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(right.mT @ right, torch.eye(k, dtype=torch.float64).expand(5, k, k))


def test_the_same_seed_draws_the_same():
    m = random(30, 4)
    a, b, c = matched_null(m, 5, 3), matched_null(m, 5, 3), matched_null(m, 5, 4)
    for name in ("routing_fraction", "routing_erank1"):
        assert torch.equal(a.mean[name], b.mean[name]) and not torch.equal(a.mean[name], c.mean[name])
    alone = matched_null(Bilinear(m.left[:1], m.right[:1]), 5, 3)
    torch.testing.assert_close(alone.mean["henrici"], a.mean["henrici"][:1])


def test_a_random_head_is_like_its_null_and_a_symmetric_one_is_not():
    m = random(60, 6, heads=20)
    scores = matched_null(m).z(measures(m))
    assert scores["routing_fraction"].abs().median() < 1.5 and scores["routing_erank1"].abs().median() < 1.5
    P = m.left[0]
    symmetric = Bilinear(P, P)
    scores = matched_null(symmetric).z(measures(symmetric))
    assert float(scores["routing_fraction"]) < -10 and float(scores["spectral_abscissa"]) > 5


def test_a_zero_head_has_no_scores():
    zero = Bilinear(torch.zeros(9, 3), torch.ones(9, 3))
    null = matched_null(zero, 4)
    assert float(null.mean["routing_erank1"]) == 0 and math.isnan(float(null.mean["routing_fraction"]))
    assert all(math.isnan(float(score)) for score in null.z(measures(zero)).values())


def test_what_cannot_vary_has_no_score():
    m = random(40, 3)
    scores = matched_null(m, 5).z(measures(m))
    assert scores["routing_numerical"].isnan().all() and scores["routing_fraction"].isfinite().all()


def test_threads_are_given_back():
    before = torch.get_num_threads()
    matched_null(random(9, 2), 2)
    assert torch.get_num_threads() == before


def test_bad_input():
    with pytest.raises(InputError, match=r"2 draws or more.*got 1"):
        matched_null(random(9, 2), 1)
    with pytest.raises(InputError, match=r"2 draws or more.*got 0"):
        gaussian_null(9, 2, 0)
    with pytest.raises(InputError, match="got d=0, e=2"):
        gaussian_null(0, 2)
