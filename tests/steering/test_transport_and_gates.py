"""Transport of one population onto another, gates and the free-form optimum, dictionary features."""

import math

import pytest
import torch
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments, Whitener, whitener
from interp.steering.closed_forms import erase, midsteer
from interp.steering.edits import AffineEdit
from interp.steering.gating import Probe, clipped, free_form, gated, platt, probe_of
from interp.steering.sae_features import add_features, clamp_features
from interp.steering.transport import gaussian_ot, mean_match, per_neuron, transport_matrix

DOUBLE = torch.float64


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _population(seed: int, n: int, d: int, *, mean: float = 0.0) -> Tensor:
    """Correlated rows with a spectrum that falls off."""
    return mean + _randn(seed, n, d) @ (
        torch.linalg.qr(_randn(seed + 1, d, d)).Q * torch.logspace(0.5, -0.5, d).double()
    )


def _close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max().clamp(min=1))


# ---------------------------------------------------------------- transport


def test_gaussian_transport_pushes_one_covariance_onto_the_other_and_is_symmetric():
    x, y = _population(0, 300, 8), _population(10, 200, 8, mean=2.0)
    source, target = Moments.from_rows(x), Moments.from_rows(y)
    edit = gaussian_ot(source, target, m=8)
    a, b = edit.dense()
    _close(a, a.T, 1e-12)
    assert float(torch.linalg.eigvalsh(a).min()) > 0
    _close(a @ source.covariance() @ a, target.covariance(), 1e-12)
    _close(a @ source.mean + b, target.mean, 1e-12)
    moved = Moments.from_rows(edit(x))
    _close(moved.covariance(), target.covariance(), 1e-12)
    # the cost is the Bures-Wasserstein distance, with the square root taken by another algorithm
    from scipy.linalg import sqrtm

    root = sqrtm(source.covariance().numpy())
    cross = torch.from_numpy(sqrtm(root @ target.covariance().numpy() @ root).real)
    distance = (source.covariance() + target.covariance() - 2 * cross).trace()
    distance = distance + (source.mean - target.mean).square().sum()
    cost = (edit(x) - x).square().sum(1).mean()
    centred = (a - torch.eye(8, dtype=DOUBLE)) @ source.covariance() @ (a - torch.eye(8, dtype=DOUBLE)).T
    exact = centred.trace() + (source.mean - target.mean).square().sum()
    assert float(exact) == pytest.approx(float(distance), rel=1e-9)
    assert float(cost) == pytest.approx(float(distance), rel=0.01)  # n against n − 1
    # the converse: another map with the same push-forward costs more
    turn = torch.linalg.qr(_randn(3, 8, 8)).Q
    half, back = (torch.from_numpy(root.real), torch.from_numpy(sqrtm(target.covariance().numpy()).real))
    other = back @ turn @ torch.linalg.inv(half)
    _close(other @ source.covariance() @ other.T, target.covariance(), 1e-10)
    away = other - torch.eye(8, dtype=DOUBLE)
    assert float((away @ source.covariance() @ away.T).trace()) > float(centred.trace())


def test_equal_covariances_make_transport_a_translation_and_half_strength_lies_between():
    x = _population(0, 200, 6)
    shift = _randn(5, 6)
    source, target = Moments.from_rows(x), Moments.from_rows(x + shift)
    a, b = gaussian_ot(source, target, m=6).dense()
    _close(a, torch.eye(6, dtype=DOUBLE), 1e-10)
    _close(b, shift, 1e-10)
    a, b = mean_match(source.mean, target.mean).dense()
    assert torch.equal(a, torch.eye(6, dtype=DOUBLE))
    _close(b, shift, 1e-12)
    other = Moments.from_rows(_population(10, 200, 6))
    whole, half = gaussian_ot(source, other, m=6), gaussian_ot(source, other, m=6).at(0.5)
    _close(half(x), 0.5 * x + 0.5 * whole(x), 1e-12)


def test_transport_in_a_subspace_leaves_the_rest_to_the_translation():
    source, target = Moments.from_rows(_population(0, 60, 20)), Moments.from_rows(_population(10, 80, 20, mean=1.0))
    edit = gaussian_ot(source, target)
    assert edit.rank == 6  # a tenth of 60 prompts
    pooled = (60 * source.covariance() + 80 * target.covariance()) / 140
    basis = torch.linalg.eigh(pooled).eigenvectors[:, -6:]
    a, _ = edit.dense()
    _close(basis.T @ a @ source.covariance() @ a.T @ basis, basis.T @ target.covariance() @ basis, 1e-10)
    rest = torch.eye(20, dtype=DOUBLE) - basis @ basis.T
    _close((a - torch.eye(20, dtype=DOUBLE)) @ rest, torch.zeros(20, 20, dtype=DOUBLE), 1e-10)
    _close(edit(source.mean), target.mean, 1e-12)


