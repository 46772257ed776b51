"""The straight-through estimators: their formulas at chosen points, and what they estimate."""

import pytest
import torch
from torch import Tensor

from saes.jump import jump, step
from tests.plain_sae import Setting
from tests.plain_sae import jump as plain_jump

T, E = 0.75, 0.5  # threshold and bandwidth: the window is (0.5, 1.0), exactly representable
#         far below, border, inside below, at the threshold, inside above, border, far above, negative
POINTS = [0.25, 0.5, 0.625, 0.75, 0.875, 1.0, 3.0, -0.75]
ABOVE = [0, 0, 0, 0, 1, 1, 1, 0]  # strictly
NEAR = [0, 0, 1, 1, 1, 0, 0, 0]  # strictly within half a bandwidth


def slopes(function, through: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values and pseudo-derivatives by z and by the threshold, point by point."""
    z = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    t = torch.full_like(z, T).requires_grad_()
    made = function(z, t, bandwidth=E, through=through)
    return made.detach(), *torch.autograd.grad(made.sum(), [z, t])


@pytest.mark.parametrize("through", [False, True])
def test_values_and_derivatives_at_chosen_points(through):
    above, near, z = (torch.tensor(row, dtype=torch.float64) for row in (ABOVE, NEAR, POINTS))
    to_z = near / E * float(through)
    for found, expected in zip(slopes(step, through), (above, to_z, -near / E), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for found, expected in zip(slopes(jump, through), (z * above, above + T * to_z, -T * near / E), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bandwidth", [0.1, 0.4])
@pytest.mark.parametrize("threshold", [0.3, 1.2])
def test_on_evenly_spread_values_they_estimate_the_true_derivatives(threshold, bandwidth):
    """Of means over z uniform on (0, 2): d mean H / dt = -1/2 and d mean z H / dt = -t/2, whatever the bandwidth."""
    z = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 100_000
    t = torch.tensor(threshold, dtype=torch.float64, requires_grad=True)
    for function, true in ((step, -0.5), (jump, -0.5 * threshold)):
        (found,) = torch.autograd.grad(function(z, t, bandwidth=bandwidth).mean(), t)
        assert found.item() == pytest.approx(true, rel=1e-3)
        moved = [function(z, t.detach() + h, bandwidth=bandwidth).mean().item() for h in (0.01, -0.01)]
        assert (moved[0] - moved[1]) / 0.02 == pytest.approx(true, rel=1e-3), "not the derivative of the mean"


@pytest.mark.parametrize("through", [False, True])
def test_thresholds_of_features_and_of_entries_get_the_same_gradient(through):
    """Dense: one threshold per column; sparse: the thresholds gathered for entries near or above theirs."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, 7, generator=g, dtype=torch.float64, requires_grad=True)
    t = torch.rand(7, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(30, 7, generator=g, dtype=torch.float64)
    at = (z > t - 0.15).nonzero(as_tuple=True)
    for function, which in ((jump, 0), (step, 1)):
        dense = (function(z, t, bandwidth=0.3, through=through) * weight).sum()
        sparse = (function(z[at], t[at[1]], bandwidth=0.3, through=through) * weight[at]).sum()
        plain = (plain_jump(z, t.expand_as(z), Setting(bandwidth=0.3, every=through))[which] * weight).sum()
        torch.testing.assert_close(dense, plain)
        torch.testing.assert_close(sparse, plain)
        expected = torch.autograd.grad(plain, [z, t], allow_unused=True)
        for made in (dense, sparse):
            for found, wanted in zip(torch.autograd.grad(made, [z, t]), expected, strict=True):
                torch.testing.assert_close(found, wanted)
        assert expected[1].abs().sum() > 0


def test_the_incoming_gradient_is_weighed_entry_by_entry():
    """The threshold's gradient is a sum over entries, each with its own incoming gradient."""
    z = torch.tensor([[0.8, 0.7], [0.9, 5.0]], dtype=torch.float64)
    t = torch.full((2,), T, dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([[1.0, 10.0], [100.0, 1000.0]], dtype=torch.float64)
    (found,) = torch.autograd.grad(jump(z, t, bandwidth=E), t, incoming)
    torch.testing.assert_close(found, torch.tensor([-101 * T / E, -10 * T / E], dtype=torch.float64))


def test_float32_in_float32_out():
    z = torch.randn(5, 3, requires_grad=True)
    t = torch.rand(3, requires_grad=True)
    made = jump(z, t, bandwidth=2.0, through=True)
    grads = torch.autograd.grad(made.sum(), [z, t])
    assert {x.dtype for x in (made, *grads)} == {torch.float32}
    assert [tuple(x.shape) for x in grads] == [(5, 3), (3,)]


@pytest.mark.parametrize("through", [False, True])
def test_the_reference_itself_has_these_derivatives(through):
    """The plain reference against the same table, so that both were not wrong together."""
    above, near, z = (torch.tensor(row, dtype=torch.float64) for row in (ABOVE, NEAR, POINTS))
    setting = Setting(bandwidth=E, every=through)
    to_z = near / E * float(through)
    expected = [(z * above, above + T * to_z, -T * near / E), (above, to_z, -near / E)]
    for which in (0, 1):
        x = z.clone().requires_grad_()
        t = torch.full_like(z, T).requires_grad_()
        made = plain_jump(x, t, setting)[which]
        found = torch.autograd.grad(made.sum(), [x, t])
        for a, b in zip((made.detach(), *found), expected[which], strict=True):
            torch.testing.assert_close(a, b)
