"""What is known of a fit before it runs: noise of estimation, the test of a signal, leak, disturbance, calibration."""

import math

import pytest
import torch
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments, Whitener, whitener
from interp.steering.closed_forms import constrained, flip, identity_metric, midsteer, translation
from interp.steering.diagnostics import (
    Rows,
    beta_for,
    calibrated,
    disturbance,
    effective_dimension,
    leak,
    neutral_noise,
    read_out,
    signal,
)
from interp.steering.edits import AffineEdit, DiagonalEdit, GatedEdit

DOUBLE = torch.float64


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _plain(d: int) -> Whitener:
    return identity_metric(torch.zeros(d))


def _source(d: int, n: int, alpha: float, seed: int) -> tuple[Tensor, Tensor]:
    """A concept of squared length α in white noise, and n prompts with it."""
    s = torch.zeros(d, dtype=DOUBLE)
    s[0] = math.sqrt(alpha)
    return s, s + _randn(seed, n, d)


def test_new_prompts_read_alpha_over_alpha_plus_d_over_n_and_calibration_repairs_it():
    d, alpha, q, zero = 256, 6.0, _plain(256), torch.zeros(256, dtype=DOUBLE)
    for n in (40, 100, 500):
        plain, repaired = [], []
        for seed in range(40):
            s, x = _source(d, n, alpha, seed)
            mean, t = x.mean(0)[:, None], torch.zeros(d, 1, dtype=DOUBLE)
            noise = torch.tensor([[Rows.of(x).noise(q)]], dtype=DOUBLE)
            new = Rows.of(s[None])  # the mean of infinitely many new source prompts
            plain.append(float(read_out(midsteer(mean, t, q, zero), new)))
            repaired.append(float(read_out(midsteer(mean, t, q, zero, noise=noise), new)))
        assert sum(plain) / 40 == pytest.approx(alpha / (alpha + d / n), rel=0.04)
        assert sum(repaired) / 40 == pytest.approx(1.0, abs=0.06)


def test_a_flip_about_the_midpoint_is_repaired_by_the_noise_of_both_means():
    d, n, q = 128, 60, _plain(128)
    plain, repaired = [], []
    for seed in range(60):
        s, x = _source(d, n, 8.0, seed)
        y = _randn(1000 + seed, n, d)
        noise = torch.tensor([[Rows.of(x).noise(q) + Rows.of(y).noise(q)]], dtype=DOUBLE)
        for into, options in ((plain, {}), (repaired, {"noise": noise})):
            edit = flip(x.mean(0), y.mean(0), q, **options)
            into.append(float(read_out(edit, Rows.of(s[None])) - read_out(edit, Rows.of(0 * s[None]))))
    assert sum(plain) / 60 == pytest.approx(8 / (8 + 2 * d / n), rel=0.04)
    assert sum(repaired) / 60 == pytest.approx(1.0, abs=0.05)


def test_the_noise_taken_off_is_exactly_the_average_over_leave_one_out_splits():
    x, q = _randn(0, 9, 5) + 1, whitener(Moments.from_rows(_randn(1, 40, 5)), "shrink")
    held_out = [float(q.gram((x.sum(0) - one)[:, None] / 8, one[:, None])) for one in x]
    alpha = float(q.gram(x.mean(0)[:, None]))
    assert alpha - Rows.of(x).noise(q) == pytest.approx(sum(held_out) / 9, rel=1e-12)


@pytest.mark.parametrize("how", ["shrink", "full", "none"])
def test_alpha_is_biased_by_the_noise_and_debiased_by_taking_it_off(how: str):
    d, spread = 30, torch.logspace(1, -1, 30).double()
    q = whitener(Moments.from_rows(_randn(0, 2000, d) * spread), how)  # pyright: ignore[reportArgumentType]
    for length in (0.0, 1.0):
        s = length * spread * _randn(1, d) / math.sqrt(d)
        truth = float(q.gram(s[:, None]))
        raw, debiased = [], []
        for seed in range(200):
            a = s + _randn(10 + seed, 15, d) * spread
            b = _randn(1000 + seed, 25, d) * spread * 2  # another covariance than the neutral one
            found = signal(Rows.of(a), Rows.of(b), q, draws=1)
            raw.append(found.alpha)
            debiased.append(found.debiased)
        debiased, raw = torch.tensor(debiased), torch.tensor(raw)
        error = 4 * float(debiased.std()) / math.sqrt(200)
        assert abs(float(debiased.mean()) - truth) < error
        assert float(raw.mean()) - truth > error  # the converse


def test_with_the_inverse_covariance_the_noise_is_d_over_n():
    x = _randn(0, 400, 20) @ _randn(1, 20, 20)
    moments = Moments.from_rows(x)
    q = whitener(moments, "full")
    assert Rows.of(x).noise(q) == pytest.approx(20 / 400, rel=1e-10)
    assert effective_dimension(q, moments) == pytest.approx(20, rel=1e-10)
    assert neutral_noise(q, moments) == pytest.approx(20 / 400, rel=1e-10)
    few = Moments.from_rows(x[:15])
    assert effective_dimension(whitener(few, "shrink"), few) < 14
    assert math.isnan(Rows.of(x[:1]).noise(q))


def test_rows_of_several_positions_weigh_by_them():
    x, weight = _randn(0, 4, 3), torch.tensor([1.0, 5.0, 2.0, 2.0], dtype=DOUBLE)
    tokens = x.repeat_interleave(weight.long(), 0)
    torch.testing.assert_close(Rows(x, weight).mean, tokens.mean(0), rtol=1e-12, atol=1e-12)
    equal = Rows(x, torch.full((4,), 3.0, dtype=DOUBLE))
    assert equal.noise(_plain(3)) == pytest.approx(Rows.of(x).noise(_plain(3)), rel=1e-12)


