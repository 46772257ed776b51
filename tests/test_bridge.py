"""A bridge shares the model's storage, agrees with it, and leaves its modules, keys and hooks as they were."""

import sys

import pytest
import torch
from torch import nn

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from tests.tiny_models import FAMILIES, random_tokens, tiny


def hooks(module: nn.Module):
    """Every hook of every module, by identity."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return {(name, kind): list(getattr(m, kind)) for name, m in module.named_modules() for kind in kinds}


def modules(module: nn.Module):
    return [(name, id(m)) for name, m in module.named_modules()]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """A model, what it was before, and its bridge."""
    model = HookedModel.wrap(tiny(request.param))
    state = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.hf.state_dict().items()}
    before = (
        state,
        modules(model.hf),
        hooks(model.hf),
        model.hf.config.to_dict(),
        model.hf.config._attn_implementation,
    )
    return model, before, model.bridge()


def test_the_model_stays_as_it_was(pair):
    model, (state, tree, hooked, config, attention), _ = pair
    now = model.hf.state_dict()
    assert list(now) == list(state) and all(
        now[n].data_ptr() == p and torch.equal(now[n], x) for n, (p, x) in state.items()
    )
    assert modules(model.hf) == tree and hooks(model.hf) == hooked and not any(hooked.values())
    assert model.hf.config.to_dict() == config and model.hf.config._attn_implementation == attention


def test_storage_is_shared(pair):
    model, _, bridge = pair
    theirs = {p.data_ptr() for p in bridge.parameters()}
    ours = {p.data_ptr() for p in model.hf.parameters()}
    assert ours <= theirs
    tokens = random_tokens(model.hf, 1, 6)
    weight = model.anatomy.at(model.hf, 1, model.anatomy.mlp_post).weight
    with torch.no_grad():
        before, saved = bridge(tokens), weight.clone()
        weight.mul_(2)
        changed, direct = bridge(tokens), model(tokens)
        weight.copy_(saved)
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(changed, direct, rtol=1e-4, atol=1e-4)


def test_logits_and_streams_agree(pair):
    model, _, bridge = pair
    tokens = random_tokens(model.hf, 2, 11)
    sites = [Site.parse(f"resid_post.{i}") for i in range(model.cfg.n_layers)]
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
        ours = model.capture(tokens, sites)
        torch.testing.assert_close(logits, model(tokens), rtol=1e-5, atol=2e-5)
    for site in sites:
        torch.testing.assert_close(cache[str(site)], ours[site], rtol=1e-5, atol=2e-5)


def test_folding_the_bridge_leaves_the_model_alone():
    model = HookedModel.wrap(tiny("llama"))
    state = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    bridge = model.bridge()
    bridge.enable_compatibility_mode()
    now = model.hf.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())


def test_the_tokenizer_is_not_touched_and_tokenises_alike(smollm2):
    padding, pad = smollm2.tokenizer.padding_side, smollm2.tokenizer.pad_token_id
    bridge = smollm2.bridge()
    assert (smollm2.tokenizer.padding_side, smollm2.tokenizer.pad_token_id) == (padding, pad)
    text = "In 1234 there were  12.5% of x."
    ids = torch.tensor([smollm2.tokenizer(text).input_ids])
    assert torch.equal(bridge.to_tokens(text, prepend_bos=False).cpu(), ids)
    with torch.no_grad():
        torch.testing.assert_close(bridge(ids), smollm2(ids), rtol=1e-4, atol=1e-3)


def test_what_cannot_be_bridged(monkeypatch):
    model = HookedModel.wrap(tiny("llama"))
    with pytest.raises(InputError, match=r"leave the `with` block first"):
        with model.edited({Site.parse("resid_post.0"): lambda x, where: x}):
            model(random_tokens(model.hf, 1, 3))
            model.bridge()
    with pytest.raises(InputError, match=r"need the unembedding"):
        HookedModel.wrap(model.hf.base_model).bridge()
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    with pytest.raises(InputError, match=r"transformer-lens 3.9 is missing.*pip install"):
        model.bridge()
