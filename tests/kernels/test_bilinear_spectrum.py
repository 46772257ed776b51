"""`bilinear_spectrum` against the dense answer; what routing and filtering are, with converses; gradients; errors."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import bilinear_spectrum, use_backend
from midlens_kernels.bilinear_spectrum import (
    bilinear_core,
    bilinear_eigenvalues,
    bilinear_energies,
    bilinear_vectors,
    cpu,
    gram_spectrum,
)
from torch import Tensor

# *h, d, e: one of one, one column, d < e, d = e, e < d < 2e, d odd, d = 2e, d > 2e, heads, layers and heads, no heads
SHAPES = [
    (1, 1),
    (6, 1),
    (2, 5),
    (4, 4),
    (5, 3),
    (7, 4),
    (6, 3),
    (40, 6),
    (3, 19, 4),
    (2, 3, 23, 5),
    (0, 9, 2),
    (2, 0, 9, 2),
]


def factors(*shape: int, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))


def orthonormal(d: int, e: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(factors(d, e, seed=seed)[0]).Q


def gram_of(left: Tensor, right: Tensor) -> Tensor:
    both = torch.cat([left, right], -1).double()
    return both.mT @ both


def dense(left: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """scipy's answer for one head: all d singular values of the skew part, all d eigenvalues of the symmetric one."""
    M = left.double().numpy() @ right.double().numpy().T
    return scipy.linalg.svd((M - M.T) / 2, compute_uv=False), scipy.linalg.eigh((M + M.T) / 2, eigvals_only=True)[::-1]


def padded(values: Tensor, d: int) -> np.ndarray:
    """With the zeros that are not listed, descending."""
    return np.sort(np.concatenate([values.numpy(), np.zeros(d - len(values))]))[::-1]


def assert_dense(left: Tensor, right: Tensor, tolerance: float = 1e-10) -> None:
    """Both routes agree with scipy, relative to the largest value of M, head by head."""
    d, e = left.shape[-2:]
    p = min(d, 2 * e)
    for backend in ("reference", "torch"):
        with use_backend(backend):
            routing, filtering = bilinear_spectrum(left, right)
        assert routing.shape == (*left.shape[:-2], p // 2) and filtering.shape == (*left.shape[:-2], p)
        assert routing.dtype == filtering.dtype == torch.float64
        heads = left.shape[:-2].numel()
        flat = (t.reshape(heads, *t.shape[-size:]) for t, size in ((left, 2), (right, 2), (routing, 1), (filtering, 1)))
        for one_left, one_right, ours_routing, ours_filtering in zip(*flat, strict=True):
            skew, symmetric = dense(one_left, one_right)
            scale = np.linalg.norm(one_left.double().numpy() @ one_right.double().numpy().T, 2)
            twice = ours_routing.repeat_interleave(2)
            np.testing.assert_allclose(padded(twice, d), skew, rtol=0, atol=tolerance * scale)
            np.testing.assert_allclose(padded(ours_filtering, d), symmetric, rtol=0, atol=tolerance * scale)
            assert (ours_filtering.diff() <= 0).all() and (ours_routing.diff() <= 0).all() and (ours_routing >= 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_dense_answer(shape):
    left, right = factors(*shape, seed=sum(shape))
    assert_dense(left, right)


@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 14), e=st.integers(1, 6), seed=st.integers(0, 999), piece=st.sampled_from([1, 100, 2**24]))
def test_any_shape_and_piece(d, e, seed, piece):
    left, right = factors(3, d, e, seed=seed)
    if seed % 3 == 0:
        right[..., -1] = right[..., 0]
    if seed % 4 == 0:
        left[..., 0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "PIECE", piece)
        assert_dense(left, right)


