"""M = left right^T: the core against dense d x d algebra, identities of its spectra, planted heads, truncation."""

from typing import Any

import pytest
import torch
from scipy import linalg
from torch import Tensor

from interp.attention.bilinear import Bilinear
from interp.errors import InputError

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = [(40, 5), (10, 5), (7, 5), (3, 5), (1, 1), (2, 3)]  # d > 2e, d = 2e, e < d < 2e, d < e


def random(d: int, e: int, heads: int = 2, seed: int = 0) -> Bilinear:
    return Bilinear(*torch.randn(2, heads, d, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def parts(m: Bilinear) -> tuple[Tensor, Tensor]:
    M = m.left @ m.right.mT
    return (M - M.mT) / 2, (M + M.mT) / 2


def nonzero(values: Tensor, count: int) -> Tensor:
    """The `count` largest by magnitude, in the order of the values."""
    kept = values.abs().argsort(dim=-1, descending=True)[..., :count]
    return values.gather(-1, kept).sort(dim=-1, descending=True).values


@pytest.mark.parametrize(("d", "e"), SHAPES)
def test_the_core_against_dense_matrices(d, e):
    m, p = random(d, e), min(d, 2 * e)
    skew, symmetric = parts(m)
    torch.testing.assert_close(m.dense(), skew + symmetric, **EXACT)
    singular = torch.linalg.svdvals(skew)[:, : p // 2 * 2]
    torch.testing.assert_close(m.routing().values.repeat_interleave(2, -1), singular, **EXACT)
    signed = nonzero(torch.linalg.eigvalsh(symmetric), p)
    torch.testing.assert_close(m.filtering().signed, signed, **EXACT)
    torch.testing.assert_close(m.filtering().values, torch.linalg.svdvals(symmetric)[:, :p], **EXACT)
    for energies in (m.energies(), (m.routing().energy, m.filtering().energy)):
        for got, part in zip(energies, (skew, symmetric), strict=True):
            torch.testing.assert_close(got, part.square().sum((-2, -1)), **EXACT)
    ours, dense = m.eigenvalues(), torch.linalg.eigvals(m.dense())
    for power in (1, 2, 3):  # power sums determine the non-zero eigenvalues
        torch.testing.assert_close(ours.pow(power).sum(-1), dense.pow(power).sum(-1), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("d", [40, 7])
def test_at_most_e_modes_of_either_sign(d):
    signed = random(d, 5).filtering().signed
    assert ((signed > 1e-9).sum(-1) <= 5).all() and ((signed < -1e-9).sum(-1) <= 5).all()
    if d == 40:
        assert ((signed > 1e-9).sum(-1) == 5).all() and ((signed < -1e-9).sum(-1) == 5).all()


def test_gauge_invariance():
    """(P, K) -> (P G, K G^-T) leaves M alone; G on one side only does not."""
    m = random(30, 4)
    G = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2 * torch.eye(4)
    moved = Bilinear(m.left @ G, m.right @ torch.linalg.inv(G).mT)
    wrong = Bilinear(m.left @ G, m.right)
    for part in ("routing", "filtering"):
        torch.testing.assert_close(getattr(moved, part)().signed, getattr(m, part)().signed, **EXACT)
        assert (getattr(wrong, part)().signed - getattr(m, part)().signed).abs().max() > 0.1


def test_schur_henrici_and_bendixson():
    """||A||² = Σ(Im λ)² + N²/2, ||S||² = Σ(Re λ)² + N²/2; max Re λ <= λ_max(S)."""
    m = random(30, 6, heads=5)
    values, (routing, filtering) = m.eigenvalues(), m.energies()
    off = routing + filtering - values.abs().square().sum(-1)
    torch.testing.assert_close(routing, values.imag.square().sum(-1) + off / 2, **EXACT)
    torch.testing.assert_close(filtering, values.real.square().sum(-1) + off / 2, **EXACT)
    # the departure from normality is not just what is left over: it is the norm of the strict triangle of Schur's form
    schur = [linalg.schur(M.numpy(), output="complex")[0] for M in m.dense()]
    triangle = [(abs(torch.from_numpy(T).triu(1)) ** 2).sum() for T in schur]
    torch.testing.assert_close(off, torch.stack(triangle), rtol=1e-9, atol=1e-9)
    assert (values.real.amax(-1) <= m.filtering().signed[:, 0] + 1e-10).all()


def plane(d: int = 12) -> tuple[Tensor, Tensor]:
    return torch.linalg.qr(torch.randn(d, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0].T


def test_a_single_plane_has_rank_two_by_every_measure():
    x, y = plane()
    m = Bilinear(2 * torch.stack([x, -y], -1), torch.stack([y, x], -1))  # 2 (x y^T - y x^T)
    ranks = m.routing().ranks()
    assert all(float(rank) == pytest.approx(2, abs=1e-9) for rank in ranks)
    assert [float(r) for r in (ranks.r90, ranks.r95, ranks.r99, ranks.numerical)] == [2, 2, 2, 2]
    assert float(m.routing().values[0]) == pytest.approx(2)
    assert all(float(rank) == 0 for rank in m.filtering().ranks())
    assert sorted(m.eigenvalues().imag.tolist()) == pytest.approx([-2, 2])


def test_a_symmetric_head_routes_nothing():
    P = random(20, 3).left[0]
    m = Bilinear(P, P)
    assert all(float(rank) == 0 for rank in m.routing().ranks()) and float(m.energies().routing) < 1e-25
    assert float(m.filtering().ranks().numerical) == 3 and (m.filtering().signed > -1e-12).all()


def test_a_sink_routes_half_at_rank_two():
    """1 v^T with v centred: skew rank exactly 2 and half of the energy; with v along 1, nothing."""
    one = torch.ones(16, 1, dtype=torch.float64)
    v = torch.randn(16, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    m = Bilinear(one, v - v.mean())
    routing, filtering = m.energies()
    assert float(routing / (routing + filtering)) == pytest.approx(0.5, abs=1e-12)
    assert all(float(rank) == pytest.approx(2, abs=1e-9) for rank in m.routing().ranks())
    assert float(Bilinear(one, 3 * one).energies().routing) < 1e-20


def test_mixed_and_transposed():
    m = random(20, 4)
    skew, symmetric = parts(m)
    mixed = m.mixed(0.3, -2.0)
    torch.testing.assert_close(mixed.dense(), 0.3 * symmetric - 2 * skew, **EXACT)
    assert mixed.left.shape[-1] == 8
    torch.testing.assert_close(m.transposed().dense(), m.dense().mT, **EXACT)


@pytest.mark.parametrize(("d", "e"), [(30, 4), (5, 4)])
@pytest.mark.parametrize(("planes", "modes"), [(1, 2), (0, 3), (2, 0), (None, 1), (0, 0), (99, None)])
def test_truncation_keeps_the_largest(d, e, planes, modes):
    m = random(d, e)
    skew, symmetric = parts(m)
    kept = m.truncated(planes, modes).dense()
    values, vectors = torch.linalg.eigh(symmetric)
    U, singular, Vh = torch.linalg.svd(skew)
    for head in range(2):
        best = values[head].abs().argsort(descending=True)[:modes]
        expected = vectors[head][:, best] @ torch.diag(values[head][best]) @ vectors[head][:, best].T
        count = None if planes is None else 2 * planes
        expected = expected + U[head][:, :count] @ torch.diag(singular[head][:count]) @ Vh[head][:count]
        torch.testing.assert_close(kept[head], expected, **EXACT)


def test_a_zero_head_beside_others():
    m = random(20, 4)
    m = Bilinear(m.left * torch.tensor([0.0, 1.0])[:, None, None], m.right)
    for part in (m.routing(), m.filtering()):
        assert float(part.energy[0]) == 0 and all(float(rank[0]) == 0 for rank in part.ranks())
        assert float(part.energy[1]) > 0 and all(float(rank[1]) > 1 for rank in part.ranks())
    assert (m.eigenvalues()[0] == 0).all()


def test_bad_input():
    with pytest.raises(InputError, match=r"one shape .*got \(2, 5, 3\) and \(1, 5, 3\); repeat the keys"):
        Bilinear(torch.zeros(2, 5, 3), torch.zeros(1, 5, 3))
    with pytest.raises(InputError, match="must be 0 or more, got -1 and None"):
        random(5, 2).truncated(planes=-1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Bilinear(torch.full((5, 2), torch.nan), torch.ones(5, 2)).routing()


def test_words():
    m = random(20, 4)
    assert repr(m) == "Bilinear(d 20, e 4, 2 heads)" and repr(m.routing()) == "Spectrum(4 planes, 2 heads)"
    assert repr(Bilinear(m.left[0], m.right[0]).filtering()) == "Spectrum(8 modes)"
