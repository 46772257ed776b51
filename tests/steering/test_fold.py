"""Folding and LoRA files: the weights do what the hooks did, and go back to what they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.steering.fold import fold, fold_in_place, folded, weight_changes
from interp.steering.lora import load_lora, lora_applied, save_lora
from interp.steering.scopes import Scope
from interp.steering.steering import Steering, steered
from tests.steering.steering_cases import FOLDED_SITES, affine, every_kind, foldable, padded, ragged
from tests.tiny_models import random_tokens, tiny
from tests.wrapped_models import wrapped

FIXTURES = Path(__file__).parents[1] / "fixtures" / "steering_lora"
FOLDABLE = ["llama", "llama_biased", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gpt_neox_sequential"]


def state(model: HookedModel) -> dict[str, tuple[int, torch.Tensor | None]]:
    """Every parameter: which object it is and its values, those that are missing included."""
    return {
        f"{name}.{key}": (id(value), None if value is None or value.is_meta else value.detach().clone())
        for name, module in model.hf.named_modules()
        for key, value in module._parameters.items()
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[name][0] == b[name][0] and (a[name][1] is None or torch.equal(a[name][1], b[name][1])) for name in a
    )


@pytest.mark.parametrize("family", FOLDABLE)
def test_folded_weights_give_the_logits_of_the_hooks_in_float64(family: str):
    model = HookedModel.wrap(tiny(family).double())
    tokens, lengths = padded(ragged(model), "right")
    steering, real = foldable(model, torch.float64), torch.arange(tokens.shape[1]) < lengths[:, None]
    before = state(model)
    sites = [*FOLDED_SITES, "attn_out.0", "resid_post.2"]
    with torch.no_grad():
        clean = model(tokens, lengths=lengths)
        with steered(model, steering):
            expected, acts = model.run_recorded(tokens, sites, lengths=lengths)
        with folded(model, steering):
            found, inside = model.run_recorded(tokens, sites, lengths=lengths)
            assert not same(state(model), before)
        copied = fold(model, steering)(tokens, lengths=lengths)
        assert same(state(model), before) and torch.equal(model(tokens, lengths=lengths), clean)
    assert expected is not None and found is not None
    for site in acts:
        torch.testing.assert_close(inside[site][real], acts[site][real], rtol=1e-12, atol=1e-12)
    # RMSNorm computes in float32 whatever the weights, so logits carry its rounding there.
    tolerance = 1e-12 if model.cfg.norm == "layer" else 1e-5
    torch.testing.assert_close(found[real], expected[real], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(copied[real], expected[real], rtol=tolerance, atol=tolerance)
    assert not torch.allclose(expected[real], clean[real], atol=0.1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_in_float32_folding_agrees_to_rounding_and_writes_the_same_tokens(family: str):
    model = wrapped(family)
    tokens, lengths = padded(ragged(model), "left")
    steering, real = foldable(model), torch.arange(tokens.shape[1]) >= tokens.shape[1] - lengths[:, None]
    again = fold(model, steering)
    options = {"lengths": lengths, "padding": "left"}
    with torch.no_grad(), steered(model, steering):
        expected = model(tokens, **options)
        text = model.generate(tokens, max_new_tokens=5, stop_tokens=(), **options)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens, **options)[real], expected[real], rtol=1e-4, atol=1e-4)
        for use_cache in (True, False):
            found = again.generate(tokens, max_new_tokens=5, stop_tokens=(), use_cache=use_cache, **options)
            assert torch.equal(found, text)
    assert not torch.equal(model.generate(tokens, max_new_tokens=5, stop_tokens=(), **options), text)


def test_the_changed_matrix_is_the_definition():
    """W' = (I + β U Vᵀ) W and b' = (I + β U Vᵀ) b + β (δ − U c), of a Conv1D, whose weight is kept transposed."""
    model = HookedModel.wrap(tiny("gpt2").double())
    edit = affine(1, dtype=torch.float64)
    module: Any = model.anatomy.at(model.hf, 1, "mlp.c_proj")
    a, b = edit.dense()
    w, bias = module.weight.detach().clone(), module.bias.detach().clone()
    with folded(model, Steering.of(model, {"mlp_out.1": edit})):
        torch.testing.assert_close(module.weight, w @ a.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(module.bias, a @ bias + b, rtol=1e-12, atol=1e-12)


def test_zero_strength_folds_to_the_same_numbers_and_foldings_nest():
    model = wrapped("llama")
    tokens = ragged(model)[0][None]
    before = state(model)
    with torch.no_grad():
        clean = model(tokens)
        with folded(model, foldable(model).at(0)):
            assert torch.equal(model(tokens), clean)
        one, two = (Steering.of(model, {"attn_out.1": affine(i)}) for i in (1, 5))
        with steered(model, one.then(two)):
            expected = model(tokens)
        first = fold_in_place(model, one)
        with folded(model, two, force=True):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ZeroDivisionError), folded(model, two, force=True):
            raise ZeroDivisionError
        with pytest.raises(InputError, match="made for another model"):  # the weights have changed
            two.check(model)
        first.unfold()
        first.unfold()
    assert same(state(model), before)


def refusal(model: HookedModel, site: str, edit=None, scope: Scope = "all") -> str:
    steering = Steering({Site.parse(site): edit or affine(1)}, scope)
    before = state(model)
    with pytest.raises(InputError) as caught:
        fold_in_place(model, steering)
    assert same(state(model), before)
    return str(caught.value)


def test_what_cannot_be_folded_is_refused_with_its_reason():
    llama = wrapped("llama")
    for site in ("embed", "resid_pre.1", "resid_mid.1", "resid_post.1"):
        assert "the residual stream is a sum of what many modules write" in refusal(llama, site)
    assert "no output that one matrix writes to the stream" in refusal(llama, "ln1.1")
    for family in ("gemma2", "gemma3_text"):
        for site in ("attn_out.1", "mlp_out.1"):
            assert "RMSNorm normalises what" in refusal(wrapped(family), site)
    for kind in ("diagonal", "clamp", "gated"):
        assert "only the low-rank maps of AffineEdit are folded" in refusal(llama, "attn_out.1", every_kind()[kind])
    for scope in ("prompt", "last-prompt", "generated", "mask"):
        assert f"the scope '{scope}' cannot be folded: weights act on every token" in refusal(
            llama, "attn_out.1", scope=scope
        )
    with pytest.raises(InputError, match="has hooks"), steered(llama, foldable(llama)):
        fold(llama, foldable(llama))


def test_the_reasons_are_true():
    """A norm behind the module: the folded map would not be the edit. Two users of a weight: the other would change."""
    model = HookedModel.wrap(tiny("gemma2").double())
    edit, site = affine(1, dtype=torch.float64), Site.parse("mlp_out.1")
    a, b = edit.dense()
    writer: Any = model.anatomy.at(model.hf, 1, "mlp.down_proj")
    tokens = random_tokens(model.hf, 1, 5)
    with torch.no_grad():
        with steered(model, Steering({site: edit})):
            expected = model(tokens)
        writer.weight.copy_(a @ writer.weight)
        writer.bias = nn.Parameter(b)
        assert not torch.allclose(model(tokens), expected, atol=1e-2)


def test_shared_quantised_adapted_and_absent_weights_are_refused():
    hf: Any = tiny("llama")
    hf.model.layers[2].mlp.down_proj.weight = hf.model.layers[0].mlp.down_proj.weight
    text = refusal(HookedModel.wrap(hf), "mlp_out.0")
    assert "model.layers.0.mlp.down_proj is shared with model.layers.2.mlp.down_proj (tied)" in text
    hf = tiny("llama")
    hf.model.layers[2].self_attn = hf.model.layers[1].self_attn
    assert "model.layers.2.self_attn.o_proj (tied)" in refusal(HookedModel.wrap(hf), "attn_out.1")

    class Linear4bit(nn.Linear):
        """Stands for a library's subclass that packs its weights."""

    hf = tiny("llama")
    packed = Linear4bit(64, 48, bias=False)
    hf.model.layers[1].self_attn.o_proj = packed
    assert "Linear4bit, quantised or adapted" in refusal(HookedModel.wrap(hf), "attn_out.1")
    hf = tiny("llama")
    hf.model.layers[0].mlp.down_proj.to("meta")
    assert "model.layers.0.mlp.down_proj is not in memory (offloaded)" in refusal(HookedModel.wrap(hf), "mlp_out.0")


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("family", ["llama", "llama_biased", "gpt2", "gpt_neox"])
def test_a_lora_file_does_what_the_hooks_do(family: str, tmp_path: Path):
    model = wrapped(family)
    steering, tokens = foldable(model), random_tokens(model.hf, 2, 9)
    before = state(model)
    save_lora(model, steering, tmp_path)
    with torch.no_grad():
        with steered(model, steering):
            expected = model(tokens)
        with lora_applied(model, tmp_path):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
        assert same(state(model), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    adapter = load_lora(tmp_path)
    assert adapter.provenance == steering.provenance
    for path, change in weight_changes(model, steering).items():
        torch.testing.assert_close(
            adapter.changes[path].B @ adapter.changes[path].A, change.B @ change.A, rtol=1e-5, atol=1e-6
        )
    with pytest.raises(InputError, match="made for another model"):
        with lora_applied(HookedModel.wrap(tiny(family, seed=4)), tmp_path):
            pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_file_means_what_peft_reads(family: str, tmp_path: Path):
    """y + scaling (lora_B (lora_A x)) on each module named, as PEFT's plain LoRA layer computes it."""
    model = wrapped(family)
    steering, tokens = foldable(model), random_tokens(model.hf, 2, 9)
    save_lora(model, steering, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert config["lora_bias"] and config["bias"] == "none" and config["fan_in_fan_out"] == (family == "gpt2")
    hf, keys = tiny(family), set()
    for name in config["target_modules"]:
        down, up, bias = names = [f"base_model.model.{name}.lora_{key}" for key in ("A.weight", "B.weight", "B.bias")]
        keys |= set(names)
        a, b = nn.Linear(tensors[down].shape[1], config["r"], bias=False), nn.Linear(config["r"], 48)
        a.weight, b.weight, b.bias = (nn.Parameter(tensors[key]) for key in (down, up, bias))

        def adapted(module, args, output, a=a, b=b):
            return output + b(a(args[0])) * (config["lora_alpha"] / config["r"])

        hf.get_submodule(name).register_forward_hook(adapted)
    assert keys == set(tensors)
    with torch.no_grad(), steered(model, steering):
        torch.testing.assert_close(hf(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_peft_made_these_logits_of_this_file(family: str, tmp_path: Path):
    """`fixtures/steering_lora` holds adapters written here and the logits of PEFT itself with them."""
    model, there = wrapped(family), FIXTURES / family
    expected = load_file(there / "expected.safetensors")
    save_lora(model, foldable(model), tmp_path)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, there))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-5, atol=1e-6)
    config = json.loads((there / "adapter_config.json").read_text())
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    with torch.no_grad(), steered(model, foldable(model)):
        torch.testing.assert_close(model(expected["tokens"]), expected["logits"], rtol=1e-4, atol=1e-4)


def test_adapters_that_are_not_understood_are_refused(tmp_path: Path):
    model = wrapped("llama")
    save_lora(model, foldable(model), tmp_path)
    config = tmp_path / "adapter_config.json"
    good = json.loads(config.read_text())
    for change, text in (
        ({"peft_type": "IA3"}, r"no LoRA adapter \(peft_type 'IA3'\)"),
        ({"use_dora": True, "rank_pattern": {"a": 1}}, "uses use_dora, rank_pattern, which is not read here"),
        ({"bias": "all"}, "retrains the model's own biases"),
        ({"r": 0}, "no usable r and lora_alpha"),
    ):
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=text):
            load_lora(tmp_path)
    config.write_text(json.dumps({**good, "lora_alpha": 2 * good["r"]}))  # another scaling is taken into account
    one, two = weight_changes(model, foldable(model)), load_lora(tmp_path).changes
    torch.testing.assert_close(
        two["model.layers.1.mlp.down_proj"].bias, 2 * one["model.layers.1.mlp.down_proj"].bias, rtol=1e-5, atol=1e-5
    )
    config.write_text(json.dumps(good))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for change, text in (
        ({"lora": torch.ones(1)}, "holds 'lora'; expected base_model.model.PATH"),
        ({"base_model.model.a.lora_A.weight": torch.ones(2, 2)}, "lacks lora_B of a"),
    ):
        save_file({**tensors, **change}, path)
        with pytest.raises(InputError, match=text):
            load_lora(tmp_path)
    extra = {f"base_model.model.nowhere.lora_{k}.weight": torch.ones(2, 2) for k in "AB"}
    save_file({**tensors, **extra}, path)
    with pytest.raises(InputError, match="changes nowhere, which LlamaForCausalLM does not have"):
        with lora_applied(model, tmp_path):
            pass
    save_file(
        {name: x[..., :1].clone() if "mlp" in name and "lora_A" in name else x.clone() for name, x in tensors.items()},
        path,
    )
    with pytest.raises(InputError, match="is 48 x 80, the change is 48 x 1: it is of another model"):
        with lora_applied(model, tmp_path):
            pass
