"""Kernels from weights: logits of every family against the plain forward pass, pairings, conventions, refusals."""

import math

import pytest
import torch

from interp.attention.heads import kernel, kernel_shape, n_kernel_layers
from interp.errors import InputError
from interp.model import HookedModel
from interp.plain import plain_run
from interp.sites import Site
from tests.attention.dense_surgery import BILINEAR, QK_NORM, double_model, plain_site
from tests.tiny_models import random_tokens, tiny

WITHOUT_ROPE = [name for name in BILINEAR if name.startswith("gpt2")]
LAYER = 1


def plain_scores(model: HookedModel, tokens: torch.Tensor) -> torch.Tensor:
    """q · k of the plain forward pass, scaled, before rotary embedding, cap and mask: `b h t s`."""
    q, k = (plain_site(model, tokens, f"blocks.{LAYER}.attn.hook_{name}") for name in "qk")
    heads, groups = q.shape[2], k.shape[2]
    shared = k[:, :, torch.arange(heads) // (heads // groups)]
    return torch.einsum("bthe,bshe->bhts", q, shared) * model.cfg.scale(LAYER)


def normalised(model: HookedModel, tokens: torch.Tensor) -> torch.Tensor:
    return plain_site(model, tokens, f"blocks.{LAYER}.ln1.hook_normalized")


def logits(m, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("btd,hde,hfe,bsf->bhts", x, m.left, m.right, x)


def augmented(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


@pytest.mark.parametrize("name", BILINEAR)
def test_logits_of_every_family(name):
    """x̃ᵀ M x̃ is what the plain forward pass compares by; queries and keys as they are before RoPE."""
    model = double_model(name)
    tokens = random_tokens(model.hf, 2, 7)
    expected = plain_scores(model, tokens)
    m = kernel(model, LAYER, biases=True)
    assert m.left.dtype == m.right.dtype == torch.float64 and m.folded and m.biased
    torch.testing.assert_close(logits(m, augmented(normalised(model, tokens))), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BILINEAR)
def test_raw_weights_read_what_the_norm_puts_out(name):
    model = double_model(name)
    tokens = random_tokens(model.hf, 1, 5)
    norm = model.anatomy.at(model.hf, LAYER, model.anatomy.ln1)
    stream = plain_site(model, tokens, f"blocks.{LAYER}.hook_resid_pre")
    m = kernel(model, LAYER, fold_norm=False, biases=True)
    assert not m.folded and not m.centred
    with torch.no_grad():
        got = logits(m, augmented(norm(stream)))
    # transformers computes RMS norms of float64 rows in float32
    torch.testing.assert_close(got, plain_scores(model, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BILINEAR if not name.startswith("gpt")])
def test_the_diagonal_of_rotary_scores(name):
    """At offset 0 the rotations cancel: the model's own pattern's scores on the diagonal are x̃ᵀ M x̃ (capped)."""
    model = double_model(name)
    tokens = random_tokens(model.hf, 2, 9)
    site = Site.parse(f"blocks.{LAYER}.attn.hook_attn_scores")
    scores = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens, sites=[site]).sites[site]
    got = logits(kernel(model, LAYER, biases=True), augmented(normalised(model, tokens)))
    got = torch.diagonal(got, dim1=-2, dim2=-1)
    if cap := model.cfg.attn_cap:
        got = cap * torch.tanh(got / cap)
    torch.testing.assert_close(got, torch.diagonal(scores, dim1=-2, dim2=-1), rtol=1e-10, atol=1e-10)


def test_groups_are_repeated_not_tiled():
    model = double_model("llama")
    tokens = random_tokens(model.hf, 1, 6)
    m, expected = kernel(model, LAYER, biases=True), plain_scores(model, tokens)
    x = augmented(normalised(model, tokens))
    groups = m.right[:: len(m.right) // m.groups]
    assert m.groups == 2 and len(m.left) == 4
    torch.testing.assert_close(torch.einsum("btd,hde,hfe,bsf->bhts", x, m.left, m.right, x), expected)
    tiled = torch.einsum("btd,hde,hfe,bsf->bhts", x, m.left, groups.repeat(2, 1, 1), x)
    assert (tiled - expected).abs().max() > 0.1


def test_biases_matter_and_can_be_left_out():
    model = double_model("qwen2")
    tokens = random_tokens(model.hf, 1, 6)
    without, x = kernel(model, LAYER), normalised(model, tokens)
    assert without.left.shape[-2] == model.cfg.d_model and not without.biased
    expected = plain_scores(model, tokens)
    assert (logits(without, x) - expected).abs().max() > 0.1
    with_biases = kernel(model, LAYER, biases=True)
    torch.testing.assert_close(with_biases.left[:, :-1], without.left, rtol=0, atol=0)
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(model.hf.model.layers[LAYER].self_attn, name).bias.zero_()
    torch.testing.assert_close(logits(without, x), plain_scores(model, tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", WITHOUT_ROPE)
def test_a_layer_norm_is_centred(name):
    """C M C: rows x̂ are centred, so M and C M C give the same logits, and only the second has no part along 1."""
    model = double_model(name)
    m = kernel(model, LAYER)
    assert m.centred
    assert m.left.sum(-2).abs().max() < 1e-12 and m.right.sum(-2).abs().max() < 1e-12
    raw = kernel(model, LAYER, fold_norm=False)
    gain = model.hf.transformer.h[LAYER].ln_1.weight
    folded = gain[:, None] * raw.left
    assert (folded.sum(-2)).abs().max() > 0.01
    torch.testing.assert_close(m.left, folded - folded.mean(-2, keepdim=True), rtol=1e-12, atol=1e-12)


def test_rms_norms_are_not_centred():
    m = kernel(double_model("gemma2"), LAYER)
    assert m.folded and not m.centred and m.left.sum(-2).abs().max() > 0.01


def test_scale_is_the_models():
    model = double_model("gpt2_untied")  # divides by the number of the layer as well
    assert kernel(model, 2).scale == pytest.approx(model.cfg.d_head**-0.5 / 3)
    assert kernel(double_model("gemma2"), 0).scale == pytest.approx(24**-0.5)


def test_sizes():
    model = HookedModel.wrap(tiny("llama"))
    assert kernel_shape(model) == (3, 4, 2, 48, 16) and n_kernel_layers(model) == 3
    m = kernel(model, 0)
    assert repr(m) == "Kernel(layer 0: 4 heads of 2 groups, d 48, e 16, folded)"
    assert m.head(3).left.shape == (48, 16)
    torch.testing.assert_close(m.head(3).left @ m.head(3).right.mT, (m.left @ m.right.mT)[3])
    torch.testing.assert_close(m.bilinear.left, m.left)


def test_a_model_may_be_given_unwrapped():
    hf = tiny("gpt_neox")
    torch.testing.assert_close(kernel(hf, 1).left, kernel(HookedModel.wrap(hf), 1).left)


def test_a_model_loaded_in_part():
    model = HookedModel.load("smollm2-135m", upto="resid_post.1", dtype="float32", device="cpu")
    assert kernel_shape(model) == (2, 9, 3, 576, 64)
    with pytest.raises(InputError, match=r"layer 2 does not exist: the model has 2 layers in memory"):
        kernel(model, 2)


@pytest.mark.parametrize("name", QK_NORM)
def test_query_key_norm_is_refused(name):
    with pytest.raises(
        InputError, match=r"normalises queries and keys.*no bilinear form.*interp\.attention\.operating"
    ):
        kernel(HookedModel.wrap(tiny(name)), 0)


def test_alibi_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=31, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(InputError, match="ALiBi"):
        kernel(BloomForCausalLM(config), 0)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_out_of_range(layer):
    with pytest.raises(InputError, match=f"layer {layer} does not exist: the model has 3 layers"):
        kernel(tiny("llama"), layer)


@pytest.mark.parametrize("head", [-1, 4])
def test_a_head_out_of_range(head):
    with pytest.raises(InputError, match=f"head {head} does not exist: layer 0 has 4"):
        kernel(tiny("llama"), 0).head(head)


def test_quantised_weights_are_refused():
    hf = tiny("llama")
    q = hf.model.layers[0].self_attn.q_proj
    q.weight = torch.nn.Parameter(q.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(InputError, match=r"float8_e4m3fn.*without their scales"):
        kernel(hf, 0)
    q.weight = torch.nn.Parameter(torch.zeros(q.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"q_proj is a Linear with a weight of dtype torch.uint8.*quantisation"):
        kernel(hf, 0)


def test_weights_that_are_no_numbers_are_refused():
    hf = tiny("llama")
    with torch.no_grad():
        hf.model.layers[1].self_attn.k_proj.weight[0, 0] = math.nan
    kernel(hf, 0)
    with pytest.raises(InputError, match=r"self_attn\.k_proj holds NaN or infinite weights"):
        kernel(hf, 1)


def test_adapters_are_refused_until_merged():
    """A module shaped as peft's: its `weight` is that of the matrix below, without the adapter."""

    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer, self.lora_A = base, torch.nn.Linear(base.in_features, 2)
            self.in_features, self.out_features = base.in_features, base.out_features
            self.weight, self.bias = base.weight, base.bias

    hf = tiny("llama")
    hf.model.layers[0].self_attn.q_proj = Adapted(hf.model.layers[0].self_attn.q_proj)
    with pytest.raises(InputError, match=r"q_proj is of type Adapted, .*base_layer, lora_A.*merge adapters"):
        kernel(hf, 0)


def test_parametrised_weights_are_read_as_computed():
    from torch.nn.utils import parametrizations

    hf = tiny("llama")
    before = kernel(hf, 0)
    parametrizations.weight_norm(hf.model.layers[0].self_attn.q_proj)
    torch.testing.assert_close(kernel(hf, 0).left, before.left, rtol=1e-5, atol=1e-6)


def tiny_bert(**options):
    from transformers import BertConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    return BertConfig(vocab_size=31, max_position_embeddings=16, **sizes, **options)


@pytest.mark.parametrize("alone", [True, False])
def test_berts_attention_probabilities(alone):
    """Softmax of x̃ᵀ M x̃ is what BERT's own eager attention gives."""
    from transformers import BertForMaskedLM, BertModel

    config = tiny_bert(attn_implementation="eager")
    hf = (BertModel(config, add_pooling_layer=False) if alone else BertForMaskedLM(config)).double().eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
        out = hf(torch.tensor([[4, 9, 2, 17]]), output_hidden_states=True, output_attentions=True)
    for layer in (0, 1):
        m = kernel(hf, layer, biases=True)
        assert not m.folded and not m.centred and m.scale == pytest.approx(1 / math.sqrt(8)) and m.groups == 3
        got = logits(m, augmented(out.hidden_states[layer])).softmax(-1)
        torch.testing.assert_close(got, out.attentions[layer], rtol=1e-9, atol=1e-9)
    assert kernel_shape(hf) == (2, 3, 3, 24, 8)


def test_bert_with_relative_positions_is_refused():
    from transformers import BertModel

    hf = BertModel(tiny_bert())
    hf.config.position_embedding_type = "relative_key"
    with pytest.raises(InputError, match=r"'relative_key'.*expected 'absolute'"):
        kernel(hf, 0)