def test_the_permutation_test_is_the_one_of_all_relabellings():
    """All 70 splits of 4 + 4 prompts by hand, against many random draws."""
    from itertools import combinations

    a, b = _randn(0, 4, 3) + 0.6, _randn(1, 4, 3)
    q, pooled = whitener(Moments.from_rows(_randn(2, 30, 3)), "shrink"), torch.cat([a, b])
    values = {}
    for chosen in combinations(range(8), 4):
        rest = [i for i in range(8) if i not in chosen]
        values[chosen] = float(q.gram((pooled[list(chosen)].mean(0) - pooled[rest].mean(0))[:, None]))
    exact = sum(v >= values[(0, 1, 2, 3)] - 1e-9 for v in values.values()) / 70
    found = signal(Rows.of(a), Rows.of(b), q, draws=9999)
    assert found.alpha == pytest.approx(values[(0, 1, 2, 3)], rel=1e-12)
    assert found.p == pytest.approx(exact, abs=0.015)


def test_the_test_rejects_as_often_as_it_says_and_finds_what_is_there():
    q, p = whitener(Moments.from_rows(_randn(0, 60, 40)), "shrink"), []
    for seed in range(300):
        p.append(signal(Rows.of(_randn(10 + seed, 8, 40)), Rows.of(_randn(900 + seed, 12, 40)), q, draws=99).p)
    rejected = sum(x <= 0.1 for x in p)
    assert 14 <= rejected <= 48  # 30 expected, ± 3.5 standard deviations
    found = signal(Rows.of(_randn(1, 20, 40) + 1), Rows.of(_randn(2, 20, 40)), q)
    assert found.p == 1 / 1000 and found.significant(0.01) and found.debiased > 0
    same = Rows.of(_randn(1, 20, 40))
    null = signal(same, same, q)
    assert null.alpha < 1e-20 and null.p == 1.0 and not null.significant(0.01)
    assert signal(same, Rows.of(same.x + 0.3), q, seed=3) == signal(same, Rows.of(same.x + 0.3), q, seed=3)
    with pytest.raises(InputError, match="1 and 20 prompts"):
        signal(Rows.of(_randn(1, 1, 40)), same, q)


def test_the_leak_is_how_far_target_prompts_move():
    moments = Moments.from_rows(_randn(0, 100, 6) @ _randn(1, 6, 6))
    q, s, t = whitener(moments, "shrink"), _randn(2, 6, 1), _randn(3, 6, 1)
    moved = midsteer(s, t, q, moments.mean)(moments.mean + t[:, 0]) - moments.mean - t[:, 0]
    torch.testing.assert_close(moved, leak(s, t, q) * (t - s)[:, 0], rtol=1e-10, atol=1e-12)


def test_disturbance_is_the_mean_square_over_the_data_and_beta_meets_a_budget():
    x = _randn(0, 500, 6) @ _randn(1, 6, 6) + 2
    moments = Moments.from_rows(x)
    s, t = _randn(2, 6, 2), _randn(3, 6, 2)
    affine = constrained(s, t, whitener(moments, "shrink"), moments.mean, delta=_randn(4, 6))
    for edit in (affine, DiagonalEdit(_randn(5, 6), _randn(6, 6)), translation(_randn(7, 6))):
        for beta in (1.0, 0.3):
            part = edit.at(beta)
            change = part(x) - x
            scatter = (change - change.mean(0)).square().sum() / 499 + change.mean(0).square().sum()
            variance = float(moments.covariance().trace())
            assert disturbance(part, moments) == pytest.approx(float(scatter) / variance, rel=1e-10)
        beta = beta_for(edit, moments, 0.02)
        assert disturbance(edit.at(beta), moments) == pytest.approx(0.02, rel=1e-10)
    assert beta_for(translation(torch.zeros(6, dtype=DOUBLE)), moments, 0.1) == 0.0
    with pytest.raises(InputError, match="eta=-1"):
        beta_for(affine, moments, -1)
    with pytest.raises(InputError, match="no function of moments"):
        disturbance(GatedEdit(affine, s, torch.zeros(2, dtype=DOUBLE)), moments)


def test_calibration_on_held_out_prompts_makes_them_read_what_is_expected():
    moments = Moments.from_rows(_randn(0, 100, 6))
    s, held = _randn(2, 6, 1), Rows.of(_randn(3, 20, 6) + 3 * _randn(2, 1, 6))
    edit = midsteer(s, 0 * s, whitener(moments, "shrink"), moments.mean, delta=_randn(4, 6))
    new = calibrated(edit, held, 0.5)
    assert float(read_out(edit, held)) > 1 and float(read_out(new, held)) == pytest.approx(0.5, rel=1e-12)
    torch.testing.assert_close(new(moments.mean), edit(moments.mean), rtol=1e-10, atol=1e-12)
    with pytest.raises(InputError, match="does not carry over"):
        calibrated(edit, Rows.of(moments.mean - s.T))
    with pytest.raises(InputError, match="one read-out, got 2"):
        calibrated(AffineEdit(_randn(0, 6, 2), _randn(1, 6, 2), _randn(2, 2)), held)


def test_a_concept_smaller_than_its_noise_has_no_calibrated_read_out():
    s = _randn(0, 6, 1)
    noise = 1.01 * s.T @ s
    with pytest.raises(InputError, match="not larger than what estimation"):
        midsteer(s, 2 * s, _plain(6), torch.zeros(6, dtype=DOUBLE), noise=noise)
