"""Edits: the identity changes nothing, others change exactly what they should, and nothing stays behind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from interp.compat import all_sites
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Point, Site
from interp.taps import DERIVED
from tests.tiny_models import FAMILIES, random_tokens, tiny
from tests.wrapped_models import T, hooks_of, wrapped

EDITABLE = [point for point in Point if point not in DERIVED]


def site(text: str) -> Site:
    return Site.parse(text)


@pytest.mark.parametrize("name", [*FAMILIES, "llama_biased", "gpt_neox_sequential"])
def test_the_identity_at_every_site_changes_no_logit_bit(name):
    model = wrapped(name)
    tokens = random_tokens(model.hf, 2, T)
    sites = [s for s in all_sites(model) if s.point in EDITABLE and s.layer in (None, 0, model.cfg.n_layers - 1)]
    sites += [Site(s.point, s.layer, 1) for s in sites if s.point.per_head]
    with torch.no_grad():
        plain = model(tokens)
        for s in sites:
            with model.edited({s: lambda x, where: x}):
                assert torch.equal(model(tokens), plain), s
        with model.edited({s: lambda x, where: x.clone() for s in sites}):
            assert torch.equal(model(tokens), plain)
    assert len(model.board) == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_the_identity_is_exact_in_bfloat16_and_with_gradients(name):
    for dtype, grad in ((torch.bfloat16, False), (torch.float32, True)):
        hf = tiny(name).to(dtype)
        model = HookedModel.wrap(hf)
        tokens = random_tokens(hf, 2, T)
        with torch.set_grad_enabled(grad):
            plain = model(tokens)
            for s in (s for s in all_sites(model) if s.point in EDITABLE):
                with model.edited({s: lambda x, where: x}):
                    assert torch.equal(model(tokens), plain), s


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "gpt_neox", "gpt_neox_sequential"])
def test_captures_show_the_edited_value_and_what_follows_from_it(name):
    """Setting a site to what it was in another run: from there on, everything is that other run."""
    model = wrapped(name)
    tokens, other = random_tokens(model.hf, 1, T, seed=1), random_tokens(model.hf, 1, T, seed=2)
    with torch.no_grad():
        target, theirs = model.run_recorded(other, all_sites(model))
        for point in (Point.RESID_PRE, Point.RESID_MID, Point.RESID_POST):
            s = Site(point, 1)
            if model.anatomy.missing(point):
                continue
            with model.edited({s: lambda x, where, s=s: theirs[s]}):
                logits, found = model.run_recorded(tokens, all_sites(model))
            assert torch.equal(logits, target)
            for later in (x for x in all_sites(model) if not x < s):
                assert torch.equal(found[later], theirs[later]), (s, later)


def mid_by_hand(hf: nn.Module, name: str, layer: int, tokens: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of one block with its middle stream edited, from the block's own parts, called one by one."""
    model, seen = HookedModel.wrap(hf), {}
    block, anatomy = model.anatomy.blocks(hf)[layer], model.anatomy
    handle = block.register_forward_pre_hook(lambda m, a, k: seen.update(args=a, kwargs=k), with_kwargs=True)
    hf(tokens, use_cache=False)
    handle.remove()
    x, kwargs = seen["args"][0], seen["kwargs"]
    if name == "gpt2":
        mid = edit(x + block.attn(block.ln_1(x), attention_mask=seen["args"][2])[0])
        return mid + block.mlp(block.ln_2(mid))
    part = block.get_submodule(anatomy.attn)(block.input_layernorm(x), **kwargs)[0]
    if name == "gemma2":
        mid = edit(x + block.post_attention_layernorm(part))
        return mid + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid)))
    mid = edit(x + part)
    return mid + block.mlp(block.post_attention_layernorm(mid))


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2", "gpt_neox_sequential"])
def test_an_edited_resid_mid_reaches_the_mlp_and_the_sum(name):
    model = wrapped(name)
    tokens, s = random_tokens(model.hf, 2, T), site("resid_mid.1")

    def edit(x: Tensor) -> Tensor:
        return 0.5 * x.flip(-1) + 3

    with torch.no_grad():
        expected = mid_by_hand(model.hf, name, 1, tokens, edit)
        with model.edited({s: lambda x, where: edit(x)}):
            found = model.capture(tokens, ["resid_post.1", s, "resid_pre.1", "attn_out.1"])
        torch.testing.assert_close(found[site("resid_post.1")], expected)
        assert torch.equal(found[s], edit(found[site("resid_pre.1")] + found[site("attn_out.1")]))


