"""`topk_decode` against its reference, values and gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import topk_decode, use_backend
from midlens_kernels.topk_decode.cpu import topk_decode_cpu
from midlens_kernels.topk_decode.reference import topk_decode_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise

SHAPES = [(1, 1, 1, 1), (3, 4, 7, 33), (5, 6, 3, 17), (0, 3, 5, 4), (4, 0, 5, 4), (9, 32, 129, 65)]


def codes(counts: list[int], f: int, d: int, dtype=torch.float64, seed=0):
    """Ragged codes with `counts[i]` entries for token i; indices repeat, some activations are zero or negative."""
    g = torch.Generator().manual_seed(seed)
    m = sum(counts)
    acts = torch.randn(m, generator=g, dtype=torch.float64) * (torch.rand(m, generator=g) > 0.2)
    idx = torch.randint(0, f, (m,), generator=g)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    W = torch.randn(f, d, generator=g, dtype=torch.float64)
    g_y = torch.randn(len(counts), d, generator=g, dtype=torch.float64)
    return acts.to(dtype), idx, offsets, W.to(dtype), g_y.to(dtype)


def run(fn, acts: Tensor, idx: Tensor, offsets: Tensor, W: Tensor, g_y: Tensor) -> tuple[Tensor, ...]:
    acts, W = acts.detach().requires_grad_(), W.detach().requires_grad_()
    y = fn(acts, idx, offsets, W)
    return (y, *torch.autograd.grad(y, (acts, W), g_y))


def double(tensors):
    return [t.double() if t.is_floating_point() else t for t in tensors]


def test_the_reference_is_the_definition():
    acts, idx, offsets, W, _ = codes([2, 0, 3], f=4, d=5)
    y = topk_decode_reference(acts, idx, offsets, W)
    for i, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        torch.testing.assert_close(
            y[i], sum((acts[j] * W[idx[j]] for j in range(start, stop)), torch.zeros(5).double())
        )


def test_gradients_against_finite_differences():
    acts, idx, offsets, W, _ = codes([2, 0, 3, 1], f=4, d=3)
    arguments = acts.requires_grad_(), W.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: topk_decode_cpu(a, idx, offsets, w), arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n,k,f,d", SHAPES)
def test_fixed_k_matches_the_reference(n, k, f, d, dtype):
    case = codes([k] * n, f, d, dtype, seed=n + k)
    acts, idx, offsets, W, g_y = case
    ours = run(lambda a, i, _, w: topk_decode(a.view(n, k), i.view(n, k), w), acts, idx, offsets, W, g_y)
    plain, truth = run(topk_decode_reference, *case), run(topk_decode_reference, *double(case))
    for name, a, b, t in zip(("y", "d acts", "d W_dec"), ours, plain, truth, strict=True):
        assert_as_precise(name, a, b, t)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), max_size=6),
    f=st.integers(1, 9),
    d=st.integers(1, 20),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 999),
)
def test_ragged_codes_match_the_reference(counts, f, d, index, seed):
    acts, idx, offsets, W, g_y = codes(counts, f, d, seed=seed)
    case = acts, idx.to(index), offsets, W, g_y
    ours = run(lambda a, i, o, w: topk_decode(a, i, w, offsets=o), *case)
    for a, b in zip(ours, run(topk_decode_reference, *case), strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_gradients_asked_for():
    acts, idx, offsets, W, g_y = codes([2, 3], f=4, d=3)
    only_acts = acts.detach().requires_grad_()
    (got,) = torch.autograd.grad(topk_decode_cpu(only_acts, idx, offsets, W), only_acts, g_y)
    torch.testing.assert_close(got, run(topk_decode_reference, acts, idx, offsets, W, g_y)[1])
    only_W = W.detach().requires_grad_()
    (got,) = torch.autograd.grad(topk_decode_cpu(acts, idx, offsets, only_W), only_W, g_y)
    torch.testing.assert_close(got, run(topk_decode_reference, acts, idx, offsets, W, g_y)[2])
    assert not topk_decode_cpu(acts, idx, offsets, W).requires_grad


def test_tensors_that_are_not_contiguous():
    case = codes([3, 0, 5], f=7, d=6)
    strided = [torch.stack([t, t], -1)[..., 0] for t in case]
    assert not any(t.is_contiguous() for t in strided)
    ours = run(lambda a, i, o, w: topk_decode(a, i, w, offsets=o), *strided)
    for a, b in zip(ours, run(topk_decode_reference, *case), strict=True):
        torch.testing.assert_close(a, b)


def test_a_token_that_owns_almost_everything():
    case = codes([0, 900, 0, 1, 0], f=5, d=4)
    ours = run(lambda a, i, o, w: topk_decode(a, i, w, offsets=o), *case)
    for a, b in zip(ours, run(topk_decode_reference, *case), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused():
    acts, idx, offsets, W, _ = codes([2, 3], f=4, d=3)
    y = topk_decode(acts.requires_grad_(), idx, W.requires_grad_(), offsets=offsets)
    for g in torch.autograd.grad(y.square().sum(), (W, acts), create_graph=True):
        with pytest.raises(RuntimeError, match=r"once_differentiable|is not implemented"):
            g.sum().backward()


def test_an_explicit_request_is_honoured_or_refused_and_auto_falls_back():
    acts, idx, W = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, 5)
    with use_backend("reference"):
        assert type(topk_decode(acts, idx, W.requires_grad_()).grad_fn).__name__ == "MmBackward0"
    assert type(topk_decode(acts, idx, W).grad_fn).__name__ == "_DecoderGradientBackward"
    with use_backend("torch"), pytest.raises(RuntimeError, match="'torch' was requested, but the tensors mix"):
        topk_decode(acts, idx, W.double())
    with (
        pytest.raises(ValueError, match="one of 'auto', 'reference', 'torch', 'triton', got 'cuda'"),
        use_backend("cuda"),
    ):
        pass


def test_wrong_shapes_are_named():
    idx = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"codes without offsets have the shape \(n, k\), got \(4,\)"):
        topk_decode(torch.ones(4), idx, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"codes with offsets are flat, got the shape \(2, 2\)"):
        topk_decode(torch.ones(2, 2), idx.view(2, 2), torch.ones(2, 3), offsets=torch.tensor([0, 4]))
