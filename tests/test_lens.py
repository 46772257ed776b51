"""The lens against direct computation: exact last steps, linear response, and how tokens are written."""

import pytest
import torch

from interp import lens as lens_module
from interp.errors import InputError
from interp.lens import Lens, fold_norm, logit_lens, token_strings
from interp.model import HookedModel
from interp.sites import Site
from tests.tiny_models import random_tokens, tiny

FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "qwen3"]


def _model(name: str) -> HookedModel:
    return HookedModel.wrap(tiny(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_lens_of_the_last_stream_is_the_model(family):
    model = _model(family)
    tokens = random_tokens(model.hf, 2, 7)
    last = Site.parse(f"resid_post.{model.cfg.n_layers - 1}")
    resid = model.capture(tokens, [last])[last]
    with torch.no_grad():
        expected = model.hf(tokens).logits
    torch.testing.assert_close(logit_lens(model, resid), expected)
    torch.testing.assert_close(logit_lens(model, resid[0, 3]), expected[0, 3])


@pytest.mark.parametrize("family", FAMILIES)
def test_lens_is_the_linear_part_of_the_last_steps(family):
    """x + u and x - u have one norm if u is orthogonal to x: then only the linear part tells their logits apart."""
    model = _model(family)
    norm, head = model.anatomy.ln_final(model.hf), model.anatomy.unembed(model.hf)
    layer_norm = model.anatomy.spec.norm == "layer"

    def centred(y):
        return y - y.mean() if layer_norm else y

    x, u = torch.randn(2, 48, generator=torch.Generator().manual_seed(0)).unbind()
    u = u - centred(x) * (centred(x) @ centred(u)) / (centred(x) @ centred(x))
    with torch.no_grad():
        moved = (head(norm(x + u)) - head(norm(x - u))) / 2
    scale = (centred(x + u).square().mean() + model.anatomy.spec.norm_eps).sqrt()
    torch.testing.assert_close((moved - moved.mean()) * scale, Lens.of(model).logits(u[None])[0], rtol=1e-4, atol=1e-5)


def test_folding_by_hand():
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    gain = torch.tensor([2.0, 10.0])
    expected = torch.tensor([[-4.0, -30.0], [0.0, -10.0], [4.0, 40.0]])
    torch.testing.assert_close(fold_norm(W, gain, centred=False), expected)
    # centring over the width first: rows (2, 20) -> (-9, 9), (6, 40) -> (-17, 17), (10, 90) -> (-40, 40); mean 22
    torch.testing.assert_close(
        fold_norm(W, gain, centred=True), torch.tensor([[13.0, -13.0], [5.0, -5.0], [-18.0, 18.0]])
    )
    assert torch.equal(W, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])), "the model's weights stay as they were"


def test_a_direction_common_to_all_tokens_promotes_none():
    """The centring matters: without it, the mean unembedding looks like a strong feature."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(50, 8, generator=generator) + 5
    lens = Lens(fold_norm(W, None, centred=False))
    common = torch.ones(1, 8)
    assert lens.logits(common).mean().abs() < 1e-4
    assert (W @ common[0]).mean() > 30


def test_top_tokens_in_chunks_equal_all_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    lens = Lens(torch.randn(40, 6, generator=generator))
    directions = torch.randn(11, 6, generator=generator)
    whole = lens.top(directions, 5)
    order = (directions @ lens.W.T).sort(dim=1, descending=True)
    assert torch.equal(whole.promoted, order.indices[:, :5])
    assert torch.equal(whole.suppressed, order.indices.flip(1)[:, :5])
    monkeypatch.setattr(lens_module, "_CHUNK", 40 * 3)
    for a, b in zip(lens.top(directions, 5), whole, strict=True):
        torch.testing.assert_close(a, b)
    assert lens.top(directions[:0], 5).promoted.shape == (0, 5)


def test_a_model_without_head_is_refused():
    model = HookedModel.wrap(tiny("llama").model)
    for read in (Lens.of, lambda m: logit_lens(m, torch.zeros(48))):
        with pytest.raises(InputError, match="was loaded without its unembedding, which the lens reads"):
            read(model)


@pytest.mark.parametrize(
    ("directions", "k", "message"),
    [
        (torch.zeros(2, 5), 3, "directions of width 5, but the unembedding reads width 6"),
        (torch.zeros(2, 6), 0, "k=0: expected 1 to 40"),
        (torch.zeros(2, 6), 41, "k=41: expected 1 to 40"),
    ],
)
def test_bad_input(directions, k, message):
    with pytest.raises(InputError, match=message):
        Lens(torch.zeros(40, 6)).top(directions, k)


def _byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["the", "Ġthe", "Ċ", "âĢ", "Ł", "é", "<eos>"]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def _sentencepiece_like():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581the", -1.0), ("the", -2.0), ("\u2581", -3.0)], 0))
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_token_strings_of_a_byte_level_tokenizer():
    names = token_strings(_byte_level(), [0, 1, 2, 3, 5, 6])
    # é is byte 0xE9 alone, no valid UTF-8; the stand-ins of bytes are shown as bytes
    assert names == {0: "the", 1: " the", 2: "\n", 3: "<0xE2><0x80>", 5: "<0xE9>", 6: "<eos>"}


def test_token_strings_keep_the_leading_blank():
    assert token_strings(_sentencepiece_like(), [1, 2]) == {1: " the", 2: "the"}


def test_token_strings_beyond_the_tokenizer():
    """Vocabularies are padded to round numbers: the unembedding has rows no token uses."""
    assert token_strings(_byte_level(), [0, 11]) == {0: "the", 11: "<11>"}


def test_read_pairs_tokens_with_logits():
    lens = Lens(torch.tensor([[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]))
    promoted, suppressed = lens.read(torch.tensor([[1.0, 0.0]]), _byte_level(), k=2)[0]
    assert promoted == (("the", 3.0), (" the", 1.0))
    assert suppressed == (("<0xE2><0x80>", -3.0), ("\n", -1.0))