@pytest.mark.parametrize("shape", [(5, 3), (40, 6), (1, 1), (2, 5)], ids=str)
def test_degenerate_factors(shape):
    """Zero matrices, repeated columns, one direction only, equal factors, opposite factors."""
    left, right = factors(*shape, seed=1)
    zero, repeated = torch.zeros_like(left), left[..., :1].expand(shape).clone()
    for a, b in itertools.product([left, right, zero, repeated, -left], repeat=2):
        if a.any() and b.any():
            assert_dense(a, b)
        else:
            assert not any(t.any() for t in bilinear_spectrum(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_widened_first(dtype):
    left, right = factors(2, 30, 4, dtype=dtype)
    assert_dense(left, right)
    for ours, wide in zip(
        bilinear_spectrum(left, right), bilinear_spectrum(left.double(), right.double()), strict=True
    ):
        assert torch.equal(ours, wide)


def test_factors_that_are_not_contiguous():
    left, right = factors(3, 4, 30, seed=2)
    assert_dense(left.mT, right.mT)
    assert_dense(left.mT, right.mT.contiguous())
    assert_dense(left[:1].expand(3, 4, 30).mT, right.mT)


def parts_of(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts put together again from their planes and modes."""
    taken = bilinear_vectors(left, right)
    x, y = taken.planes.unbind(-2)
    turned = x.mT @ (taken.routing[..., None] * y)
    return turned - turned.mT, taken.modes.mT @ (taken.filtering[..., None] * taken.modes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_planes_and_modes_rebuild_both_parts_and_these_sum_to_M(shape):
    left, right = factors(*shape, seed=sum(shape) + 1)
    M = left @ right.mT
    routing, filtering = parts_of(left, right)
    torch.testing.assert_close(routing, (M - M.mT) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(filtering, (M + M.mT) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing + filtering, M, rtol=0, atol=1e-12)
    taken, spectrum = bilinear_vectors(left, right), bilinear_spectrum(left, right)
    for vectors in (taken.planes.flatten(-3, -2), taken.modes):
        eye = torch.eye(vectors.shape[-2], dtype=torch.float64).expand(*vectors.shape[:-2], -1, -1)
        torch.testing.assert_close(vectors @ vectors.mT, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(taken.routing, spectrum.routing, rtol=0, atol=1e-12)
    torch.testing.assert_close(taken.filtering, spectrum.filtering, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["symmetric", "rank one", "one plane", "zero"])
def test_planes_stay_orthonormal_where_routing_vanishes(case):
    left, right = factors(20, 4, seed=3)
    left, right = {
        "symmetric": (left, left),
        "rank one": (left[:, :1].expand(20, 4), right[:, :1].expand(20, 4)),
        "one plane": (left[:, :2], left[:, :2] @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)),
        "zero": (left * 0, right),
    }[case]
    vectors = bilinear_vectors(left, right).planes.flatten(0, 1)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(len(vectors)).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(parts_of(left, right)), left @ right.mT, rtol=0, atol=1e-12)


def test_norms_add_in_squares_only_for_the_halves():
    left, right = factors(30, 5, seed=4)
    M = left @ right.mT
    spectrum = bilinear_spectrum(left, right)
    whole = M.square().sum()
    torch.testing.assert_close(spectrum.routing_energy + spectrum.filtering_energy, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(spectrum.routing_energy, ((M - M.T) / 2).square().sum(), rtol=1e-13, atol=0)
    # the converse: other multiples of the parts sum to something else, and so do parts that are not orthogonal
    routing, filtering = (M - M.T) / 2, (M + M.T) / 2
    for a, b in ((2.0, 2.0), (1.0, 0.5), (0.5, 1.5)):
        assert abs((a * routing).square().sum() + (b * filtering).square().sum() - whole) > 1e-3 * whole
    lower = M.tril()
    assert abs(lower.square().sum() + (M - lower.T).square().sum() - whole) > 1e-3 * whole
    # and the sum alone would not tell the two apart
    assert abs(spectrum.routing_energy - spectrum.filtering_energy) > 1e-3 * whole


def test_skew_singular_values_come_in_pairs_and_others_do_not():
    left, right = factors(30, 4, seed=5)
    skew, symmetric = dense(left, right)
    assert abs(skew[0:8:2] - skew[1:8:2]).max() < 1e-12 and abs(np.diff(skew[0:8:2])).min() > 1e-2
    assert abs(np.diff(np.sort(abs(symmetric))[::-1][:8])).min() > 1e-3
    M = left @ right.T
    turning = torch.linalg.eigvals((M - M.T) / 2)
    ours = bilinear_spectrum(left, right).routing
    torch.testing.assert_close(turning.imag.sort(descending=True).values[:4], ours, rtol=0, atol=1e-12)
    assert turning.real.abs().max() < 1e-12


def test_at_most_e_eigenvalues_of_each_sign_and_e_planes():
    left, right = factors(50, 50, 6, seed=6)
    filtering = bilinear_spectrum(left, right).filtering
    assert (filtering[:, :6] > 1e-6).all() and (filtering[:, 6:] < -1e-6).all()


def mixing(e: int, condition: float = 3.0, seed: int = 7) -> Tensor:
    u, v = orthonormal(e, e, seed), orthonormal(e, e, seed + 1)
    return u @ torch.logspace(0, np.log10(condition), e, dtype=torch.float64).diag() @ v


@pytest.mark.parametrize("shape", [(30, 5), (7, 5)], ids=str)
def test_a_symmetric_M_has_no_routing_and_a_skew_one_no_filtering(shape):
    """Also where the factors do not show it: left = X C, right = X, with C symmetric or skew, in another gauge."""
    X, gauge = factors(*shape, seed=8)[0], mixing(5)
    C = factors(5, 5, seed=9)[0]
    for sign, gone, kept in ((1, "routing", "filtering"), (-1, "filtering", "routing")):
        spectrum = bilinear_spectrum(X @ (C + sign * C.T) @ gauge, X @ torch.linalg.inv(gauge).T)
        largest = getattr(spectrum, kept).abs().max()
        assert getattr(spectrum, gone).abs().max() < 1e-13 * largest
        assert getattr(spectrum, f"{gone}_energy") < 1e-26 * largest**2
    spectrum = bilinear_spectrum(X, X)
    assert spectrum.routing.abs().max() < 1e-13 * spectrum.filtering[0]
    both = bilinear_spectrum(X @ C, X)  # the converse: C is neither
    assert both.routing[0] > 0.1 and both.filtering[0] > 0.1


def test_a_sink_is_one_plane_and_half_routing():
    """1 v^T with v centred: skew rank 2, routing fraction one half; and one rotation is one plane and nothing else."""
    v = factors(40, 1, seed=10)[0]
    v -= v.mean()
    sink = bilinear_spectrum(torch.ones(40, 1, dtype=torch.float64), v)
    assert sink.routing.shape == (1,)
    torch.testing.assert_close(sink.routing_energy, sink.filtering_energy, rtol=1e-13, atol=0)
    off = bilinear_spectrum(torch.ones(40, 1, dtype=torch.float64), v + 1)  # not centred
    assert off.routing_energy < 0.9 * off.filtering_energy
    x = orthonormal(40, 2)
    rotation = bilinear_spectrum(3 * x, x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    expected = torch.tensor([3.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rotation.routing, expected, rtol=0, atol=1e-14)
    assert rotation.filtering.abs().max() < 1e-14


@pytest.mark.parametrize("shape", [(3, 40, 6), (7, 6), (4, 6)], ids=str)
def test_the_gauge_changes_nothing_and_half_of_it_does(shape):
    left, right = factors(*shape, seed=11)
    A = mixing(6)
    plain = bilinear_spectrum(left, right)
    turned = bilinear_spectrum(left @ A, right @ torch.linalg.inv(A).T)
    for a, b in zip(plain, turned, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * plain.filtering.abs().max().item())
    halfway = bilinear_spectrum(left @ A, right)
    assert (halfway.routing - plain.routing).abs().max() > 0.1
    energies = bilinear_energies(left, right), bilinear_energies(left @ A, right @ torch.linalg.inv(A).T)
    for a, b in zip(*energies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def test_a_rotation_of_the_rows_changes_nothing_and_the_core_is_one():
    left, right = factors(20, 4, seed=12)
    Q, plain = orthonormal(20, 20, 13), bilinear_spectrum(left, right)
    core = bilinear_core(left, right)
    assert core[0].shape == core[1].shape == (8, 4)
    for turned in (bilinear_spectrum(Q @ left, Q @ right), bilinear_spectrum(*core)):
        for a, b in zip(plain, turned, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # one basis for both factors, whatever stands between them
    A = factors(4, 4, seed=14)[0]
    wide, narrow = left @ A @ right.T, core[0] @ A @ core[1].T
    for part in (lambda M: M, lambda M: M - M.T, lambda M: M + M.T):
        wanted = torch.linalg.svdvals(part(wide))[:8]
        torch.testing.assert_close(torch.linalg.svdvals(part(narrow)), wanted, rtol=0, atol=1e-11)


def test_columns_of_very_different_lengths_keep_their_digits():
    """Column j of left times s_j and of right divided by it: the same M, and neither route minds."""
    left, right = factors(40, 5, seed=15)
    scale = torch.tensor([1e-9, 1e-4, 1.0, 1e5, 1e9], dtype=torch.float64)
    plain = bilinear_spectrum(left, right)
    largest = plain.filtering.abs().max().item()
    uneven = left * scale, right / scale
    for spectrum in (bilinear_spectrum(*uneven), gram_spectrum(gram_of(*uneven))):
        for a, b in zip(plain, spectrum, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * largest)


def planted(mu: float, d: int = 60, e: int = 6) -> tuple[Tensor, Tensor, float]:
    """Symmetric but for one plane rotated by `mu`; left and right span the same e directions. And the largest value."""
    V = orthonormal(d, e, 16)
    core = torch.diag(torch.tensor([3.0, -2.0, 1.5, 1.0, -0.7, 0.5], dtype=torch.float64))
    core[0, 1], core[1, 0] = mu, -mu
    A = mixing(e, seed=17)
    return V @ core @ A, V @ torch.linalg.inv(A).T, 3.0


def test_what_the_gram_matrix_loses():
    """A routing value of 1e-10 beside 3: QR finds it to 1e-14, the Gram matrix not at all, though summed in float64.

    Where [left right] is well conditioned the Gram matrix loses nothing.
    """
    left, right, largest = planted(1e-10)
    exact, squared = bilinear_spectrum(left, right), gram_spectrum(gram_of(left, right))
    assert abs(exact.routing[0] - 1e-10) < 1e-14 and exact.routing[1] < 1e-14
    assert squared.routing[0] > 1e-9  # noise ...
    assert squared.routing[0] < 1e-6 * largest  # ... of about the root of epsilon
    assert (squared.filtering[[0, -1]] - torch.tensor([3.0, -2.0]).double()).abs().max() < 1e-12
    # norms by e x e Gram matrices lose as much; those of the spectrum do not
    assert abs(exact.routing_energy - 2e-20) < 1e-23
    assert abs(bilinear_energies(left, right).routing - 2e-20) > 1e-20
    assert bilinear_energies(left, right).routing < 1e-13 * largest**2
    left, right = factors(60, 6, seed=18)
    for a, b in zip(bilinear_spectrum(left, right), gram_spectrum(gram_of(left, right)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e8])
def test_ill_conditioned_factors(condition):
    """The error of QR is that of rounding the columns; the Gram matrix's may reach the root of epsilon."""
    left, right = factors(60, 6, seed=19)
    nearly = left @ mixing(6, condition, 20) / condition + right * 1e-7
    skew, symmetric = dense(left, nearly)
    scale = left.norm().item() * nearly.norm().item()
    exact, squared = bilinear_spectrum(left, nearly), gram_spectrum(gram_of(left, nearly))
    for spectrum, tolerance in ((exact, 1e-15), (squared, 3e-8)):
        np.testing.assert_allclose(spectrum.routing.numpy(), skew[:12:2], rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(padded(spectrum.filtering, 60), symmetric, rtol=0, atol=tolerance * scale)


def test_a_gram_matrix_summed_over_streamed_rows():
    left, right = factors(2, 90, 4, seed=21)
    summed = sum(gram_of(left[:, i : i + 10], right[:, i : i + 10]) for i in range(0, 90, 10))
    for a, b in zip(gram_spectrum(summed), bilinear_spectrum(left, right), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert not any(t.any() for t in gram_spectrum(torch.zeros(4, 4, dtype=torch.float64)))
    one_sided = gram_spectrum(gram_of(left * 0, right))
    assert not any(t.any() for t in one_sided)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_energies_are_those_of_the_dense_parts(shape):
    left, right = factors(*shape, seed=22)
    M = left @ right.mT
    truth = [((M + sign * M.mT) / 2).square().sum((-2, -1)) for sign in (-1, 1)]
    spectrum = bilinear_spectrum(left, right)
    for found in (bilinear_energies(left, right), (spectrum.routing_energy, spectrum.filtering_energy)):
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eigenvalues_of_M(shape):
    left, right = factors(*shape, seed=23)
    d, e = shape[-2:]
    ours = bilinear_eigenvalues(left, right)
    assert ours.shape == (*shape[:-2], min(d, e)) and ours.dtype == torch.complex128
    M = left @ right.mT
    for found, one in zip(ours.reshape(-1, min(d, e)), M.reshape(-1, d, d), strict=True):
        truth = scipy.linalg.eigvals(one.numpy())
        for power in range(1, 4):  # sums of powers tell multisets apart without matching them
            np.testing.assert_allclose((found.numpy() ** power).sum(), (truth**power).sum(), rtol=1e-10, atol=1e-10)
        far = abs(found.numpy()[:, None] - truth[None]).min(1)
        assert far.max() < 1e-8 * max(1, abs(truth).max())


def test_norms_split_by_eigenvalues_and_non_normality():
    """||S||^2 = sum Im^2 + N^2 / 2 and ||P||^2 = sum Re^2 + N^2 / 2, with N^2 = ||M||^2 - sum |lambda|^2 (Henrici)."""
    left, right = factors(30, 5, seed=24)
    values, energies = bilinear_eigenvalues(left, right), bilinear_energies(left, right)
    half = (sum(energies) - values.abs().square().sum()) / 2
    assert half > 1
    torch.testing.assert_close(energies.routing, values.imag.square().sum() + half, rtol=1e-12, atol=0)
    torch.testing.assert_close(energies.filtering, values.real.square().sum() + half, rtol=1e-12, atol=0)
    assert values.real.max() <= bilinear_spectrum(left, right).filtering[0]  # Bendixson


GRADED = [(1, 1), (6, 1), (2, 3), (5, 3), (6, 3), (9, 2), (2, 7, 2)]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_gradients_of_every_value(shape, backend):
    given = [t.requires_grad_() for t in factors(*shape, seed=25)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda a, b: tuple(bilinear_spectrum(a, b)), given)


@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_gradients_agree_with_the_reference(shape):
    for dtype in (torch.float64, torch.float32):
        left, right = factors(*shape, seed=26, dtype=dtype)
        weights = [torch.rand_like(t) for t in bilinear_spectrum(left, right)]
        found = []
        for backend in ("reference", "torch"):
            given = [t.detach().requires_grad_() for t in (left, right)]
            with use_backend(backend):
                loss = sum((w * t.square()).sum() for w, t in zip(weights, bilinear_spectrum(*given), strict=True))
            found.append(torch.autograd.grad(loss, given))
        for plain, ours in zip(*found, strict=True):
            assert ours.dtype == dtype
            allowed = (1e-10 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps) * plain.abs().max().item()
            torch.testing.assert_close(ours, plain, rtol=0, atol=allowed)


def test_gradients_of_some_outputs_and_some_inputs(monkeypatch):
    monkeypatch.setattr(cpu, "PIECE", 1)
    left, right = factors(3, 9, 2, seed=27)
    for wanted, part in itertools.product((0, 1), (0, 1)):
        given = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((left, right))]
        (ours,) = torch.autograd.grad(bilinear_spectrum(*given)[part].sum(), given[wanted])
        with use_backend("reference"):
            (truth,) = torch.autograd.grad(bilinear_spectrum(*given)[part].sum(), given[wanted])
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12)


def test_energies_have_gradients_where_values_repeat_or_vanish():
    """left = right has routing 0 many times over, an orthonormal one 1 as well; the energies' gradients are smooth."""
    for left, right in (
        (factors(9, 2, seed=28)[0],) * 2,
        (orthonormal(9, 3),) * 2,
        (torch.zeros(9, 2).double(), factors(9, 2)[1]),
    ):
        given = [t.clone().requires_grad_() for t in (left, right)]
        spectrum = bilinear_spectrum(*given)
        ours = torch.autograd.grad(spectrum.routing_energy + 3 * spectrum.filtering_energy, given)
        M = given[0] @ given[1].mT
        truth = torch.autograd.grad(((M - M.T) / 2).square().sum() + 3 * ((M + M.T) / 2).square().sum(), given)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_of_energies_and_eigenvalues():
    given = [t.requires_grad_() for t in factors(2, 7, 3, seed=29)]
    assert torch.autograd.gradcheck(lambda a, b: tuple(bilinear_energies(a, b)), given)
    assert torch.autograd.gradgradcheck(lambda a, b: tuple(bilinear_energies(a, b)), given)
    assert torch.autograd.gradcheck(lambda a, b: torch.view_as_real(bilinear_eigenvalues(a, b)), given)


def test_gradients_that_are_not_offered_are_refused():
    left, right = factors(9, 2)
    left.requires_grad_()
    (first,) = torch.autograd.grad(bilinear_spectrum(left, right).routing.square().sum(), left, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    for name, call in (("bilinear_vectors", bilinear_vectors), ("bilinear_core", bilinear_core)):
        with pytest.raises(ValueError, match=rf"{name} has no gradient.*detach it, or call under torch.no_grad\(\)"):
            call(left, right)
        with torch.no_grad():
            call(left, right)
        call(left.detach(), right)
    with pytest.raises(ValueError, match=r"gram_spectrum has no gradient.*bilinear_spectrum.*are differentiable"):
        gram_spectrum(gram_of(left, right))


CALLS = [bilinear_spectrum, bilinear_energies, bilinear_eigenvalues, bilinear_vectors, bilinear_core]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize(
    "left,right,message",
    [
        (torch.zeros(4, 2), torch.zeros(4, 3), r"the same shape \(\.\.\., d, e\), got \(4, 2\) and \(4, 3\)$"),
        (torch.zeros(4, 2), torch.zeros(5, 2), r"got \(4, 2\) and \(5, 2\)$"),
        (torch.zeros(6, 4, 2), torch.zeros(2, 4, 2), "repeat the keys of a group for each of its heads first"),
        (torch.zeros(4), torch.zeros(4), r"shape \(\.\.\., d, e\), got \(4,\) and \(4,\)"),
        (torch.zeros(4, 0), torch.zeros(4, 0), r"at least one row and one column, got \(4, 0\) and \(4, 0\)"),
        (torch.zeros(0, 4), torch.zeros(0, 4), r"at least one row and one column, got \(0, 4\) and \(0, 4\)"),
        (torch.zeros(4, 2), torch.zeros(4, 2).double(), r"the same dtype.*got torch\.float32 and torch\.float64"),
        (
            torch.zeros(4, 2).int(),
            torch.zeros(4, 2).int(),
            r"one of torch\.float64, .*got torch\.int32 and torch\.int32",
        ),
        (torch.zeros(4, 2).cfloat(), torch.zeros(4, 2).cfloat(), r"got torch\.complex64 and torch\.complex64"),
        (torch.zeros(4, 2), torch.zeros(4, 2, device="meta"), "on one device, got cpu and meta"),
    ],
)
def test_what_is_wrong_is_named(call, left, right, message):
    with pytest.raises(ValueError, match=message):
        call(left, right)


def test_numbers_that_are_none_are_named():
    for bad, (d, e) in itertools.product((np.nan, np.inf), ((9, 2), (3, 2))):
        left, right = factors(2, d, e)
        left[1, 2, 1] = bad
        for call in (bilinear_spectrum, bilinear_vectors, bilinear_eigenvalues):
            with pytest.raises(ValueError, match="left or right holds NaN or infinite values"):
                call(left, right)
        with pytest.raises(ValueError, match="NaN or infinite"):
            gram_spectrum(gram_of(left, right))


def test_gram_matrices_that_are_none_are_named():
    for shape in ((3, 3), (4, 2), (0, 0)):
        with pytest.raises(ValueError, match=rf"square and of even size.*got \({shape[0]}, {shape[1]}\)"):
            gram_spectrum(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"summed in float64, got torch\.float32"):
        gram_spectrum(torch.zeros(4, 4))


def test_requests():
    left, right = factors(9, 2)
    left.requires_grad_()
    assert "Spectrum" in str(bilinear_spectrum(left, right).routing.grad_fn)
    with use_backend("reference"):
        assert "Spectrum" not in str(bilinear_spectrum(left, right).routing.grad_fn)
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"torch\.float64 is no dtype it takes"):
        bilinear_spectrum(left, right)
