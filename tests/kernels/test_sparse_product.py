"""The sparse backward pass of the encoders: sums of a fixed order, wide enough for many entries of one feature."""

from typing import Any

import pytest
import torch
from midlens_kernels import threshold_encode, threshold_select, topk_encode
from midlens_kernels._bags import bag_sums, reverse_index
from midlens_kernels._sparse_product import entries
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.watch import tensors

N, F, D = 40, 30, 8
ENCODERS = {
    "topk_encode": lambda x, W, b: topk_encode(x, W.T, b, 5)[0],
    "threshold_select": lambda x, W, b: threshold_select(x, W.T, b, 5 * N)[0],
    "threshold_encode": lambda x, W, b: threshold_encode(x, W.T, b, torch.zeros_like(b))[0],
}


class Scattered(AssertionError):
    """An operation that adds numbers to places that may repeat: by atomics on a GPU, in no fixed order."""


class NeverScatters(TorchDispatchMode):
    """Refuses such operations; counting, in integers, is the same in any order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(("index_add", "scatter_add", "scatter_reduce", "put_", "index_put")):
            if any(t.is_floating_point() for t in tensors(args)):
                raise Scattered(str(func))
        return func(*args, **(kwargs or {}))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=g).to(dtype).requires_grad_() for shape in ((N, D), (F, D), (F,)))


@pytest.mark.parametrize("op", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_scattered_and_every_run_gives_the_same_bits(op, dtype):
    leaves = inputs(dtype)
    found = []
    for _ in range(3):
        values = ENCODERS[op](*leaves)
        weights = torch.linspace(-1, 1, values.numel()).view_as(values).to(dtype)
        with NeverScatters():
            found.append(torch.autograd.grad((values * weights).sum(), leaves))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_a_scattered_gradient_would_be_found():
    x = torch.ones(4, requires_grad=True)
    y = x.index_select(0, torch.tensor([0, 0, 3]))
    with NeverScatters(), pytest.raises(Scattered, match="index_add"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_of_bags(dtype):
    """Repeated, absent and no features at all; the sum is rounded once."""
    g = torch.Generator().manual_seed(1)
    for m in (0, 1, 700):
        idx = torch.randint(0, 9, (m,), generator=g)
        values = torch.randn(m, generator=g).to(dtype)
        order, edges = reverse_index(idx, 12)
        found = bag_sums(values[order], edges)
        exact = torch.zeros(12, dtype=torch.float64).index_add_(0, idx, values.double())
        sizes = torch.zeros(12, dtype=torch.float64).index_add_(0, idx, values.double().abs())
        unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        bound = exact.abs() * torch.finfo(dtype).eps / 2 * (1 + 1e-3) + max(1, m) * unit * sizes
        assert found.dtype == dtype and ((found.double() - exact).abs() <= bound).all()
        assert (found[9:] == 0).all()


def bias_gradient(g: Tensor, idx: Tensor, f: int) -> Tensor:
    """That of `entries`, one to a token, for dL/dpre = g."""
    x, W = torch.zeros(len(g), 2, dtype=g.dtype), torch.zeros(2, f, dtype=g.dtype)
    bias = torch.zeros(f, dtype=g.dtype, requires_grad=True)
    pre = entries(x, W, bias, torch.zeros(len(g), dtype=g.dtype), idx, torch.arange(len(g) + 1))
    return torch.autograd.grad(pre, bias, g)[0]


def test_a_feature_of_many_tokens_in_16_bits():
    """Adding ones to a bfloat16 number ends at 256; the sum of 4,000 of them is right to one rounding."""
    n = 4000
    idx = torch.tensor([2] * n + [0] * 3)
    g = torch.ones(n + 3, dtype=torch.bfloat16)
    assert torch.zeros(4, dtype=torch.bfloat16).index_add_(0, idx, g)[2] == 256
    assert bias_gradient(g, idx, 4).tolist() == [3, 0, torch.tensor(float(n)).bfloat16().item(), 0]
    g = torch.rand(n + 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = g[:n].double().sum()
    assert abs(bias_gradient(g, idx, 4)[2].double() - exact) <= 2**-9 * exact * (1 + 1e-3)
