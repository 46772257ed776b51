"""The independent forward pass against Hugging Face (logits) and against itself (batches, truncation, chosen sites)."""

import ast
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.plain import plain_run
from interp.sites import Point, Site
from tests.tiny_models import FAMILIES, VARIANTS, random_tokens, tiny

ROOT = Path(__file__).resolve().parents[1]


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """The worst position's largest deviation relative to its own size."""
    gap, size = (x.double().abs().amax(-1) for x in (a - b, b))
    return (gap / size).max().item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_agree_with_hugging_face(name: str, dtype: torch.dtype):
    model = tiny(name)
    tokens = random_tokens(model, 2, 40)
    with torch.no_grad():
        theirs = model(tokens).logits
    ours = plain_run(model.config.to_dict(), model.state_dict(), tokens, dtype=dtype).logits
    assert ours is not None and ours.dtype == dtype
    assert far(theirs, ours) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_what_each_sequence_gives_alone(name: str):
    model = tiny(name)
    config, weights, tokens = model.config.to_dict(), model.state_dict(), random_tokens(model, 3, 12)
    batch = plain_run(config, weights, tokens)
    for i in range(3):
        alone = plain_run(config, weights, tokens[i : i + 1])
        assert alone.sites.keys() == batch.sites.keys()
        for site, value in alone.sites.items():
            torch.testing.assert_close(batch.sites[site][i : i + 1], value, rtol=1e-11, atol=1e-11, msg=str(site))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stream_is_the_sum_of_what_was_added(name: str):
    model = tiny(name)
    sites = plain_run(model.config.to_dict(), model.state_dict(), random_tokens(model, 1, 12)).sites
    for layer in range(model.config.num_hidden_layers):
        pre, attn, mlp, post = (
            sites[Site(p, layer)] for p in (Point.RESID_PRE, Point.ATTN_OUT, Point.MLP_OUT, Point.RESID_POST)
        )
        torch.testing.assert_close(post, pre + attn + mlp)
        mid = sites.get(Site(Point.RESID_MID, layer))
        assert (mid is None) == bool(getattr(model.config, "use_parallel_residual", False))
        if mid is not None:
            torch.testing.assert_close(mid, pre + attn)


def test_fewer_layers_and_chosen_sites_are_the_same_numbers():
    model = tiny("gemma2")
    config, weights, tokens = model.config.to_dict(), model.state_dict(), random_tokens(model, 1, 12)
    whole = plain_run(config, weights, tokens)
    part = plain_run(config, weights, tokens, layers=2)
    assert part.logits is None
    assert max(site.layer for site in part.sites if site.layer is not None) == 1
    assert all(torch.equal(value, whole.sites[site]) for site, value in part.sites.items())
    chosen = plain_run(config, weights, tokens, sites=[Site.parse("z.1"), Site.parse("embed")])
    assert {str(site) for site in chosen.sites} == {"blocks.1.attn.hook_z", "hook_embed"}


def test_a_model_without_head_has_the_same_sites():
    model = tiny("llama")
    config, tokens = model.config.to_dict(), random_tokens(model, 1, 12)
    whole = plain_run(config, model.state_dict(), tokens)
    headless = plain_run(config, model.model.state_dict(), tokens)
    assert headless.logits is None
    assert all(torch.equal(value, whole.sites[site]) for site, value in headless.sites.items())


def test_a_pattern_is_a_distribution_over_the_window():
    model = tiny("mistral", sliding_window=4)
    sites = plain_run(model.config.to_dict(), model.state_dict(), random_tokens(model, 1, 10)).sites
    pattern = sites[Site.parse("pattern.1")]
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
    # "Each token can attend to at most W tokens" (Mistral): itself and the three before it.
    assert (pattern > 0).sum(-1)[0, 0].tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_it_shares_no_code_with_what_it_judges():
    allowed = {"torch", "jaxtyping", "math", "collections", "dataclasses", "typing"}
    for path in (ROOT / "interp/plain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name.startswith("interp.plain") or name in ("interp.sites", "interp.errors")
                assert own or name.split(".")[0] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, "no plain forward pass for model_type 'mamba'"),
        ("llama", {"hidden_act": "tanh"}, "activation 'tanh' has no plain form"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, r"layer_types\[0\] is 'chunked_attention'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is on"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "Gemma 3 has no attention soft-cap"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is on"),
    ],
)
def test_what_it_does_not_know_is_refused(name: str, changes: dict, message: str):
    model = tiny(name)
    with pytest.raises(InputError, match=message):
        plain_run(model.config.to_dict() | changes, model.state_dict(), random_tokens(model, 1, 4))


def test_bad_arguments_are_refused():
    model = tiny("llama")
    config, weights, tokens = model.config.to_dict(), model.state_dict(), random_tokens(model, 1, 4)
    with pytest.raises(InputError, match="between 0 and the model's 3, got 4"):
        plain_run(config, weights, tokens, layers=4)
    with pytest.raises(InputError, match=r"single heads: blocks.0.attn.hook_z\[1\]"):
        plain_run(config, weights, tokens, sites=[Site.parse("z.0[1]")])
    with pytest.raises(InputError, match=r"should hold 'model.embed_tokens.weight'; they hold a"):
        plain_run(config, {"a": torch.zeros(1)}, tokens)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(InputError, match=r"have no 'model.layers.1.self_attn.q_proj.weight'"):
        plain_run(config, weights, tokens)
