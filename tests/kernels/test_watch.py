"""The device is never waited for and nothing dense is copied, forward and backward; and planted faults are found."""

import midlens_kernels._groups as groups
import pytest
import torch
from midlens_kernels import _sparse_product, threshold_encode, threshold_select, topk_decode, topk_encode
from midlens_kernels.threshold_encode import cpu as threshold_cpu
from midlens_kernels.threshold_select import cpu as select_cpu
from midlens_kernels.topk_encode import cpu as topk_cpu
from torch import Tensor, nn

from tests.kernels.watch import Allocated, NeverWaits, Waited, under

N, D, F, K = 256, 16, 512, 8


def parameters() -> tuple[Tensor, nn.Parameter, nn.Parameter, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(N, D, generator=g), nn.Parameter(torch.randn(F, D, generator=g))
    weight, kept = torch.rand(F, generator=g) + 0.5, (torch.rand(N, generator=g) > 0.1).float()
    return x.requires_grad_(), encoder, nn.Parameter(torch.randn(F, generator=g)), weight, kept


def encoders(encoder: Tensor, weight: Tensor, kept: Tensor):
    """Name, call; every way through the two encoders that promise not to wait."""
    for name, factor in (("plain", None), ("weighted", weight)):
        for k in (K, F // 4):  # with groups and without
            yield f"topk {name} {k}", lambda x, b, w=factor, k=k: topk_encode(x, encoder.T, b, k, weight=w)[0]
            yield (
                f"select {name} {k}",
                lambda x, b, w=factor, k=k: threshold_select(x, encoder.T, b, N * k, weight=w, kept=kept)[0],
            )


@pytest.mark.parametrize("by", [groups._largest_by_numpy, groups._largest_by_topk], ids=lambda f: f.__name__)
def test_encoders_never_wait(by, monkeypatch):
    monkeypatch.setattr(groups, "_largest_by_numpy", by)  # the second is what other devices run
    x, encoder, b, weight, kept = parameters()
    for _, encode in encoders(encoder, weight, kept):
        under(NeverWaits(), lambda encode=encode: encode(x, b).square().sum().backward())


def test_decode_never_waits():
    x, encoder, b, weight, kept = parameters()
    acts, idx, offsets = threshold_select(x, encoder.T, b, N * K, weight=weight, kept=kept)
    W_dec = nn.Parameter(torch.ones(F, D))
    under(NeverWaits(), lambda: topk_decode(acts, idx, W_dec, offsets=offsets).square().sum().backward())
    fixed, where = acts.detach().view(N, K).requires_grad_(), idx.view(N, K)
    under(NeverWaits(), lambda: topk_decode(fixed, where, W_dec).square().sum().backward())
    assert W_dec.grad is not None and fixed.grad is not None


@pytest.mark.parametrize(
    "fault",
    [
        lambda t: t.sum().item(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.masked_select(t > 0),
        lambda t: t.unique(),
        lambda t: t.long().bincount(),
        lambda t: torch.where(t > 0),
        lambda t: t.repeat_interleave(t.long()),
        lambda t: float(t[0]),
        lambda t: bool(t.any()),
        lambda t: t.index_put((t > 0,), torch.tensor(1.0)),
    ],
)
def test_planted_waits_are_found(fault):
    with pytest.raises(Waited):
        under(NeverWaits(), lambda: fault(torch.ones(5)))


def test_threshold_encode_waits_as_it_says(monkeypatch):
    monkeypatch.setattr(threshold_cpu, "_above_by_numpy", threshold_cpu._above_by_torch)
    x, encoder, b, _, _ = parameters()
    with pytest.raises(Waited, match="nonzero"):
        under(NeverWaits(), lambda: threshold_encode(x, encoder.T, b, torch.zeros(F)))


def test_no_dense_copies_forward(monkeypatch):
    monkeypatch.setattr(groups, "BLOCK", N * F // 32)
    monkeypatch.setattr(topk_cpu, "BLOCK", N * F // 32)
    monkeypatch.setattr(select_cpu, "PIECE", N * F // 32)
    x, encoder, b, weight, kept = parameters()
    for name, encode in encoders(encoder, weight, kept):
        watch = Allocated()
        under(watch, lambda encode=encode: encode(x, b))
        codes = N * int(name.split()[-1])
        # the group maxima, or the candidates (GROUP of them for each entry wanted), are the largest things there are
        limit = max(N * F // groups.GROUP, groups.GROUP * codes) if codes <= N * F // 32 else 2 * codes
        assert limit < N * F and watch.above(limit) == [(N * F, "new_empty")], (name, watch.above(limit))
    watch = Allocated()
    under(watch, lambda: x @ encoder.T + b > 0)
    assert len(watch.above(N * F - 1)) == 3  # product, sum, mask


def test_threshold_encode_makes_no_dense_copy(monkeypatch):
    monkeypatch.setattr(threshold_cpu, "BLOCK", N * F // 32)
    x, encoder, b, _, _ = parameters()
    watch = Allocated()
    pre, *_ = under(watch, lambda: threshold_encode(x, encoder.T, b, torch.full((F,), 8.0)))
    assert 0 < len(pre) < N * F // 32
    assert watch.above(N * F // 32) == [(N * F, "new_empty")], watch.above(N * F // 32)


def test_chunks_of_pre_activations_share_their_place(monkeypatch):
    """Two chunks, and room for one; the same codes as from one chunk."""
    x, encoder, b, weight, kept = parameters()
    for name, encode in encoders(encoder, weight, kept):
        whole = encode(x, b)
        with monkeypatch.context() as chunked:
            chunked.setattr(_sparse_product, "CHUNK", N * F // 2)
            watch = Allocated()
            torch.testing.assert_close(under(watch, lambda encode=encode: encode(x, b)), whole)
        made = [each for each in watch.made if each[1] in ("new_empty", "addmm") and each[0] == N * F // 2]
        assert made == [(N * F // 2, "new_empty")], (name, made)


def test_backward_makes_the_weight_gradient_and_nothing_else_that_large():
    """m d = 32,768 and f d = 8,192 elements: one tensor of f d, the gradient itself, contiguous as stored."""
    x, encoder, b, weight, kept = parameters()
    for name, encode in encoders(encoder, weight, kept):
        if name.endswith(f" {K}"):
            encoder.grad = None
            loss = encode(x, b).sum()
            watch = Allocated()
            under(watch, loss.backward)
            assert len(watch.above(F * D - 1)) == 1, (name, watch.above(F * D - 1))
            assert encoder.grad is not None and encoder.grad.is_contiguous()
            assert encoder.grad.shape == encoder.shape


def test_the_decoders_gradient_likewise():
    x, encoder, b, _, _ = parameters()
    acts, idx = (t.detach() for t in topk_encode(x, encoder.T, b, K))
    W_dec = nn.Parameter(torch.ones(F, D))
    loss = topk_decode(acts.requires_grad_(), idx, W_dec).square().sum()
    watch = Allocated()
    under(watch, loss.backward)
    assert len(watch.above(F * D - 1)) == 1, watch.above(F * D - 1)
    assert W_dec.grad is not None and W_dec.grad.is_contiguous()


def test_dense_autograd_does_make_such_temporaries():
    x, encoder, b, _, _ = parameters()
    loss = (x @ encoder.T + b).topk(K).values.relu().sum()
    watch = Allocated()
    under(watch, loss.backward)
    assert any(numel == N * F for numel, _ in watch.made)