def test_compression_in_the_metric_of_the_data_beats_the_maps_own_eigenvectors():
    d, k = 30, 5
    source, target = Moments.from_rows(_population(0, 500, d)), Moments.from_rows(_population(10, 500, d))
    sigma = source.covariance()
    whole = gaussian_ot(source, target, m=d).dense()[0] - torch.eye(d, dtype=DOUBLE)

    def missed(move: Tensor) -> float:
        return float(((whole - move) @ sigma @ (whole - move).T).trace())

    ours = gaussian_ot(source, target, m=d, rank=k).dense()[0] - torch.eye(d, dtype=DOUBLE)
    assert int(torch.linalg.matrix_rank(ours, rtol=1e-8)) == k
    values, vectors = torch.linalg.eigh((whole + whole.T) / 2)
    top = values.abs().argsort(descending=True)[:k]
    plain = (vectors[:, top] * values[top]) @ vectors[:, top].T
    assert missed(ours) < 0.9 * missed(plain)
    root = torch.linalg.cholesky(sigma)  # the optimum of rank k (Eckart and Young), by singular values alone
    floor = float(torch.linalg.svdvals(whole @ root)[k:].square().sum())
    assert missed(ours) == pytest.approx(floor, rel=1e-8)


def test_what_transport_refuses_and_warns_about():
    few, many = Moments.from_rows(_population(0, 5, 8)), Moments.from_rows(_population(1, 50, 8))
    with pytest.warns(UserWarning, match="one direction only"):
        assert gaussian_ot(few, many).rank == 1
    with pytest.raises(InputError, match="expected 1 to 4 directions"):
        gaussian_ot(few, many, m=8)
    with pytest.raises(InputError, match="two prompts or more"):
        gaussian_ot(Moments.from_rows(_population(0, 1, 8)), many)
    with pytest.raises(InputError, match="rank=9"):
        gaussian_ot(many, many, m=4, rank=9)
    with pytest.raises(InputError, match="singular"):
        transport_matrix(torch.diag(torch.tensor([1.0, 0.0], dtype=DOUBLE)), torch.eye(2, dtype=DOUBLE))


