"""Running a model with surgery: what else stays as it is, how it goes with captures, edits, gradients, generation."""

import copy
import inspect
import math

import jaxtyping
import pytest
import torch

from interp.attention.operated import kernel_bases, operated, position_bases
from interp.attention.surgery import Basis, Surgery, factor_basis, gram_basis
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from tests.attention.dense_surgery import close, dense, double_model, plain_logits, skew_and_symmetric
from tests.tiny_models import FAMILIES, VARIANTS, random_tokens, tiny


def _hooks(model: HookedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def _state(model: HookedModel) -> tuple:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = copy.deepcopy(model.hf.config.to_dict())
    registered = sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
    return _hooks(model), len(model.board), config, model.hf.config._attn_implementation, registered


@pytest.mark.parametrize("name", VARIANTS)
def test_other_heads_and_lower_layers_are_bit_identical(name):
    model = HookedModel.wrap(tiny(name))
    tokens, heads = random_tokens(model.hf, 2, 12), [(1, 1), (1, 2)]
    sites = ["q.1", "z.1", "attn_out.0", "resid_pre.1", "z.2"]
    clean = model.capture(tokens, sites)
    with operated(model, Surgery(heads, alpha=0.2)):
        inside = model.capture(tokens, sites)
    for site in map(Site.parse, ("q.1", "attn_out.0", "resid_pre.1")):
        assert torch.equal(inside[site], clean[site])
    for head in range(4):
        same = torch.equal(inside[Site.parse("z.1")][:, :, head], clean[Site.parse("z.1")][:, :, head])
        assert same == (head in (0, 3))
    assert not torch.equal(inside[Site.parse("z.2")], clean[Site.parse("z.2")]), "the change goes on upwards"


def test_blocks_nest_and_the_inner_surgery_of_a_head_counts():
    model = double_model("llama")
    tokens = random_tokens(model.hf, 1, 10)
    settings = {(0, 1): (0.0, 1.0), (1, 2): (2.0, 0.5), (1, 3): (2.0, 0.5)}

    def scores(q, k, layer):
        B = dense(q, k)
        skew, symmetric = skew_and_symmetric(B)
        for (at, head), (alpha, beta) in settings.items():
            if at == layer:
                B[:, head] = alpha * symmetric[:, head] + beta * skew[:, head]
        return B

    with torch.no_grad():
        with (
            operated(model, Surgery([(0, 1), (1, 2)], alpha=0.0)),
            operated(model, Surgery([(1, 3), (1, 2)], alpha=2.0, beta=0.5)),
        ):
            close(model, model(tokens), plain_logits(model, tokens, scores))
        settings = {(0, 1): (0.0, 1.0), (1, 2): (0.0, 1.0)}
        with operated(model, Surgery([(0, 1), (1, 2)], alpha=0.0)):
            with operated(model, Surgery([(1, 3), (1, 2)], alpha=2.0, beta=0.5)):
                model(tokens)
            close(model, model(tokens), plain_logits(model, tokens, scores))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_it_was(name):
    model = HookedModel.wrap(tiny(name))
    tokens = random_tokens(model.hf, 1, 8)
    clean, before = model(tokens), _state(model)
    with operated(model, Surgery(beta=0.0)):
        assert not torch.equal(model(tokens), clean)
        assert _state(model)[2:] == before[2:], "nothing is registered or configured, even inside"
    assert _state(model) == before and torch.equal(model(tokens), clean)
    with pytest.raises(RuntimeError, match="out of the body"), operated(model, Surgery(beta=0.0)):
        model.capture(tokens, ["q.1"])  # leaves a layer in the middle of its call
        raise RuntimeError("out of the body")
    assert _state(model) == before and torch.equal(model(tokens), clean)


def test_a_refused_surgery_leaves_nothing_behind():
    model = HookedModel.wrap(tiny("llama"))
    before = _state(model)
    with pytest.raises(InputError), operated(model, Surgery([(0, 0), (1, 9)])):
        pass
    assert _state(model) == before


def test_edits_act_before_surgery_and_captures_see_it():
    """Doubled queries are doubled scores: α = β = 2."""
    model = double_model("gpt_neox")
    tokens = random_tokens(model.hf, 2, 9)
    with torch.no_grad():
        with operated(model, Surgery([(1, 2)], alpha=2.0, beta=2.0)):
            expected = model(tokens)
            z = model.capture(tokens, ["z.1"])[Site.parse("z.1")]
        with model.edited({Site.parse("q.1[2]"): lambda q, where: 2 * q}):
            torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)
        for outer, inner in ((0, 1), (1, 0)):
            blocks = [
                lambda: operated(model, Surgery([(1, 2)])),
                lambda: model.edited({Site.parse("q.1[2]"): lambda q, where: 2 * q}),
            ]
            with blocks[outer](), blocks[inner]():
                torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)
                torch.testing.assert_close(model.capture(tokens, ["z.1"])[Site.parse("z.1")], z, rtol=0, atol=1e-11)
        with operated(model, Surgery([(1, 2)], beta=0.0)), model.edited({"z.1[2]": lambda z, where: 0 * z}):
            silenced = model(tokens)
        with model.edited({"z.1[2]": lambda z, where: 0 * z}):
            torch.testing.assert_close(silenced, model(tokens), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "level", "step", "rel"),
    [
        ("gpt_neox", "kernel", 1e-6, 1e-6),
        ("gpt_neox", "position", 1e-6, 1e-6),
        ("gpt2", "kernel", 1e-6, 1e-6),
        ("gemma2", "position", 1e-3, 1e-2),  # transformers computes RMSNorm in float32
    ],
)
def test_gradients_are_those_of_the_operated_function(name, level, step, rel):
    """Against a central difference along a random direction of the weights of two modules."""
    model = double_model(name)
    tokens = random_tokens(model.hf, 2, 9)
    basis = position_bases({1: _random_gram(e=model.cfg.d_head)}) if level == "position" else kernel_bases(model, [1])
    surgery = Surgery([(1, 0), (1, 2)], alpha=0.4, beta=1.6, planes=4, modes=7, level=level, bases=basis)

    def loss() -> torch.Tensor:
        with operated(model, surgery):
            return model(tokens).square().mean()

    weights = [p for p in model.anatomy.at(model.hf, 1, model.anatomy.q).parameters() if p.ndim == 2]
    weights += [p for p in model.anatomy.at(model.hf, 0, model.anatomy.mlp_out).parameters() if p.ndim == 2]
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in weights]
    gradients = torch.autograd.grad(loss(), weights)
    slope = float(sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(weights, directions, strict=True):
                p += sign * step * d
            values.append(float(loss()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=rel)


def _random_gram(h: int = 4, e: int = 16, seed: int = 0) -> torch.Tensor:
    z = torch.randn(h, 100, 2 * e, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z.mT @ z


def test_gradients_reach_captured_queries():
    model = HookedModel.wrap(tiny("llama").requires_grad_(False))
    tokens = random_tokens(model.hf, 1, 6)
    with operated(model, Surgery([(1, 0)], alpha=0.0)):
        logits, seen = model.run_recorded(tokens, ["q.1"])
    q = seen[Site.parse("q.1")]
    (gradient,) = torch.autograd.grad(logits.square().mean(), q)
    assert (gradient[:, :, 0].abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
def test_right_padded_rows_are_the_rows_run_alone(name):
    model = double_model(name)
    tokens, lengths = random_tokens(model.hf, 3, 12), torch.tensor([12, 5, 8])
    surgery = Surgery(alpha=0.5, beta=1.4, planes=3, level="kernel")
    with torch.no_grad(), operated(model, surgery):
        batch = model(tokens, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = model(tokens[row : row + 1, :length])[0]
            torch.testing.assert_close(batch[row, :length], alone, rtol=0, atol=1e-11)
        left = torch.stack([row.roll(12 - int(length)) for row, length in zip(tokens, lengths, strict=True)])
        turned = model(left, lengths=lengths, padding="left")
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(turned[row, 12 - length :], batch[row, :length], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_a_mask_given_to_the_model_itself_is_kept(name):
    """Callers who run `model.hf` with left padding behind a mask (float32: eager attention gives NaN in float64)."""
    model = HookedModel.wrap(tiny(name))
    tokens = random_tokens(model.hf, 1, 8)
    padded = torch.cat([torch.full((1, 3), 5), tokens], 1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), operated(model, Surgery(alpha=0.3)):
        given = model.hf(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 3:]
        torch.testing.assert_close(given, model(tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "gpt2"])
def test_eager_and_fused_models_agree(name):
    tokens, found = random_tokens(tiny(name), 1, 12), []
    for implementation in ("sdpa", "eager"):
        model = HookedModel.wrap(tiny(name, attn_implementation=implementation).double())
        with torch.no_grad(), operated(model, Surgery(alpha=0.5, planes=3, level="kernel")):
            found.append(model(tokens))
    close(HookedModel.wrap(tiny(name)), found[0], found[1])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_costs_no_more_than_in_the_model_itself(name):
    exact = double_model(name)
    model = HookedModel.wrap(tiny(name).bfloat16())
    tokens = random_tokens(exact.hf, 2, 20)
    with torch.no_grad():
        truth = exact(tokens)
        own = (model(tokens).double() - truth).norm()
        with operated(model, Surgery(planes=15, modes=31, level="kernel", bases=kernel_bases(exact))):
            near = (model(tokens).double() - truth).norm()
        with operated(model, Surgery()):
            both = model(tokens)
    assert both.dtype == torch.bfloat16
    assert (both.double() - truth).norm() < 2 * own and near < 0.5 * truth.norm()


def test_generation_without_a_cache_follows_the_operated_logits():
    model = HookedModel.wrap(tiny("llama"))
    prompt, lengths = random_tokens(model.hf, 2, 7), torch.tensor([7, 4])
    with operated(model, Surgery(alpha=0.2, beta=2.0)):
        made = model.generate(prompt, lengths=lengths, max_new_tokens=6, use_cache=False, stop_tokens=())
        for row, length in enumerate(lengths.tolist()):
            text = prompt[row : row + 1, :length]
            for token in made[row]:
                assert int(model(text)[0, -1].argmax()) == int(token)
                text = torch.cat([text, token.view(1, 1)], 1)
    plain = model.generate(prompt, lengths=lengths, max_new_tokens=6, use_cache=False, stop_tokens=())
    assert not torch.equal(made, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_is_refused(name):
    model = HookedModel.wrap(tiny(name))
    with operated(model, Surgery()):
        model(random_tokens(model.hf, 1, 4))
        with pytest.raises(InputError, match=r"cache keeps no queries.*use_cache=False"):
            model.generate(random_tokens(model.hf, 1, 4), max_new_tokens=2)
    assert _hooks(model) == 0


def test_attention_dropout_is_refused():
    model = HookedModel.wrap(tiny("gpt2", attn_pdrop=0.1))
    model.hf.train()
    with operated(model, Surgery()):
        with pytest.raises(InputError, match=r"attention dropout.*hf\.eval\(\)"):
            model(random_tokens(model.hf, 1, 4))
        model.hf.eval()
        model(random_tokens(model.hf, 1, 4))


def test_a_block_in_which_nothing_was_operated_on_is_refused():
    model, other = HookedModel.wrap(tiny("llama")), HookedModel.wrap(tiny("llama"))
    tokens = random_tokens(model.hf, 1, 4)
    with pytest.raises(InputError, match="no pass in this `operated` block"), operated(model, Surgery([(1, 0)])):
        other(tokens)
    with pytest.raises(InputError, match="did every capture stop below"), operated(model, Surgery([(1, 0)])):
        model.capture(tokens, ["resid_post.0"])
    with operated(model, Surgery()):
        model.capture(tokens, ["resid_post.0"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": math.nan}, "alpha=nan: expected a finite number"),
        ({"beta": math.inf}, "beta=inf: expected a finite number"),
        ({"planes": -1}, "planes=-1: expected how many to keep, 0 or more"),
        ({"modes": -3}, "modes=-3: expected how many"),
        ({"modes": True}, "modes=True: expected how many"),
        ({"level": "token"}, "level='token': expected one of position, kernel"),
        ({"heads": []}, "heads is empty"),
        ({"heads": [(0, -1)]}, r"heads holds \(0, -1\): expected pairs"),
        ({"level": "kernel", "key_means": {}}, "key_means at the kernel level.*level='position'"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    with pytest.raises(InputError, match=message):
        Surgery(**settings)


def _basis(level: str = "position", heads: int = 4, e: int = 16, key_mean=None) -> Basis:
    gram = _random_gram(heads, e)
    if level == "kernel":
        return factor_basis(gram[..., :e], gram[..., e:])
    return gram_basis(gram, key_mean=key_mean)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llama", {"heads": [(3, 0)]}, "layer 3, head 0.*3 layers loaded, 0 to 2"),
        ("llama", {"heads": [(0, 4)]}, "layer 0, head 4.*4 query heads, 0 to 3"),
        ("llama", {"planes": 2}, "needs `bases`.*depends on the tokens"),
        ("qwen3", {"level": "kernel"}, "qwen3 normalises queries and keys per head.*expected level='position'"),
        ("gemma3_text", {"level": "kernel", "planes": 1}, "no kernel to operate on"),
        ("gemma2", {"key_means": {0: torch.zeros(4, 16)}}, "soft-cap of gemma2.*Expected key_means=None"),
        ("llama", {"key_means": {0: torch.zeros(4, 16)}}, r"key_means of layer 1: none; expected \(4, 16\)"),
        ("llama", {"key_means": {0: torch.zeros(2, 16)}}, r"layer 0: \(2, 16\); expected \(4, 16\)"),
        ("llama", {"heads": [(1, 0)], "modes": 3, "bases": {0: _basis()}}, r"layer 1, but `bases` holds layers \[0\]"),
        ("llama", {"heads": [(1, 0)], "modes": 3, "bases": {1: _basis("kernel")}}, "of the kernel level and the surg"),
        ("llama", {"heads": [(1, 0)], "modes": 3, "bases": {1: _basis(heads=2)}}, "of 2 heads and width 16: "),
        ("llama", {"heads": [(1, 0)], "modes": 3, "bases": {1: _basis(e=8)}}, "of 4 heads and width 8: "),
        (
            "llama",
            {"heads": [(1, 0)], "modes": 3, "bases": {1: _basis(key_mean=torch.ones(4, 16))}},
            "made of other keys than the surgery's",
        ),
        (
            "llama",
            {"heads": [(1, 0)], "modes": 3, "bases": {1: _basis()}, "key_means": {1: torch.ones(4, 16)}},
            "made of other keys than the surgery's",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(name, settings, message):
    model = HookedModel.wrap(tiny(name))
    with pytest.raises(InputError, match=message), operated(model, Surgery(**settings)):
        model(random_tokens(model.hf, 1, 4))
    assert _hooks(model) == 0


def test_grams_of_the_wrong_kind_are_refused():
    with pytest.raises(InputError, match=r"\(4, 32, 32\), torch.float32: expected float64"):
        gram_basis(_random_gram().float())
    with pytest.raises(InputError, match=r"key_mean of shape \(2, 16\): expected \(4, 16\)"):
        inspect.unwrap(gram_basis)(_random_gram(), key_mean=torch.zeros(2, 16))


def test_a_flash_attention_padding_mask_is_refused():
    model = HookedModel.wrap(tiny("llama"))
    attn = model.anatomy.at(model.hf, 0, "self_attn")
    cos = sin = torch.zeros(1, 4, 16)
    with (
        operated(model, Surgery()),
        pytest.raises(InputError, match=r"mask of shape \(1, 4\): surgery takes \(b, 1, t, s\)"),
    ):
        model(random_tokens(model.hf, 1, 4))
        attn(torch.zeros(1, 4, 48), position_embeddings=(cos, sin), attention_mask=torch.ones(1, 4))
