"""`threshold_encode` against dense autograd, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import _sparse_product, threshold_encode, use_backend
from midlens_kernels.threshold_encode import cpu
from midlens_kernels.threshold_encode.reference import threshold_encode_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise
from tests.kernels.test_threshold_select import dense, graded

SHAPES = [(1, 1, 1), (3, 8, 4), (0, 5, 3), (9, 129, 33), (65, 17, 3)]
FLOORS = {"all": -1e3, "most, negative ones too": -1.0, "few": 2.0, "none": 1e3}


def inputs(n: int, f: int, d: int, floor: float, *, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (f, d)))
    b, floors = torch.randn(f, generator=g).double(), torch.randn(f, generator=g).double() + floor
    loss = torch.randn(n, f, generator=g, dtype=torch.float64)
    x, W, b, floors, loss = (t.to(dtype) for t in (x, W, b, floors, loss))
    return x, W.T, b, floors, loss


def run(fn, x: Tensor, W: Tensor, b: Tensor, floor: Tensor, loss: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    return graded(dense(*fn(*leaves, floor), len(b)), leaves, loss)


def plainly(x: Tensor, W: Tensor, b: Tensor, floor: Tensor, loss: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    pre = leaves[0] @ leaves[1] + leaves[2]
    return graded(pre * (pre > floor), leaves, loss)


@pytest.mark.parametrize("floor", FLOORS.values(), ids=FLOORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n,f,d", SHAPES)
def test_matches_dense_autograd(n, f, d, dtype, floor):
    case = inputs(n, f, d, floor, dtype=dtype, seed=n)
    plain, truth = plainly(*case), plainly(*(t.double() for t in case))
    for fn in (threshold_encode, threshold_encode_reference):
        for name, a, p, t in zip(("code", "d x", "d W", "d b"), run(fn, *case), plain, truth, strict=True):
            assert_as_precise(name, a, p, t)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    f=st.integers(1, 20),
    floor=st.sampled_from([-9.0, 0.0, 1.5, 9.0]),
    chunk=st.sampled_from([1, 30, 2**24]),
    block=st.sampled_from([1, 50, 2**18]),
    scan=st.sampled_from([cpu._above_by_numpy, cpu._above_by_torch]),
)
def test_places_for_any_shape_chunk_and_block(n, f, floor, chunk, block, scan):
    x, W, b, floors, _ = inputs(n, f, 3, floor, seed=n + f)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sparse_product, "CHUNK", chunk)
        patch.setattr(cpu, "BLOCK", block)
        patch.setattr(cpu, "_above_by_numpy", scan)
        pre, idx, offsets = threshold_encode(x, W, b, floors)
    rows, columns = (x @ W + b > floors).nonzero(as_tuple=True)
    assert torch.equal(idx, columns)
    assert torch.equal(torch.repeat_interleave(torch.arange(n), offsets.diff()), rows)
    assert offsets.shape == (n + 1,) and offsets.dtype == idx.dtype == torch.int64
    torch.testing.assert_close(pre, (x @ W + b)[rows, columns])


def test_the_comparison_is_strict():
    x, W, b = torch.ones(1, 1), torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(3)
    pre, idx, offsets = threshold_encode(x, W, b, torch.tensor([1.0, 1.0, 3.0]))
    assert pre.tolist() == [2.0] and idx.tolist() == [1] and offsets.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    """Tensors of low precision, and tensors of float32 with such a product; entries near the floor apart."""
    for own, compute in ((dtype, None), (torch.float32, dtype)):
        x, W, b, floor, _ = inputs(9, 40, 8, 0.5, dtype=own)
        truth = x.double() @ W.double() + b.double()
        low = (x.to(dtype) @ W.to(dtype) + b.to(dtype)).to(own)
        for fn in (threshold_encode, threshold_encode_reference):
            pre, idx, offsets = fn(x, W, b, floor, compute=compute)
            places = torch.repeat_interleave(torch.arange(9), offsets.diff()) * 40 + idx
            assert_as_precise(fn.__name__, pre, low.flatten()[places], truth.flatten()[places])
            above = torch.zeros(9 * 40, dtype=torch.bool).index_fill(0, places, True).view(9, 40)
            sure = (truth - floor).abs() > 4 * (low - truth).abs().max()
            assert sure.double().mean() > 0.9 and torch.equal(above[sure], (truth > floor)[sure])
        if compute is not None:
            assert not torch.equal(pre[:10], threshold_encode(x, W, b, floor)[0][:10])


def test_the_floor_gets_no_gradient_and_errors_are_named():
    x, W, b, floor, _ = inputs(4, 6, 3, 0.0)
    pre, *_ = threshold_encode(x.requires_grad_(), W, b, floor.requires_grad_())
    pre.sum().backward()
    assert floor.grad is None and x.grad is not None
    with pytest.raises(ValueError, match="compute is the dtype of the dense product"):
        threshold_encode(x, W, b, floor, compute=torch.int8)
    with use_backend("torch"), pytest.raises(RuntimeError, match=r"mix torch\.float64 and torch\.float32"):
        threshold_encode(x, W, b.float(), floor)
