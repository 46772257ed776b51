"""`threshold_select` against dense autograd, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import _sparse_product, threshold_select, topk_decode, use_backend
from midlens_kernels.threshold_select import cpu
from midlens_kernels.threshold_select.reference import threshold_select_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise, assert_rightly_chosen

# n, f, d, count: one of one, all of them, without and with groups, columns left over, one token
SHAPES = [
    (1, 1, 1, 1),
    (3, 8, 4, 24),
    (3, 7, 4, 1),
    (9, 129, 33, 200),
    (9, 128, 33, 30),
    (4, 257, 5, 32),
    (1, 100, 3, 3),
]
NAMES = ("code", "d x", "d W_enc", "d b_enc")


def inputs(n: int, f: int, d: int, *, bias: float = 0.0, dtype=torch.float64, seed: int = 0):
    """x, W_enc, b_enc, what the loss does with each entry, a ranking weight, and which tokens count (most)."""
    g = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (f, d), (f,)))
    loss = torch.randn(n, f, generator=g, dtype=torch.float64)
    weight = torch.rand(f, generator=g, dtype=torch.float64) * 3 + 0.1
    kept = (torch.rand(n, generator=g) > 0.3).double()
    return tuple(t.to(dtype) for t in (x, W, b + bias, loss, weight, kept)), W.to(dtype).T


def dense(acts: Tensor, idx: Tensor, offsets: Tensor, f: int) -> Tensor:
    n = len(offsets) - 1
    rows = torch.repeat_interleave(torch.arange(n), offsets.diff(), output_size=len(idx))
    return acts.new_zeros(n, f).index_put((rows, idx), acts, accumulate=True)


def graded(code: Tensor, leaves: list[Tensor], loss: Tensor) -> tuple[Tensor, ...]:
    return (code, *torch.autograd.grad((code * loss).sum(), leaves))


def run(fn, x: Tensor, W: Tensor, b: Tensor, loss: Tensor, count: int, **options) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    return graded(dense(*fn(*leaves, count, **options), len(b)), leaves, loss)


def plainly(x: Tensor, W: Tensor, b: Tensor, loss: Tensor, count: int, *, weight=None, kept=None) -> tuple[Tensor, ...]:
    """Dense autograd, by the value of the `count`-th largest score (so without ties)."""
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    pre = leaves[0] @ leaves[1] + leaves[2]
    score = (pre if weight is None else pre * weight).detach().clone()
    if kept is not None:
        score[kept == 0] = -torch.inf
    bar = score.flatten().sort(descending=True).values[count - 1]
    mask = (score >= bar) & (score > -torch.inf)
    return graded(pre.relu() * mask, leaves, loss)


@pytest.mark.parametrize("bias", [0.0, -3.0, -1e3], ids=["many active", "fewer than count positive", "none positive"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n,f,d,count", SHAPES)
def test_matches_dense_autograd(n, f, d, count, dtype, bias):
    (x, _, b, loss, weight, kept), W = inputs(n, f, d, bias=bias, dtype=dtype, seed=n + count)
    for options in ({}, {"weight": weight}, {"kept": kept}, {"weight": weight, "kept": kept}):
        wide = {name: t.double() for name, t in options.items()}
        truth = plainly(*(t.double() for t in (x, W, b, loss)), count, **wide)
        plain = plainly(x, W, b, loss, count, **options)
        for fn in (threshold_select, threshold_select_reference):
            for name, a, p, t in zip(NAMES, run(fn, x, W, b, loss, count, **options), plain, truth, strict=True):
                assert_as_precise(f"{fn.__name__} {name}", a, p, t)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    f=st.integers(1, 90),
    d=st.integers(1, 5),
    data=st.data(),
    chunk=st.sampled_from([1, 200, 2**24]),
    piece=st.sampled_from([1, 100, 2**22]),
)
def test_any_shape_chunk_and_piece(n, f, d, data, chunk, piece):
    count = data.draw(st.integers(0, n * f))
    (x, _, b, loss, weight, kept), W = inputs(n, f, d, seed=n + f)
    options = {"weight": weight, "kept": data.draw(st.sampled_from([kept, None, torch.ones_like(kept)]))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sparse_product, "CHUNK", chunk)
        patch.setattr(cpu, "PIECE", piece)
        acts, idx, offsets = threshold_select(x, W, b, count, **options)
        ours = run(threshold_select, x, W, b, loss, count, **options)
    assert acts.shape == idx.shape == (count,) and offsets.shape == (n + 1,)
    assert offsets[0] == 0 and offsets[-1] == count and (offsets.diff() >= 0).all() and (acts >= 0).all()
    places = torch.repeat_interleave(torch.arange(n), offsets.diff()) * f + idx
    assert (places.diff() > 0).all()  # grouped by token, ascending in feature, no entry twice
    for a, t in zip(ours, run(threshold_select_reference, x, W, b, loss, count, **options), strict=True):
        torch.testing.assert_close(a, t)


@pytest.mark.parametrize("chunk", [1, 200, 2**24])
@pytest.mark.parametrize("count", [1, 5, 37, 200, 9 * 72])
def test_ties_are_cut_at_exactly_count(count, chunk, monkeypatch):
    """Pre-activations that are small integers, all weights equal: most scores tie."""
    monkeypatch.setattr(_sparse_product, "CHUNK", chunk)
    g = torch.Generator().manual_seed(0)
    x, W = torch.randint(-1, 3, (9, 2), generator=g).float(), torch.randint(-1, 3, (2, 72), generator=g).float()
    acts, idx, offsets = threshold_select(x, W, torch.zeros(72), count)
    assert torch.equal(acts.sort(descending=True).values, (x @ W).flatten().sort(descending=True).values[:count].relu())
    places = torch.repeat_interleave(torch.arange(9), offsets.diff()) * 72 + idx
    assert len(places.unique()) == count
    assert torch.equal((x @ W).flatten()[places].relu(), acts)


@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize("count", [10, 100, 300])
def test_tokens_that_do_not_count_only_fill_up(count, chunk, monkeypatch):
    """Two of four tokens count: 160 entries. Theirs come first, negative ones too; the rest is 0 and sends nothing."""
    monkeypatch.setattr(_sparse_product, "CHUNK", chunk)
    (x, _, b, loss, _, _), W = inputs(4, 80, 5)
    kept = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    acts, idx, offsets = threshold_select(x * 100 ** (1 - kept)[:, None], W, b, count, kept=kept)
    counts = offsets.diff()
    assert counts[kept == 1].sum() == min(count, 160) and len(acts) == count
    code = dense(acts, idx, offsets, 80)
    assert not code[kept == 0].any() and code[kept == 1].any()
    grads = run(threshold_select, x, W, b, loss, count, kept=kept)[1]
    assert not grads[kept == 0].any() and grads[kept == 1].any()


def test_no_token_counts_and_no_tokens():
    (x, _, b, *_), W = inputs(3, 16, 2, bias=50.0)
    assert (x @ W + b > 0).all()
    for count in (1, 7):  # with groups, and without
        acts, idx, offsets = threshold_select(x, W, b, count, kept=torch.zeros(3, dtype=torch.float64))
        assert not acts.any() and len(idx) == count and offsets[-1] == count
    acts, idx, offsets = threshold_select(x[:0].requires_grad_(), W, b, 0)
    assert acts.shape == idx.shape == (0,) and offsets.tolist() == [0]
    acts.sum().backward()
    acts, idx, offsets = threshold_select(x, W, b, 0)
    assert acts.shape == (0,) and offsets.tolist() == [0, 0, 0, 0]


def test_one_token_takes_all_and_decoding_follows():
    """A token with very many entries, others with none: what BatchTopK makes of a massive token."""
    (x, _, b, *_), W = inputs(5, 64, 3)
    x[2] *= 1e4
    acts, idx, offsets = threshold_select(x, W, torch.zeros_like(b), 20)
    assert offsets.diff().tolist() == [0, 0, 20, 0, 0]
    W_dec = torch.randn(64, 3, dtype=torch.float64)
    y = topk_decode(acts, idx, W_dec, offsets=offsets)
    torch.testing.assert_close(y, dense(acts, idx, offsets, 64) @ W_dec)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16], ids=str)
def test_the_product_in_another_precision(compute):
    (x, _, b, loss, weight, kept), W = inputs(9, 128, 16, dtype=torch.float32)
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    acts, idx, offsets = threshold_select(*leaves, 30, weight=weight, kept=kept, compute=compute)
    assert acts.dtype == torch.float32
    low = (x.to(compute) @ W.to(compute) + b.to(compute)).float()
    places = torch.repeat_interleave(torch.arange(9), offsets.diff()) * 128 + idx
    ranked = [(t * kept[:, None] * weight).flatten() for t in (low, x.double() @ W.double() + b.double())]
    assert_as_precise("scores", (acts * weight[idx]).detach(), *(t[places] for t in ranked))
    assert_rightly_chosen(places, *ranked)
    code = dense(acts, idx, offsets, 128)
    grads = torch.autograd.grad((code * loss).sum(), leaves)

    def chosen(precision: torch.dtype):
        wide = [t.detach().to(precision).requires_grad_() for t in (x, W, b)]
        pre = (wide[0] @ wide[1] + wide[2]) * (code > 0)
        return torch.autograd.grad((pre * loss.to(precision)).sum(), wide)

    for name, a, p, t in zip(NAMES[1:], grads, chosen(torch.float32), chosen(torch.float64), strict=True):
        assert_as_precise(name, a, p, t)


def test_tensors_that_are_not_contiguous():
    (x, _, b, loss, weight, kept), W = inputs(6, 72, 4)
    truth = run(threshold_select, x, W, b, loss, 20, weight=weight, kept=kept)
    strided = [torch.stack([t, t], -1)[..., 0] for t in (x, W, b, loss)]
    assert not any(t.is_contiguous() for t in strided)
    twice = {name: torch.stack([t, t], -1)[..., 0] for name, t in (("weight", weight), ("kept", kept))}
    for a, t in zip(run(threshold_select, *strided, 20, **twice), truth, strict=True):
        torch.testing.assert_close(a, t)


def test_requests_and_errors():
    (x, _, b, *_), W = inputs(2, 4, 3)
    size = r"\(2 tokens times 4 features\)"
    with pytest.raises(ValueError, match=rf"count must lie between 0 and the number of pre-activations {size}, got 9"):
        threshold_select(x, W, b, 9)
    with pytest.raises(ValueError, match="compute is the dtype of the dense product"):
        threshold_select(x, W, b, 2, compute=torch.int64)
    with use_backend("torch"), pytest.raises(RuntimeError, match=r"mix torch\.float64 and torch\.float32"):
        threshold_select(x, W, b.float(), 2)
    with use_backend("reference"):
        acts, *_ = threshold_select(x.requires_grad_(), W, b, 2)
        assert "Entries" not in str(acts.grad_fn.next_functions)
    acts, *_ = threshold_select(x, W, b, 2)
    assert "Entries" in str(acts.grad_fn.next_functions)
