"""The tolerance of every kernel test: twice the error of the plain expression in the same precision, plus a floor."""

import torch
from torch import Tensor


def assert_as_precise(name: str, ours: Tensor, plain: Tensor, truth: Tensor) -> None:
    """`truth` is the plain expression in float64; the floor is 8 epsilon of the dtype, times max(1, |truth|)."""
    assert ours.dtype == plain.dtype, name
    floor = 8 * torch.finfo(plain.dtype).eps * max(1.0, truth.abs().max().item() if truth.numel() else 0.0)
    if truth.numel():
        error, allowed = ((t.double() - truth).abs().max().item() for t in (ours, plain))
        assert error <= 2 * allowed + floor, f"{name}: error {error:.3g}, plain {allowed:.3g}, floor {floor:.3g}"


def assert_rightly_chosen(places: Tensor, plain: Tensor, truth: Tensor) -> None:
    """`places` hold the largest of a flat `truth`, as far as scores with twice the error of `plain` can tell."""
    left = torch.ones_like(truth, dtype=torch.bool).index_fill(0, places, False)
    assert truth[places].min() >= truth[left].max() - 4 * (plain.double() - truth).abs().max()