def test_resid_mid_is_exact_beside_massive_activations():
    """A small value written over a stream of 10^6 must arrive as it is, not as the rounding error of a difference."""
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    small = torch.full((1, T, 48), 1e-3)
    edits = {
        site("resid_pre.1"): lambda x, where: torch.full_like(x, 1e6),
        site("mlp_out.1"): lambda x, where: torch.zeros_like(x),
        site("resid_mid.1"): lambda x, where: small,
    }
    with torch.no_grad(), model.edited(edits):
        assert torch.equal(model.capture(tokens, ["resid_post.1"])[site("resid_post.1")], small)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_norm_edits_pass_through_gain_and_bias(name):
    model = wrapped(name)
    tokens, s = random_tokens(model.hf, 2, T), site("ln1.1")
    norm = model.anatomy.at(model.hf, 1, model.anatomy.ln1)
    new = torch.randn(2, T, 48, generator=torch.Generator().manual_seed(0))
    gain = 1 + norm.weight if name == "gemma2" else norm.weight
    with torch.no_grad():
        with model.edited({s: lambda x, where: new}):
            found = model.capture(tokens, [s, "q.1", "v.1"])
        assert torch.equal(found[s], new)
        read = new * gain + getattr(norm, "bias", 0)
        attn = model.anatomy.at(model.hf, 1, model.anatomy.attn)
        q = attn.c_attn(read)[..., :48] if name == "gpt2" else attn.q_proj(read)
        torch.testing.assert_close(found[site("q.1")].flatten(-2), q)


def test_nested_edits_compose_outer_first():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    for name in ("resid_mid.1", "ln1.1", "q.1", "resid_post.0", "z.1[2]", "mlp_post.2", "embed"):
        s, plain = site(name), {}
        with torch.no_grad():
            plain = model.capture(tokens, [s])[s]
            with model.edited({s: lambda x, where: x * 2}):
                with model.edited({s: lambda x, where: x + 1}):
                    torch.testing.assert_close(model.capture(tokens, [s])[s], plain * 2 + 1)
                    inside = model(tokens)
                torch.testing.assert_close(model.capture(tokens, [s])[s], plain * 2)
            with model.edited({s: lambda x, where: x * 2 + 1}):
                torch.testing.assert_close(model(tokens), inside, atol=1e-4, rtol=1e-4)


def test_resid_mid_and_resid_post_edits_compose_in_either_nesting():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    mid = {site("resid_mid.1"): lambda x, where: x + 1}
    out = {site("mlp_out.1"): lambda x, where: x * 2, site("resid_post.1"): lambda x, where: x * 3}
    with torch.no_grad():
        with model.edited(mid), model.edited(out):
            one = model(tokens)
        with model.edited(out), model.edited(mid):
            assert torch.equal(model(tokens), one)
        with model.edited({**out, **mid}):
            assert torch.equal(model(tokens), one)
            at = model.capture(tokens, ["resid_mid.1", "mlp_out.1", "resid_post.1"])
    assert torch.equal(at[site("resid_post.1")], 3 * (at[site("resid_mid.1")] + at[site("mlp_out.1")]))


def test_edits_may_change_their_argument_in_place():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)

    def zero(x: Tensor, where: object) -> Tensor:
        x[:, 3] = 0
        return x

    with torch.no_grad():
        before = model.capture(tokens, ["resid_post.0"])[site("resid_post.0")]
        with model.edited({site("resid_pre.1"): zero}):
            found = model.capture(tokens, ["resid_post.0", "resid_pre.1"])
    assert torch.equal(found[site("resid_post.0")], before)
    assert not found[site("resid_pre.1")][:, 3].any()


def test_where_tells_positions_and_lengths():
    model = wrapped("llama")
    tokens, lengths, seen = random_tokens(model.hf, 2, 6), torch.tensor([6, 2]), []

    def look(x: Tensor, where) -> Tensor:
        seen.append(where)
        return x

    with torch.no_grad(), model.edited({site("resid_post.1"): look}):
        model(tokens, lengths=lengths)
        model(tokens, lengths=lengths, padding="left")
        model(tokens)
    for where, expected in zip(seen, (lengths, lengths, torch.tensor([6, 6])), strict=True):
        assert torch.equal(where.positions, torch.arange(6).expand(2, 6))
        assert torch.equal(where.lengths, expected) and torch.equal(where.prompt, expected)


