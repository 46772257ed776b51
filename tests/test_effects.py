"""Cross-entropy, KL and perplexity of edited runs against direct computation in float64, one sequence at a time."""

import math

import pytest
import torch

from interp import effects
from interp.batching import Batch
from interp.effects import EffectsFitter, compare, cross_entropy, kl_divergence
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from tests.tiny_models import random_tokens, tiny

LENGTHS = [7, 1, 2, 5]


def _logits(seed: int, v: int = 11) -> torch.Tensor:
    return torch.randn(4, 7, v, generator=torch.Generator().manual_seed(seed)) * 2


def _tokens(v: int = 11) -> torch.Tensor:
    return torch.randint(0, v, (4, 7), generator=torch.Generator().manual_seed(9))


def _direct(clean: torch.Tensor, edited: torch.Tensor, tokens: torch.Tensor) -> tuple[list[float], list[float]]:
    """Per counted token, CE of `edited` and KL(clean || edited), written out in float64."""
    ce, kl = [], []
    for row, length in enumerate(LENGTHS):
        for t in range(length - 1):
            p, q = clean[row, t].double().softmax(0), edited[row, t].double().softmax(0)
            ce.append(-math.log(q[tokens[row, t + 1]]))
            kl.append(float((p * (p / q).log()).sum()))
    return ce, kl


@pytest.mark.parametrize("chunk", [2**24, 22, 1])
def test_rows_equal_direct_computation(chunk, monkeypatch):
    monkeypatch.setattr(effects, "_CHUNK", chunk)
    clean, edited, tokens, lengths = _logits(0), _logits(1), _tokens(), torch.tensor(LENGTHS)
    ce, kl = _direct(clean, edited, tokens)
    torch.testing.assert_close(cross_entropy(edited, tokens, lengths), torch.tensor(ce))
    torch.testing.assert_close(kl_divergence(clean, edited, lengths), torch.tensor(kl))


def test_kl_has_a_direction_and_a_zero():
    clean, edited, lengths = _logits(0), _logits(1), torch.tensor(LENGTHS)
    assert not kl_divergence(clean, clean + 3, lengths).abs().max() > 1e-6
    forward, backward = kl_divergence(clean, edited, lengths), kl_divergence(edited, clean, lengths)
    assert (forward > 0).all() and (forward - backward).abs().max() > 0.01


def test_padding_and_last_tokens_do_not_count():
    clean, edited, tokens, lengths = _logits(0), _logits(1), _tokens(), torch.tensor(LENGTHS)
    before = cross_entropy(edited, tokens, lengths), kl_divergence(clean, edited, lengths)
    for row, length in enumerate(LENGTHS):
        edited[row, length - 1 :] = torch.nan
        clean[row, length - 1 :] = torch.nan
        tokens[row, length:] = 0
    after = cross_entropy(edited, tokens, lengths), kl_divergence(clean, edited, lengths)
    assert len(before[0]) == 6 + 0 + 1 + 4
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_tokens_ruled_out_by_the_clean_run_add_nothing():
    clean, edited = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    clean[..., 2] = edited[..., 2] = -torch.inf
    edited[..., 0] = math.log(3)
    # p = (1/2, 1/2, 0), q = (3/4, 1/4, 0)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(clean, edited, torch.tensor([2])).tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_read_in_float32(dtype):
    edited, tokens, lengths = _logits(1).to(dtype), _tokens(), torch.tensor(LENGTHS)
    torch.testing.assert_close(cross_entropy(edited, tokens, lengths), cross_entropy(edited.float(), tokens, lengths))


