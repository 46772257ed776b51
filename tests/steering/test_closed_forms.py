"""The theorem behind the closed forms and each of its consequences, with converses, in float64.

The reference implementations here are written with matrix square roots (the published form of LEACE and MidSteer), with
random search, or with samples; none of them uses the solve form under test.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments, Whitener, whitener
from interp.steering.closed_forms import (
    ace,
    add,
    aligned_direction,
    constrained,
    erase,
    flip,
    identity_metric,
    midsteer,
    preserve,
    protect,
    set_value,
    swap,
    vanilla,
)
from interp.steering.edits import AffineEdit

DOUBLE = torch.float64
D, K = 12, 3


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _spd(seed: int, d: int = D, condition: float = 100.0) -> Tensor:
    basis = torch.linalg.qr(_randn(seed, d, d)).Q
    return basis @ torch.diag(torch.logspace(0, math.log10(condition), d, dtype=DOUBLE)) @ basis.T


def _metric(q: Tensor) -> Whitener:
    return Whitener("full", q)


def _case(seed: int = 0, k: int = K) -> tuple[Tensor, Tensor, Tensor, Tensor, Whitener]:
    sigma = _spd(seed)
    return sigma, _randn(seed + 1, D), _randn(seed + 2, D, k), _randn(seed + 3, D, k), _metric(torch.linalg.inv(sigma))


def _cost(a: Tensor, b: Tensor, sigma: Tensor, mu: Tensor, m: Tensor | None = None) -> float:
    """E |f(X) − X|²_M of x ↦ A x + b."""
    m = torch.eye(len(a), dtype=DOUBLE) if m is None else m
    move = a - torch.eye(len(a), dtype=DOUBLE)
    shift = move @ mu + b
    return float((m @ move @ sigma @ move.T).trace() + shift @ m @ shift)


def _close(a: Tensor, b: Tensor, tolerance: float) -> None:
    scale = float(b.abs().max().clamp(min=1))
    assert float((a - b).abs().max()) <= tolerance * scale


# ---------------------------------------------------------------- 3.1 the theorem


@pytest.mark.parametrize("k", [1, 3])
def test_no_feasible_map_disturbs_less_in_any_metric(k: int):
    sigma, mu, s, t, q = _case(k=k)
    delta = _randn(7, D)
    edit = constrained(s, t, q, mu, delta=delta)
    a, b = edit.dense()
    _close(a @ s, t, 1e-12)
    _close(a @ mu + b, mu + delta, 1e-12)
    free = torch.eye(D, dtype=DOUBLE) - s @ torch.linalg.pinv(s)  # F (I − S S^+): keeps A S = T
    for i in range(40):
        root = _randn(100 + i, D, 1 + i % D)
        m = root @ root.T  # of every rank, so M ≥ 0 rather than > 0
        other = a + (1e-3 if i % 2 else 1.0) * _randn(200 + i, D, D) @ free
        assert float((other @ s - t).abs().max()) < 1e-10
        best = _cost(a, b, sigma, mu, m)
        assert _cost(other, mu + delta - other @ mu, sigma, mu, m) >= best * (1 - 1e-12)
    r, inner = t - s, torch.linalg.inv(s.T @ torch.linalg.solve(sigma, s))
    value = float((m @ r @ inner @ r.T).trace() + delta @ m @ delta)
    assert best == pytest.approx(value, rel=1e-11)


def test_the_converse_an_infeasible_map_can_disturb_less_and_a_feasible_one_that_differs_disturbs_more():
    sigma, mu, s, t, q = _case()
    a, b = constrained(s, t, q, mu).dense()
    assert _cost(a * 0.5 + 0.5 * torch.eye(D, dtype=DOUBLE), b * 0.5, sigma, mu) < _cost(a, b, sigma, mu)
    wrong = constrained(s, t, identity_metric(s), mu).dense()
    assert _cost(*wrong, sigma, mu) > 1.05 * _cost(a, b, sigma, mu)


def test_feasible_exactly_when_dependent_sources_have_equally_dependent_targets():
    _, mu, s, t, q = _case()
    s2, t2 = torch.cat([s, s[:, :1] - 2 * s[:, 1:2]], 1), torch.cat([t, t[:, :1] - 2 * t[:, 1:2]], 1)
    a, _ = constrained(s2, t2, q, mu).dense()
    _close(a @ s2, t2, 1e-9)
    _close(a, constrained(s, t, q, mu).dense()[0], 1e-9)  # the dependent column changes nothing
    t2[:, -1] += 0.1
    with pytest.raises(InputError, match="no affine map does this"):
        constrained(s2, t2, q, mu)


def test_concepts_outside_the_range_of_the_covariance_are_refused_and_inside_it_the_null_space_is_left_alone():
    basis = torch.linalg.qr(_randn(0, D, D)).Q
    sigma = basis[:, :5] @ torch.diag(torch.arange(1.0, 6, dtype=DOUBLE)) @ basis[:, :5].T
    q = _metric(torch.linalg.pinv(sigma, rtol=1e-10, hermitian=True))
    s = basis[:, :5] @ _randn(1, 5, 2)
    edit = erase(s, q, torch.zeros(D, dtype=DOUBLE))
    outside = basis[:, 6]
    _close(edit(outside), outside, 1e-12)
    _close(edit.dense()[0] @ s, torch.zeros_like(s), 1e-11)
    flat = _metric(torch.diag(torch.cat([torch.ones(5), torch.zeros(7)]).double()))
    with pytest.raises(InputError, match="do not vary at all"):
        erase(torch.eye(D, dtype=DOUBLE)[:, 7:8], flat, outside)


# ---------------------------------------------------------------- 3.2 what follows


def test_the_solve_form_is_the_square_root_form_of_the_papers():
    sigma, mu, s, t, q = _case()
    values, vectors = np.linalg.eigh(sigma.numpy())
    w = torch.from_numpy((vectors / np.sqrt(values)) @ vectors.T)
    w_back = torch.from_numpy((vectors * np.sqrt(values)) @ vectors.T)
    eye = torch.eye(D, dtype=DOUBLE)
    leace = eye - w_back @ (w @ s) @ torch.linalg.pinv(w @ s) @ w
    switched = eye + w_back @ (w @ t - w @ s) @ torch.linalg.pinv(w @ s) @ w
    for edit, a in ((erase(s, q, mu), leace), (midsteer(s, t, q, mu), switched)):
        _close(edit.dense()[0], a, 1e-11)
        _close(edit.dense()[1], mu - a @ mu, 1e-11)
    twice = eye - 2 * w_back @ (w @ s) @ torch.linalg.pinv(w @ s) @ w
    _close(constrained(s, -s, q, mu).dense()[0], twice, 1e-11)


@pytest.mark.parametrize("beta", [-1.0, 0.0, 0.3, 1.0, 2.0, 5.0])
def test_strength_interpolates_the_target_and_stays_optimal_for_it(beta: float):
    _, mu, s, t, q = _case()
    edit = midsteer(s, t, q, mu).at(beta)
    mixed = (1 - beta) * s + beta * t
    _close(edit.dense()[0] @ s, mixed, 1e-11)
    for x, y in zip(edit.dense(), midsteer(s, mixed, q, mu).dense(), strict=True):
        _close(x, y, 1e-11)


def test_class_means_map_exactly_and_the_target_moves_by_the_leak():
    _, mu0, s, t, q = _case(k=1)
    t = t + 0.5 * s
    source, target = mu0 + s[:, 0], mu0 + t[:, 0]
    rho = float((s.T @ q.factor @ t) / (s.T @ q.factor @ s))
    assert abs(rho) > 0.3
    for beta in (0.5, 1.0, 3.0):
        edit = midsteer(s, t, q, mu0).at(beta)
        _close(edit(source), source + beta * (target - source), 1e-12)
        _close(edit(mu0), mu0, 1e-12)
        _close(edit(target), target + beta * rho * (t - s)[:, 0], 1e-12)


def test_the_read_out_ignores_how_the_classes_are_mixed_into_the_covariance():
    sigma, mu, s, t, q = _case()
    c = _randn(5, K, K)
    mixed = _metric(torch.linalg.inv(sigma + s @ c @ c.T @ s.T))
    _close(midsteer(s, t, mixed, mu).V, midsteer(s, t, q, mu).V, 1e-11)
    other = _randn(6, D, D)  # the converse: not so for changes outside the span of S
    changed = midsteer(s, t, _metric(torch.linalg.inv(sigma + other @ other.T)), mu).V
    assert float((changed - midsteer(s, t, q, mu).V).abs().max()) > 1e-3


def test_any_positive_metric_keeps_the_constraint_and_costs_at_most_kantorovich():
    condition = 1e4
    sigma, mu = _spd(0, condition=condition), _randn(1, D)
    s, t = _randn(2, D, 1), _randn(3, D, 1)
    best = _cost(*midsteer(s, t, _metric(torch.linalg.inv(sigma)), mu).dense(), sigma, mu)
    for seed in range(10):
        metric = _spd(20 + seed)
        a, b = midsteer(s, t, _metric(metric), mu).dense()
        _close(a @ s, t, 1e-10)
        formula = float(
            (s.T @ metric @ sigma @ metric @ s) * (s.T @ torch.linalg.solve(sigma, s)) / (s.T @ metric @ s).square()
        )
        assert formula >= 1
        assert _cost(a, b, sigma, mu) / best == pytest.approx(formula, rel=1e-9)
    bound = (condition + 1) ** 2 / (4 * condition)
    plain = _cost(*midsteer(s, t, identity_metric(s), mu).dense(), sigma, mu) / best
    assert 1 <= plain <= bound
    vectors = torch.linalg.eigh(sigma).eigenvectors  # the bound is sharp: both extreme eigenvectors together
    worst = vectors[:, [0]] + vectors[:, [-1]]
    target = worst + t
    factor = _cost(*midsteer(worst, target, identity_metric(s), mu).dense(), sigma, mu) / _cost(
        *midsteer(worst, target, _metric(torch.linalg.inv(sigma)), mu).dense(), sigma, mu
    )
    assert factor == pytest.approx(bound, rel=1e-9)


def test_ridge_runs_from_the_optimum_to_vanilla():
    moments = Moments.from_rows(_randn(0, 400, D) @ torch.linalg.cholesky(_spd(1)).T)
    s, t, mu = _randn(2, D, 1), _randn(3, D, 1), moments.mean
    far = midsteer(s, t, whitener(moments, "ridge", ridge=1e12), mu)
    near = midsteer(s, t, whitener(moments, "ridge", ridge=0.0), mu)
    _close(far.V, midsteer(s, t, identity_metric(s), mu).V, 1e-9)
    _close(near.V, midsteer(s, t, whitener(moments, "full"), mu).V, 1e-9)


def test_variance_and_disturbance_identities():
    sigma, mu, s, t, q = _case(k=1)
    alpha = float(s.T @ q.factor @ s)
    for beta in (0.5, 1.0, 2.0):
        a, b = midsteer(s, t, q, mu).at(beta).dense()
        moved = (1 - beta) * s + beta * t
        change = float((a @ sigma @ a.T).trace() - sigma.trace())
        assert change == pytest.approx(float(moved.square().sum() - s.square().sum()) / alpha, rel=1e-10)
        assert _cost(a, b, sigma, mu) == pytest.approx(beta**2 * float((t - s).square().sum()) / alpha, rel=1e-10)
    a, _ = erase(s, q, mu).dense()
    drop = float(sigma.trace() - (a @ sigma @ a.T).trace())
    assert drop == pytest.approx(float(s.square().sum()) / alpha, rel=1e-10)


# ---------------------------------------------------------------- 3.3 the family


def test_leace_leaves_no_linear_trace_of_the_labels_and_plain_projection_does():
    n = 400
    z = (_randn(1, n, 2) > 0).double()
    x = _randn(0, n, D) @ torch.linalg.cholesky(_spd(3)).T + z @ _randn(2, 2, D) * 4
    moments = Moments.from_rows(x, z)
    s = moments.cross_covariance()
    after = erase(s, whitener(moments, "full"), moments.mean)(x)
    assert float(Moments.from_rows(after, z).cross_covariance().abs().max()) < 1e-12 * float(s.abs().max()) * n
    shrunk = erase(s, whitener(moments, "shrink"), moments.mean)(x)
    assert float(Moments.from_rows(shrunk, z).cross_covariance().abs().max()) < 1e-11
    before, kept = float(((after - x) ** 2).sum()), erase(s, identity_metric(s), moments.mean)(x)
    assert float(Moments.from_rows(kept, z).cross_covariance().abs().max()) < 1e-11
    assert float(((kept - x) ** 2).sum()) > 1.5 * before
    partial = erase(s[:, :1], whitener(moments, "full"), moments.mean)(x)  # the converse
    assert float(Moments.from_rows(partial, z).cross_covariance().abs().max()) > 1e-2


def test_a_flip_about_the_midpoint_exchanges_the_means_and_is_its_own_inverse():
    _, mu, s, t, q = _case(k=1)
    source, target = mu + s[:, 0], mu + t[:, 0]
    edit = flip(source, target, q)
    _close(edit(source), target, 1e-12)
    _close(edit(target), source, 1e-12)
    x = _randn(9, 5, D)
    _close(edit(edit(x)), x, 1e-12)
    neutral = constrained(s - t, t - s, q, mu)  # centred elsewhere, as in the released code: not the target
    assert float((neutral(source) - target).abs().max()) > 1e-3
    assert float((midsteer(s, t, q, mu)(midsteer(s, t, q, mu)(x)) - x).abs().max()) > 1e-2


def test_a_flip_of_standardised_data_is_householders_reflection():
    s = _randn(0, D)
    householder = torch.eye(D, dtype=DOUBLE) - 2 * torch.outer(s, s) / (s @ s)
    whole = constrained(s[:, None], -s[:, None], _metric(torch.eye(D, dtype=DOUBLE)), torch.zeros(D, dtype=DOUBLE))
    _close(whole.dense()[0], householder, 1e-14)
    _close(vanilla(s).at(2.0).dense()[0], householder, 1e-14)
    _close(vanilla(s)(s), torch.zeros(D, dtype=DOUBLE), 1e-14)


def test_swap_exchanges_both_and_midsteer_does_not():
    _, mu, s, t, q = _case(k=1)
    source, target = mu + s[:, 0], mu + t[:, 0]
    both = swap(s, t, q, mu)
    _close(both(source), target, 1e-11)
    _close(both(target), source, 1e-11)
    assert both.rank == 2
    assert float((midsteer(s, t, q, mu)(target) - source).abs().max()) > 1e-2


def test_ace_is_its_published_formula_and_sets_the_coordinate():
    plus, minus, x = _randn(0, D), _randn(1, D), _randn(2, 6, D)
    r = plus - minus
    for value in (0.0, 1.0, -2.5):
        expected = torch.stack([v + r * (value - r @ (v - minus) / (r @ r)) for v in x])
        projection = torch.outer(r, r) / (r @ r)
        paper = x - x @ projection + minus @ projection + value * r
        out = ace(plus, minus, value)(x)
        _close(out, expected, 1e-12)
        _close(out, paper, 1e-12)
        _close((out - minus) @ r / (r @ r), torch.full((6,), value, dtype=DOUBLE), 1e-12)
    sigma = _spd(4)
    edit = set_value(r[:, None], 0.7, _metric(torch.linalg.inv(sigma)), minus)
    g = torch.linalg.solve(sigma, r) / (r @ torch.linalg.solve(sigma, r))
    _close((edit(x) - minus) @ g, torch.full((6,), 0.7, dtype=DOUBLE), 1e-11)


# ---------------------------------------------------------------- 3.6 what must not move


def test_kept_directions_are_fixed_at_rank_k_and_optimally():
    sigma, mu, s, t, q = _case()
    keep = _randn(8, D, 4)
    edit = preserve(s, t, keep, q, mu)
    a, b = edit.dense()
    _close(a @ keep, keep, 1e-11)
    _close(a @ s, t, 1e-11)
    assert edit.rank == K and int(torch.linalg.matrix_rank(a - torch.eye(D, dtype=DOUBLE), rtol=1e-9)) == K
    joint = constrained(torch.cat([s, keep], 1), torch.cat([t, keep], 1), q, mu).dense()
    _close(a, joint[0], 1e-11)
    solved = torch.linalg.solve(sigma, keep)  # the residual form
    rest = s - keep @ torch.linalg.solve(keep.T @ solved, solved.T @ s)
    g = torch.linalg.solve(rest.T @ torch.linalg.solve(sigma, rest), rest.T @ torch.linalg.inv(sigma))
    _close(edit.V.T, g, 1e-10)
    assert float((midsteer(s, t, q, mu).dense()[0] @ keep - keep).abs().max()) > 1e-2  # without it they move
    assert _cost(a, b, sigma, mu) > _cost(*midsteer(s, t, q, mu).dense(), sigma, mu)  # and it has a price


def test_soft_keeping_is_a_changed_covariance_and_fades_with_its_strength():
    sigma, mu, s, t, q = _case()
    keep = _randn(8, D, 2)
    for strength in (0.5, 1e3):
        changed = _metric(torch.linalg.inv(sigma + strength * keep @ keep.T))
        _close(preserve(s, t, keep, q, mu, strength=strength).V, midsteer(s, t, changed, mu).V, 1e-9)
    leak = [float((preserve(s, t, keep, q, mu, strength=x).V.T @ keep).norm()) for x in (1e4, 1e5, 1e6)]
    assert leak[0] / leak[1] == pytest.approx(10, rel=0.02) and leak[1] / leak[2] == pytest.approx(10, rel=0.02)
    _close(preserve(s, t, keep, q, mu, strength=1e10).V, preserve(s, t, keep, q, mu).V, 1e-6)


def test_keeping_what_is_to_be_moved_is_refused_unless_softly():
    _, mu, s, t, q = _case(k=1)
    with pytest.raises(InputError, match="finite keep_strength"):
        preserve(s, t, torch.cat([s, _randn(8, D, 1)], 1), q, mu)
    assert torch.isfinite(preserve(s, t, s, q, mu, strength=1.0).V).all()


def test_protected_read_outs_never_move_and_the_rest_is_the_closest_target():
    _, mu, s, t, q = _case()
    c, spread = _randn(8, D, 2), _spd(30)
    whole = constrained(s, t, q, mu, delta=_randn(9, D))
    for metric in (None, spread):
        edit, lost = protect(whole, c, metric)
        a, b = edit.dense()
        _close(c.T @ (a - torch.eye(D, dtype=DOUBLE)), torch.zeros(2, D, dtype=DOUBLE), 1e-11)
        _close(c.T @ b, torch.zeros(2, dtype=DOUBLE), 1e-11)
        assert 0 < lost < 1
        m = torch.eye(D, dtype=DOUBLE) if metric is None else torch.linalg.inv(metric)
        gap = edit.U - whole.U
        for i in range(20):  # any other R' with CᵀR' = 0 is farther from R in M
            other = _randn(50 + i, D, K)
            other = edit.U + other - c @ torch.linalg.solve(c.T @ c, c.T @ other)
            away = other - whole.U
            assert float((away.T @ m @ away).trace()) >= float((gap.T @ m @ gap).trace())
    basis = torch.linalg.qr(c).Q
    assert lost == pytest.approx(
        float((basis.T @ torch.cat([whole.U, whole.delta[:, None]], 1)).norm())
        / float(torch.cat([whole.U, whole.delta[:, None]], 1).norm()),
        rel=1e-12,
    )
    a = protect(whole, c).edit.dense()[0]
    pi = torch.eye(D, dtype=DOUBLE) - c @ torch.linalg.solve(c.T @ c, c.T)
    _close(a @ s - s, pi @ (t - s), 1e-10)  # D S = Π R
    free = (t - s) - c @ torch.linalg.solve(c.T @ c, c.T @ (t - s))
    assert protect(constrained(s, s + free, q, mu), c).lost < 1e-12  # nothing to lose: nothing lost


def test_the_aligned_direction_beats_random_search_and_leaves_the_protected_read_outs():
    sigma, g, c = _spd(0, condition=1e3), _randn(1, D), _randn(2, D, 3)
    v = aligned_direction(g, c, sigma, radius=2.0)
    assert float((c.T @ v).abs().max()) < 1e-11
    assert float(v @ torch.linalg.solve(sigma, v)) == pytest.approx(4.0, rel=1e-10)
    null = torch.linalg.svd(c.T).Vh[3:].T
    for i in range(300):
        other = null @ _randn(100 + i, D - 3)
        other = 2.0 * other / (other @ torch.linalg.solve(sigma, other)).sqrt()
        assert float(g @ other) <= float(g @ v) * (1 + 1e-12)
    near = v + 1e-3 * null @ _randn(99, D - 3)
    near = 2.0 * near / (near @ torch.linalg.solve(sigma, near)).sqrt()
    assert float(g @ near) < float(g @ v)
    plain = aligned_direction(g, c)
    projected = null @ (null.T @ g)
    _close(plain, projected / projected.norm(), 1e-12)
    with pytest.raises(InputError, match="within the protected ones"):
        aligned_direction(c[:, 0] - c[:, 1], c, sigma)


# ---------------------------------------------------------------- 3.4 addition


def test_translation_is_the_least_disturbing_map_with_a_given_mean():
    sigma, mu, *_ = _case()
    plus, minus = _randn(5, D), _randn(6, D)
    edit, delta = add(plus, minus), plus - minus
    a, b = edit.dense()
    assert torch.equal(a, torch.eye(D, dtype=DOUBLE))
    assert _cost(a, b, sigma, mu) == pytest.approx(float(delta @ delta), rel=1e-12)
    for i in range(20):  # Jensen: any other map that moves the mean by δ costs more
        other = a + _randn(10 + i, D, D) * 0.1
        assert _cost(other, mu + delta - other @ mu, sigma, mu) > float(delta @ delta)


# ---------------------------------------------------------------- 3.8 composition


def test_two_affine_edits_in_a_row_are_one_of_the_added_rank_and_order_matters():
    r = _randn
    one, two = AffineEdit(r(0, D, 2), r(1, D, 2), r(2, 2)), AffineEdit(r(3, D, 3), r(4, D, 3), r(5, 3))
    u = torch.cat([one.U, two.U], 1)
    v = torch.cat([one.V, two.V + one.V @ one.U.T @ two.V], 1)
    c = torch.cat([one.c, two.c + two.V.T @ one.U @ one.c])
    x = _randn(6, 8, D)
    _close(AffineEdit(u, v, c)(x), two(one(x)), 1e-12)
    assert float((one(two(x)) - two(one(x))).abs().max()) > 1e-2


# ---------------------------------------------------------------- degenerate inputs


def test_a_source_vector_of_length_zero_is_left_as_it_is_with_a_warning():
    _, mu, s, t, q = _case()
    x = _randn(9, 4, D)
    with pytest.warns(UserWarning, match="length 0"):
        edit = midsteer(torch.zeros(D, 1, dtype=DOUBLE), t[:, :1], q, mu)
    _close(edit(x), x, 0.0)
    s[:, 1] = 0
    with pytest.warns(UserWarning, match=r"concept \[1\]"):
        a = midsteer(s, t, q, mu).dense()[0]
    _close(a @ s[:, [0, 2]], t[:, [0, 2]], 1e-11)


def test_nan_is_refused_and_nearly_equal_concepts_are_warned_about():
    _, mu, s, t, q = _case()
    bad = s.clone()
    bad[0, 0] = math.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        midsteer(bad, t, q, mu)
    near = torch.cat([s[:, :1], s[:, :1] + 1e-4 * s[:, 1:2]], 1)
    with pytest.warns(UserWarning, match="almost linearly dependent"):
        constrained(near, t[:, :2], q, mu)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_concept_in_other_units_is_not_dropped(scale: float):
    _, mu, s, _, q = _case()
    units = torch.tensor([1.0, scale, 1.0], dtype=DOUBLE)
    expected = erase(s, q, mu).dense()[0]
    _close(erase(s * units, q, mu).dense()[0], expected, 1e-9)


def test_scipy_agrees_on_the_least_squares_problem_behind_it():
    """min |(A − I) Σ^½|² with A S = T, solved as an equality-constrained least-squares problem by scipy."""
    sigma, mu, s, t, q = _case()
    root = scipy.linalg.sqrtm(sigma.numpy()).real
    kkt = np.block([[2 * root @ root, s.numpy()], [s.numpy().T, np.zeros((K, K))]])
    right = np.vstack([np.zeros((D, D)), (t - s).numpy().T])
    move = np.linalg.solve(kkt, right)[:D].T
    _close(midsteer(s, t, q, mu).dense()[0] - torch.eye(D, dtype=DOUBLE), torch.from_numpy(move), 1e-9)
