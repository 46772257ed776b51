"""Matching of two dictionaries: planted permutations, unrelated ones, and the optimum by enumeration."""

import itertools

import numpy as np
import pytest
import torch

from interp.errors import InputError
from saes.stability import match


def _rows(f: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(f, d, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("method", ["hungarian", "mutual"])
def test_a_permutation_with_noise_is_recovered(method):
    A = _rows(300, 64)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    B = 7 * A[order] + 0.3 * torch.randn(300, 64, generator=torch.Generator().manual_seed(2))
    found = match(A, B, method=method)
    assert torch.equal(order[found.b], found.a) and len(found.a) == 300
    assert found.share(0.7) == 1 and found.mean_max_cosine > 0.9
    cosine = torch.nn.functional.cosine_similarity(A[found.a], B[found.b])
    torch.testing.assert_close(found.cosine, cosine, rtol=0, atol=1e-6)


def test_a_shared_part_is_the_share_matched():
    A, B = _rows(200, 64), _rows(200, 64, seed=9)
    B[:60] = A[100:160]
    found = match(A, B)
    assert found.method == "hungarian" and found.share(0.7) == 0.3 and found.share(0.999) == 0.3
    assert match(A, B, method="mutual").share(0.7) == 0.3
    assert match(A, B, largest=199).method == "mutual"


def test_unrelated_dictionaries_stand_at_chance():
    found = match(_rows(800, 64), _rows(800, 64, seed=5))
    assert found.share(0.7) == 0
    # 800 maxima with a spread of 0.04 each: standard error 0.0015, plus that of the one draw of B
    assert found.mean_max_cosine == pytest.approx(found.chance, abs=0.01)
    assert found.mean_max_cosine_back == pytest.approx(found.chance, abs=0.01)


def test_the_assignment_is_the_best_of_all():
    A, B = _rows(6, 3, seed=1), _rows(6, 3, seed=2)
    cosines = (A.double() @ B.double().T).numpy()
    best = max(sum(cosines[i, p[i]] for i in range(6)) for p in itertools.permutations(range(6)))
    found = match(A, B)
    assert float(found.cosine.double().sum()) == pytest.approx(best, abs=1e-5)
    greedy = match(A, B, method="mutual")
    assert len(greedy.a) < 6, "here neighbours collide, so that the two methods differ"


def test_sizes_may_differ():
    A = _rows(50, 32)
    B = torch.cat([A[10:30], _rows(100, 32, seed=3)])
    found = match(A, B)
    assert len(found.a) == 50 and found.share(0.99) == 0.4 and match(B, A).share(0.99) == pytest.approx(20 / 120)
    pairs = {(a, b) for a, b, c in zip(found.a.tolist(), found.b.tolist(), found.cosine, strict=True) if c > 0.99}
    assert pairs == {(10 + i, i) for i in range(20)}
    summary = found.summary()
    assert summary["pairs"] == 50 and summary["share_over_07"] == 0.4
    assert found.to_json()["cosine"] == found.cosine.tolist()
    assert np.isclose(summary["mean_max_cosine"], (A @ B.T).max(1).values.double().mean(), atol=1e-6)


def test_dictionaries_of_different_sites_are_refused():
    with pytest.raises(InputError, match="cannot be compared"):
        match(_rows(3, 3), _rows(3, 4))
