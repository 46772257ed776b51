"""TransformerLens's spelling: names, filters, hook functions, stop_at_layer."""

import pytest
import torch

from interp.errors import InputError
from interp.sites import Site
from tests.tiny_models import random_tokens
from tests.wrapped_models import T, wrapped


def test_names_and_filters():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    with torch.no_grad():
        logits, everything = model.run_with_cache(tokens)
        assert torch.equal(logits, model(tokens))
        for names in (
            "blocks.1.hook_resid_post",
            ["resid_post.1", Site.parse("z.0")],
            lambda name: name.endswith("hook_z") or name == "hook_embed",
        ):
            _, cache = model.run_with_cache(tokens, names_filter=names)
            assert 0 < len(cache) <= 4
            for name, value in cache.items():
                assert torch.equal(value, everything[name])
    assert everything["z", 1] is everything["blocks.1.attn.hook_z"] is everything["z.1"]
    assert everything[Site.parse("z.1")] is everything["z", 1]
    assert everything.get("z.1") is everything["z", 1] and "z.1" in everything and ("z", 1) in everything
    assert ("q", 1) not in cache and cache.get(("q", 1)) is None and cache.get("q.1", 3) == 3
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.hook_q is not in this cache. It holds: hook_embed"):
        _ = cache["q", 1]
    with pytest.raises(InputError, match=r"true for no site.*hook_embed, blocks\.0\.hook_resid_pre"):
        model.run_with_cache(tokens, lambda name: name.endswith("hook_zz"))


def test_stop_at_layer_gives_the_stream_and_runs_no_further():
    model = wrapped("llama")
    tokens, called = random_tokens(model.hf, 1, T), []
    handle = model.hf.model.layers[2].register_forward_hook(lambda *_: called.append(1))
    try:
        with torch.no_grad():
            _, whole = model.run_with_cache(tokens)
            called.clear()
            stream, cache = model.run_with_cache(tokens, stop_at_layer=2)
            assert not called and torch.equal(stream, whole["resid_pre", 2])
            assert {Site.parse(n).layer for n in cache} == {None, 0, 1} and "ln_final.hook_normalized" not in cache
            stream, _ = model.run_with_cache(tokens, "embed", stop_at_layer=-1)
            assert not called and torch.equal(stream, whole["resid_pre", 2])
            stream, _ = model.run_with_cache(tokens, "embed", stop_at_layer=3)
            assert torch.equal(stream, whole["resid_post", 2])
    finally:
        handle.remove()


def test_names_that_the_stopped_run_does_not_reach_are_refused():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    for names in ("resid_post.2", ["embed", "ln_final"], lambda name: name == "ln_final.hook_normalized"):
        with pytest.raises(InputError, match=r"(resid_post|ln_final\S*): not reached with stop_at_layer=1"):
            model.run_with_cache(tokens, names, stop_at_layer=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, lambda name: name.endswith("resid_post"), stop_at_layer=1)
    assert list(dict.keys(cache)) == ["blocks.0.hook_resid_post"]


def test_hook_functions():
    model = wrapped("llama")
    tokens, seen = random_tokens(model.hf, 1, T), []

    def add(value, hook):
        seen.append((hook.name, hook.layer()))
        return value + 1

    def add_in_place(value, hook):
        value += 1

    with torch.no_grad():
        with model.edited({Site.parse("resid_post.1"): lambda x, where: x + 2}):
            expected = model(tokens)
        name = "blocks.1.hook_resid_post"
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value + 2)]), expected)
        torch.testing.assert_close(model.run_with_hooks(tokens, [(name, add), (name, add_in_place)]), expected)
        assert torch.equal(model.run_with_hooks(tokens), model(tokens))
        seen.clear()
        model.run_with_hooks(tokens, [(lambda n: n.endswith("hook_z"), add)])
    assert seen == [(f"blocks.{i}.attn.hook_z", i) for i in range(3)]
    with pytest.raises(InputError, match="names no site"):
        model.run_with_hooks(tokens, [("blocks.1.hook_resid_past", add)])