def test_per_neuron_transport_recovers_affine_maps_and_is_least_squares_on_sorted_samples():
    x = _population(0, 50, 4)
    scale, shift = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=DOUBLE), _randn(3, 4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    edit = per_neuron(x, (x * scale + shift)[order])
    _close(edit.scale, scale, 1e-12)
    _close(edit.shift, shift, 1e-12)
    y = _population(9, 50, 4).exp()
    edit = per_neuron(x, y)
    a, b = x.sort(0).values, y.sort(0).values
    for i in range(4):
        design = torch.stack([a[:, i], torch.ones(50, dtype=DOUBLE)], 1)
        expected = torch.linalg.lstsq(design, b[:, i]).solution
        _close(torch.stack([edit.scale[i], edit.shift[i]]), expected, 1e-10)
    unequal = per_neuron(_randn(0, 4000, 1), 3 * _randn(1, 2500, 1) + 2)
    assert float(unequal.scale) == pytest.approx(3, rel=0.05) and float(unequal.shift) == pytest.approx(2, abs=0.15)
    constant = per_neuron(torch.cat([x[:, :1], torch.ones(50, 1, dtype=DOUBLE)], 1), x[:, :2])
    assert float(constant.scale[1]) == 1.0 and torch.isfinite(constant.shift).all()
    with pytest.raises(InputError, match="two prompts or more"):
        per_neuron(x[:1], x)


# ---------------------------------------------------------------- the free form


def _mixture(n: int, d: int = 4, *, share: float = 0.1, separation: float = 4.0) -> tuple[Tensor, Tensor, Probe]:
    """Two Gaussians, their labels, and the exact posterior."""
    z = (torch.rand(n, generator=torch.Generator().manual_seed(7), dtype=DOUBLE) < share).double()
    x = _randn(8, n, d)
    x[:, 0] += separation * z
    w = torch.zeros(d, 1, dtype=DOUBLE)
    w[0] = separation
    return x, z, Probe(w, torch.tensor([math.log(share / (1 - share)) - separation**2 / 2], dtype=DOUBLE))


def test_the_free_form_meets_the_constraint_and_disturbs_less_most_of_all_without_the_concept():
    n = 200_000
    x, z, posterior = _mixture(n)
    moments = Moments.from_rows(x, z[:, None])
    s = moments.cross_covariance()
    t = torch.zeros_like(s)
    t[1] = s[0]  # to another direction
    free = free_form(t - s, posterior, x)
    affine = midsteer(s, t, whitener(moments, "full"), moments.mean)
    after = {
        name: Moments.from_rows(f(x), z[:, None]).cross_covariance() for name, f in (("free", free), ("affine", affine))
    }
    _close(after["affine"], t, 1e-10)
    assert float((after["free"] - t).abs().max()) < 0.01  # sampling error of the labels given η
    cost = {name: (f(x) - x).square().sum(1) for name, f in (("free", free), ("affine", affine))}
    negative = z == 0
    assert float(cost["free"].mean()) < 0.75 * float(cost["affine"].mean())  # 7.4 against 11.4 in expectation: 0.65
    assert float(cost["free"][negative].mean()) < 0.35 * float(cost["affine"][negative].mean())  # 1.1 against 5.4: 0.21
    eta = posterior(x)[:, 0]
    exact = float((t - s).square().sum() / (eta - eta.mean()).square().mean())
    assert float(cost["free"].mean()) == pytest.approx(exact, rel=1e-9)


def test_pythagoras_any_other_feasible_change_costs_its_own_square_more():
    x, _, posterior = _mixture(20_000)
    r = _randn(1, 4, 1)
    base = free_form(r, posterior, x)
    change = base(x) - x
    eta = posterior(x)
    centred = eta - eta.mean(0)
    for i in range(5):
        h = torch.tanh(x @ _randn(20 + i, 4, 4)) * x.roll(1, 1)  # any function of x, made orthogonal to η − E η
        h = h - centred @ (centred.T @ h) / centred.square().sum()
        m = _randn(40 + i, 4, 2)
        m = m @ m.T
        square = [float(((v @ m) * v).sum()) for v in (change, h, change + h)]
        assert square[2] == pytest.approx(square[0] + square[1], rel=1e-9)


def test_an_uncalibrated_probe_misses_the_target_in_the_free_form():
    x, z, posterior = _mixture(100_000)
    s = Moments.from_rows(x, z[:, None]).cross_covariance()
    wrong = free_form(-s, Probe(posterior.w * 0.3, posterior.b * 0.3), x)
    right = free_form(-s, posterior, x)
    left = [float(Moments.from_rows(f(x), z[:, None]).cross_covariance().norm()) for f in (right, wrong)]
    assert left[0] < 0.01 and left[1] > 5 * left[0]


def test_a_centre_at_the_negatives_leaves_them_in_place():
    x, z, posterior = _mixture(50_000)
    r = _randn(1, 4, 1)
    negative = x[z == 0]
    edit = free_form(r, posterior, x, center=posterior(negative).mean(0))
    assert float((edit(negative) - negative).mean(0).abs().max()) < 1e-10
    with pytest.raises(InputError, match="says the same of all rows"):
        free_form(r, Probe(posterior.w * 0, posterior.b), x)


# ---------------------------------------------------------------- probes and gates


def test_the_logistic_regression_of_one_score_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    x, z, _ = _mixture(3000, share=0.4, separation=1.5)
    scale, offset = platt(x[:, 0] * 100, z)
    n1, n0 = int(z.sum()), int((1 - z).sum())
    yes, no = (n1 + 1) / (n1 + 2), 1 / (n0 + 2)
    soft = torch.where(z > 0.5, yes, no)
    rows = torch.cat([x[:, :1], x[:, :1]]).numpy()
    labels, weights = [1] * 3000 + [0] * 3000, torch.cat([soft, 1 - soft]).numpy()
    theirs = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(rows, labels, sample_weight=weights)
    assert scale * 100 == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-4)
    assert offset == pytest.approx(float(theirs.intercept_[0]), rel=1e-4)