def test_hooks_are_gone_after_an_exception():
    model = wrapped("llama")
    tokens, before = random_tokens(model.hf, 1, T), hooks_of(model.hf)

    def fail(x: Tensor, where: object) -> Tensor:
        raise RuntimeError("from the edit")

    with torch.no_grad():
        plain = model(tokens)
        with pytest.raises(RuntimeError, match="from the edit"), model.edited({site("resid_mid.1"): fail}):
            model.capture(tokens, ["pattern.1", "resid_post.2"])
        with pytest.raises(KeyError), model.edited({site("q.1"): lambda x, where: x}):
            raise KeyError
        assert hooks_of(model.hf) == before and len(model.board) == 0
        assert torch.equal(model(tokens), plain)
        with pytest.raises(InputError, match="no pass is running"):
            _ = model.where


def test_a_pass_inside_a_pass_is_refused():
    """An edit that captures from the model it edits would fill the outer capture with the inner run's values."""
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, 4)
    for inner in (lambda: model.capture(tokens, ["resid_post.0"]), lambda: model(tokens)):
        with pytest.raises(InputError, match=r"another pass of this model is running. An edit must not run the model"):
            with torch.no_grad(), model.edited({site("resid_post.1"): lambda x, where, inner=inner: inner()}):
                model.capture(tokens, ["resid_post.0", "resid_post.2"])
    assert len(model.board) == 0
    with torch.no_grad():
        assert model(tokens).shape == (1, 4, 97)


def test_errors_say_what_was_expected():
    model = wrapped("llama")
    tokens, keep = random_tokens(model.hf, 1, 4), lambda x, where: x

    def run(edits, tokens=tokens) -> None:
        with torch.no_grad(), model.edited(edits):
            model(tokens)

    for name in ("pattern.1", "attn_scores.1", "rot_q.1", "rot_k.1"):
        with pytest.raises(InputError, match=r"cannot be edited: fused attention never forms it.*Edit q, k, v or z"):
            run({site(name): keep})
    with pytest.raises(
        InputError, match=r"the edits at z\.1, blocks\.1\.attn\.hook_z are at one site; make one edit of them"
    ):
        run({"z.1": keep, "blocks.1.attn.hook_z": keep})
    other = HookedModel.wrap(model.hf)
    with pytest.raises(InputError, match=r"run the model through this HookedModel \(an edit belongs to the one"):
        with torch.no_grad(), model.edited({site("z.1"): keep}):
            other(tokens)
    with pytest.raises(InputError, match="the model has 3 layers"):
        run({site("resid_post.7"): keep})
    with pytest.raises(InputError, match="returned NoneType: expected a tensor of shape \\(1, 4, 48\\)"):
        run({site("resid_post.1"): lambda x, where: None})
    with pytest.raises(InputError, match=r"returned \(1, 3, 48\) torch.float32: expected \(1, 4, 48\)"):
        run({site("resid_post.1"): lambda x, where: x[:, 1:]})
    with pytest.raises(InputError, match=r"returned \(1, 4, 48\) torch.float64"):
        run({site("resid_post.1"): lambda x, where: x.double()})
    with pytest.raises(InputError, match=r"edit at blocks.2.hook_resid_post never fired: 1 forward passes"):
        with torch.no_grad(), model.edited({site("resid_post.2"): keep}):
            model.capture(tokens, ["resid_post.0"])
    with pytest.raises(InputError, match="never fired: 0 forward passes of this model ran"):
        with model.edited({site("resid_post.2"): keep}):
            pass
    assert len(model.board) == 0


def test_a_learned_edit_gets_its_gradient_even_where_it_starts_at_zero():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, 6)
    for name in ("resid_mid.1", "ln2.1", "q.1", "z.1[0]"):
        s = site(name)
        width = 16 if s.point in (Point.Q, Point.Z) else 48
        direction = torch.zeros(width, requires_grad=True)
        with model.edited({s: lambda x, where, direction=direction: x + direction}):
            model(tokens)[0, -1, 5].backward()
        assert direction.grad is not None and direction.grad.abs().min() > 0, name
