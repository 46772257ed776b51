"""`topk_encode` against its reference, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import _groups, _sparse_product, topk_encode, use_backend
from midlens_kernels.topk_encode import cpu
from midlens_kernels.topk_encode.reference import topk_encode_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise, assert_rightly_chosen

SHAPES = [(1, 1, 1, 1), (3, 4, 7, 33), (5, 3, 3, 17), (0, 3, 5, 4), (9, 32, 129, 65)]
BIASES = {"some active": 0.0, "fewer than k positive": -6.0, "none positive": -1e3}


def inputs(n: int, f: int, d: int, bias: float, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (f, d)))
    b = torch.randn(f, generator=g, dtype=torch.float64) + bias
    weight = torch.randn(n, f, generator=g, dtype=torch.float64)  # what the loss does with each feature
    return x.to(dtype), W.to(dtype).T, b.to(dtype), weight.to(dtype)


def dense(acts: Tensor, idx: Tensor, f: int) -> Tensor:
    return acts.new_zeros(len(acts), f).scatter(1, idx, acts)


def run(fn, x: Tensor, W: Tensor, b: Tensor, weight: Tensor, k: int) -> tuple[Tensor, ...]:
    """The dense code (free of the order of the k) and the gradients of a loss that weighs all features differently."""
    x, W, b = (t.detach().requires_grad_() for t in (x, W, b))
    acts, idx = fn(x, W, b, k)
    code = dense(acts, idx, len(b))
    return (code, *torch.autograd.grad((code * weight).sum(), (x, W, b)))


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n,k,f,d", SHAPES)
def test_matches_the_reference(n, k, f, d, dtype, bias):
    case = inputs(n, f, d, bias, dtype, seed=n + k)
    ours, plain = run(topk_encode, *case, k), run(topk_encode_reference, *case, k)
    truth = run(topk_encode_reference, *(t.double() for t in case), k)
    for name, a, b, t in zip(("code", "d x", "d W_enc", "d b_enc"), ours, plain, truth, strict=True):
        assert_as_precise(name, a, b, t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    """The selection may differ between precisions, so the truth is that of the plain selection."""
    x, W, b, weight = inputs(9, 65, 33, 0.0, dtype)
    _, idx = topk_encode_reference(x, W, b, 8)

    def chosen(x, W, b, k):  # plain autograd, in float64, on the entries chosen in low precision
        return (x @ W + b).gather(1, idx).relu(), idx

    ours, plain = run(topk_encode, x, W, b, weight, 8), run(topk_encode_reference, x, W, b, weight, 8)
    truth = run(chosen, x.double(), W.double(), b.double(), weight.double(), 8)
    for name, a, p, t in zip(("code", "d x", "d W_enc", "d b_enc"), ours, plain, truth, strict=True):
        assert_as_precise(name, a, p, t)


def test_the_relu_gate_is_in_the_gradient():
    """With fewer than k positives, the entries that ReLU cut must get no gradient: dense autograd says so."""
    x, W, b, weight = inputs(6, 20, 5, -6.0)
    assert 0 < ((x @ W + b) > 0).sum(1).double().mean() < 8
    ours = run(topk_encode, x, W, b, weight, 8)
    plain = [t.detach().requires_grad_() for t in (x, W, b)]
    pre = plain[0] @ plain[1] + plain[2]
    loss = (pre.relu() * weight * (pre >= pre.topk(8).values[:, -1:])).sum()
    for a, t in zip(ours[1:], torch.autograd.grad(loss, plain), strict=True):
        torch.testing.assert_close(a, t)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 5),
    f=st.integers(1, 12),
    d=st.integers(1, 9),
    data=st.data(),
    chunk=st.sampled_from([1, 30, 2**26]),
)
def test_any_shape_and_chunk(n, f, d, data, chunk):
    k = data.draw(st.integers(1, f))
    case = inputs(n, f, d, data.draw(st.sampled_from([0.0, -2.0])), seed=n + f)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sparse_product, "CHUNK", chunk)
        ours = run(topk_encode, *case, k)
    for a, b in zip(ours, run(topk_encode_reference, *case, k), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("f,k", [(256, 8), (256, 16), (256, 17), (264, 8), (257, 8), (263, 3), (1024, 1), (1031, 1)])
def test_selection_in_two_stages(f, k, weighted, monkeypatch):
    """Wide enough for groups, on both sides of the condition, with and without columns left over; ties included."""
    monkeypatch.setattr(_groups, "BLOCK", 7 * f)
    monkeypatch.setattr(cpu, "BLOCK", 7 * f)
    g = torch.Generator().manual_seed(0)
    pre = torch.randint(-9, 9, (40, f), generator=g).float()
    weight = torch.randint(1, 4, (f,), generator=g).float() if weighted else None
    values, places = cpu._largest(pre, k, weight)
    scores = pre if weight is None else pre * weight
    ranked = scores.gather(1, places).sort(1, descending=True).values
    assert torch.equal(ranked, scores.topk(k).values)
    assert torch.equal(pre.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("f,k", [(7, 3), (40, 2), (67, 4), (67, 67)])
def test_ranked_by_weight_returned_without(f, k):
    """Against dense autograd: everything ranked at least as high as the k-th is active, at its own value."""
    x, W, b, loss = inputs(9, f, 5, 0.0)
    rank = torch.rand(f, generator=torch.Generator().manual_seed(1)).double() * 4 + 0.1
    plain = [t.detach().requires_grad_() for t in (x, W, b)]
    pre = plain[0] @ plain[1] + plain[2]
    code = pre.relu() * (pre * rank >= (pre * rank).topk(k).values[:, -1:])
    truth = (code, *torch.autograd.grad((code * loss).sum(), plain))
    ours = run(lambda x, W, b, k: topk_encode(x, W, b, k, weight=rank), x, W, b, loss, k)
    for a, t in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, t)
    if k < f:
        assert not torch.equal(code > 0, dense(*topk_encode(x, W, b, k), f) > 0)


def test_the_ranking_weight_gets_no_gradient():
    x, W, b, _ = inputs(4, 6, 5, 0.0)
    rank = torch.ones(6, dtype=torch.float64, requires_grad=True)
    acts, _ = topk_encode(x.requires_grad_(), W, b, 2, weight=rank)
    acts.sum().backward()
    assert rank.grad is None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_product_in_another_precision(dtype):
    """Values as precise as a bfloat16 product; the gradients, given the selection, as precise as the tensors are."""
    x, W, b, loss = inputs(17, 67, 33, 0.0, dtype)
    acts, idx = topk_encode(x.requires_grad_(), W.requires_grad_(), b.requires_grad_(), 4, compute=torch.bfloat16)
    assert acts.dtype == dtype
    grads = torch.autograd.grad((dense(acts, idx, 67) * loss).sum(), (x, W, b))
    low = (x.bfloat16() @ W.bfloat16() + b.bfloat16()).to(dtype).detach()
    exact = (x.double() @ W.double() + b.double()).detach()
    assert_as_precise("acts", acts.detach(), low.gather(1, idx).relu(), exact.gather(1, idx).relu())
    for i in range(17):
        assert_rightly_chosen(idx[i], low[i], exact[i])
    assert not torch.equal(dense(acts, idx, 67), dense(*topk_encode(x, W, b, 4), 67))
    plain = topk_encode_reference(x, W, b, 4, compute=torch.bfloat16)[0].detach()
    assert torch.equal(plain, low.topk(4).values.relu())

    def chosen(precision: torch.dtype):
        leaves = [t.detach().to(precision).requires_grad_() for t in (x, W, b)]
        pre = (leaves[0] @ leaves[1] + leaves[2]).gather(1, idx)
        code = dense(pre * (acts > 0), idx, 67)
        return torch.autograd.grad((code * loss.to(precision)).sum(), leaves)

    for name, a, p, t in zip(("d x", "d W", "d b"), grads, chosen(dtype), chosen(torch.float64), strict=True):
        assert_as_precise(name, a, p, t)


def test_weights_of_either_orientation_and_only_some_gradients():
    x, W, b, weight = inputs(4, 6, 5, 0.0)
    truth = run(topk_encode_reference, x, W, b, weight, 3)
    for a, t in zip(run(topk_encode, x, W.contiguous(), b, weight, 3), truth, strict=True):
        torch.testing.assert_close(a, t)
    x = x.requires_grad_()
    acts, idx = topk_encode(x, W, b, 3)
    (g_x,) = torch.autograd.grad((dense(acts, idx, 6) * weight).sum(), x)
    torch.testing.assert_close(g_x, truth[1])


def test_tensors_that_are_not_contiguous():
    case = inputs(6, 72, 4, 0.0)
    strided = [torch.stack([t, t], -1)[..., 0] for t in case]
    assert not any(t.is_contiguous() for t in strided)
    for a, t in zip(run(topk_encode, *strided, 3), run(topk_encode_reference, *case, 3), strict=True):
        torch.testing.assert_close(a, t)


def test_a_second_derivative_is_refused():
    x, W, b, _ = inputs(3, 6, 4, 0.0)
    acts, _ = topk_encode(x.requires_grad_(), W.requires_grad_(), b, 2)
    (g,) = torch.autograd.grad(acts.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_nothing_dense_is_kept_for_the_backward_pass():
    x, W, b, _ = inputs(50, 400, 3, 0.0)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        topk_encode(x.requires_grad_(), W.requires_grad_(), b.requires_grad_(), 4)
    assert max(t.numel() for t in kept) < 50 * 400


def test_k_out_of_range_and_explicit_requests():
    x, W, b, _ = inputs(2, 4, 3, 0.0)
    with pytest.raises(ValueError, match=r"k must lie between 1 and the number of features \(4\), got 5"):
        topk_encode(x, W, b, 5)
    with use_backend("torch"), pytest.raises(RuntimeError, match=r"mix torch\.float64 and torch\.float32"):
        topk_encode(x, W, b.float(), 2)
    with use_backend("torch"):
        topk_encode(x.float(), W.float(), b.float(), 2, compute=torch.bfloat16, weight=torch.ones(4).double())
    with pytest.raises(ValueError, match=r"compute is the dtype of the dense product.*got torch\.int32"):
        topk_encode(x, W, b, 2, compute=torch.int32)