def test_a_probe_of_few_prompts_in_many_dimensions_is_not_too_sure_of_new_ones():
    d, n = 100, 40
    shift = torch.zeros(d, dtype=DOUBLE)
    shift[0] = 2.0
    q = Whitener("none", torch.ones(d, dtype=DOUBLE))
    new = torch.cat([_randn(3, 4000, d) + shift, _randn(4, 4000, d)])
    labels = torch.cat([torch.ones(4000), torch.zeros(4000)]).double()
    a, b = _randn(1, n, d) + shift, _randn(2, n, d)
    p = probe_of(a, b, q)(new)[:, 0]
    difference = (a.mean(0) - b.mean(0))[:, None]  # the plain discriminant, as if the means were exact
    raw = ((new - (a.mean(0) + b.mean(0)) / 2) @ difference)[:, 0].sigmoid()
    loss = [float(torch.nn.functional.binary_cross_entropy(x, labels)) for x in (p, raw)]
    assert loss[0] < loss[1] - 0.05
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (p >= low) & (p <= high)
        assert abs(float(p[inside].mean() - labels[inside].mean())) < 0.12
    with pytest.raises(InputError, match="four prompts or more"):
        probe_of(a[:3], b, q)


def test_a_gate_opens_where_the_concept_is_and_clipping_acts_on_one_side():
    x, z, posterior = _mixture(2000)
    edit = AffineEdit(_randn(0, 4, 1), _randn(1, 4, 1), _randn(2, 1))
    hard = gated(edit, posterior)(x)
    opened = posterior(x)[:, 0] > 0.5
    assert torch.equal(hard[~opened], x[~opened]) and not torch.equal(hard[opened], x[opened])
    _close(hard[opened], edit(x)[opened], 1e-12)
    assert float((opened == (z > 0.5)).double().mean()) > 0.95
    one_sided, read = clipped(edit)(x), edit.readout(x)[:, 0]
    _close(one_sided[read > 0], edit(x)[read > 0], 1e-12)
    assert torch.equal(one_sided[read <= 0], x[read <= 0])


# ---------------------------------------------------------------- dictionary features


def test_features_are_added_at_unit_length_unless_asked_otherwise():
    decoder, x = _randn(0, 6, 5) * 7, _randn(1, 3, 5)
    expected = x + 2 * decoder[4] / decoder[4].norm() - 0.5 * decoder[1] / decoder[1].norm()
    _close(add_features(decoder, {4: 2.0, 1: -0.5})(x), expected, 1e-12)
    _close(add_features(decoder, {4: 2.0, 1: -0.5}, unit=False)(x), x + 2 * decoder[4] - 0.5 * decoder[1], 1e-12)
    with pytest.raises(InputError, match="expected one or more numbers from 0 to 5"):
        add_features(decoder, {6: 1.0})
    with pytest.raises(InputError, match="expected one or more"):
        add_features(decoder, {})
    decoder[3] = 0
    with pytest.raises(InputError, match=r"features \[3\] have decoder rows of length 0"):
        clamp_features(decoder, {3: 1.0})


@pytest.mark.parametrize("unit", [True, False])
def test_clamping_exchanges_a_features_own_activation_for_the_value(unit: bool):
    decoder, encoder, bias, x = _randn(0, 6, 5) * 3, _randn(1, 5, 6), _randn(2, 6), _randn(3, 40, 5)
    values = {4: 2.5, 1: 0.0}
    edit = clamp_features(decoder, values, encoder=encoder, bias=bias, unit=unit)
    codes = torch.relu(x @ encoder + bias)
    assert (codes[:, [4, 1]] == 0).any() and (codes[:, [4, 1]] > 0).any()
    wanted = codes.clone()
    for i, value in values.items():
        wanted[:, i] = value / float(decoder[i].norm()) if unit else value
    _close(edit(x), x + (wanted - codes) @ decoder, 1e-11)


def test_clamping_without_an_encoder_sets_the_coordinates_along_the_rows():
    decoder, x = _randn(0, 6, 5), _randn(3, 10, 5)
    edit = clamp_features(decoder, {2: 1.5, 5: -1.0}, unit=False)
    found = torch.linalg.lstsq(decoder[[2, 5]].T, edit(x).T).solution
    _close(found, torch.tensor([[1.5], [-1.0]], dtype=DOUBLE).expand(2, 10), 1e-10)
    with pytest.raises(InputError, match="together, or neither"):
        clamp_features(decoder, {2: 1.0}, encoder=_randn(1, 5, 6))


def test_erasing_a_feature_direction_is_clamping_it_to_zero():
    decoder, x = _randn(0, 4, 5), _randn(3, 10, 5)
    plain = Whitener("none", torch.ones(5, dtype=DOUBLE))
    _close(clamp_features(decoder, {2: 0.0})(x), erase(decoder[2:3].T, plain, torch.zeros(5, dtype=DOUBLE))(x), 1e-12)