def test_fitter_streams_the_same_mean():
    clean, edited, tokens, lengths = _logits(0), _logits(1), _tokens(), torch.tensor(LENGTHS)
    whole = EffectsFitter(["e"]).update(tokens, lengths, clean, {"e": lambda: edited}).result()
    parts = EffectsFitter(["e"])
    for i in range(4):
        row = slice(i, i + 1)
        parts.update(tokens[row], lengths[row], clean[row], {"e": lambda row=row: edited[row]})
    ce, kl = _direct(clean, edited, tokens)
    for result in (whole, parts.result()):
        assert result.n_tokens == 11 and result.n_sequences == 4
        assert result.ce["e"] == pytest.approx(sum(ce) / 11, rel=1e-6)
        assert result.kl["e"] == pytest.approx(sum(kl) / 11, rel=1e-6)
        assert result.delta_ce("e") == result.ce["e"] - result.ce_clean
        assert result.perplexity("e") == pytest.approx(math.exp(sum(ce) / 11), rel=1e-6)
        assert result.perplexity() == pytest.approx(math.exp(result.ce_clean))


def _batches(model: HookedModel) -> list[Batch]:
    tokens = random_tokens(model.hf, 4, 7, seed=3)
    batch = Batch(tokens, torch.tensor(LENGTHS), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    return [Batch(*(column[:2] for column in batch)), Batch(*(column[2:] for column in batch))]


def _halve(module, inputs, output):
    return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_compare_equals_runs_of_single_unpadded_sequences(family):
    model = HookedModel.wrap(tiny(family))
    site = Site.parse("resid_post.1")
    batches = _batches(model)
    result = compare(model, batches, {"halved": {site: lambda x, _: x * 0.5}, "same": {site: lambda x, _: x}})
    ce = {"clean": 0.0, "halved": 0.0}
    kl = 0.0
    for tokens, length in ((b.tokens[i, : b.lengths[i]], int(b.lengths[i])) for b in batches for i in range(2)):
        with torch.no_grad():
            clean = model.hf(tokens[None]).logits[0].double().log_softmax(-1)
            hook = model.anatomy.blocks(model.hf)[1].register_forward_hook(_halve)
            halved = model.hf(tokens[None]).logits[0].double().log_softmax(-1)
            hook.remove()
        for t in range(length - 1):
            ce["clean"] -= float(clean[t, tokens[t + 1]])
            ce["halved"] -= float(halved[t, tokens[t + 1]])
            kl += float((clean[t].exp() * (clean[t] - halved[t])).sum())
    assert result.n_tokens == 11
    assert result.ce_clean == pytest.approx(ce["clean"] / 11, rel=1e-5)
    assert result.ce["halved"] == pytest.approx(ce["halved"] / 11, rel=1e-5)
    assert result.kl["halved"] == pytest.approx(kl / 11, rel=1e-4)
    assert abs(result.delta_ce("halved")) > 1e-3 and result.kl["halved"] > 1e-3
    assert result.ce["same"] == result.ce_clean and result.kl["same"] == 0.0


def test_edits_may_depend_on_the_batch_and_tokens_are_limited():
    model = HookedModel.wrap(tiny("llama"))
    seen = []

    def edits(batch):
        seen.append(len(batch.tokens))
        return {"e": {Site.parse("resid_post.0"): lambda x, _: x}}

    assert compare(model, _batches(model), edits, max_tokens=6).n_tokens == 6
    assert seen == [2]
    assert compare(model, _batches(model), edits, max_tokens=7).n_tokens == 11


def test_nan_logits_are_refused_by_name():
    model = HookedModel.wrap(tiny("llama"))
    broken = {"broken": {Site.parse("resid_post.1"): lambda x, _: x * torch.nan}}
    with pytest.raises(InputError, match="the run 'broken' gave NaN logits: expected finite ones"):
        compare(model, _batches(model), broken)


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_to_predict_is_refused(tokens):
    model = HookedModel.wrap(tiny("llama"))
    one = Batch(torch.full((1, 1), 5), torch.ones(1).long(), torch.zeros(1).long(), torch.zeros(1).long())
    with pytest.raises(InputError, match="no token was predicted: expected at least one sequence of two tokens"):
        compare(model, [one] * tokens, {})
