"""Captures of a hooked model: what they hold, what runs for them, padding, gradients and errors."""

import inspect

import pytest
import torch
from torch import nn

from interp.compat import all_sites
from interp.errors import InputError
from interp.model import HookedModel
from interp.running import Frame
from interp.sites import Point, Site
from tests.tiny_models import VARIANTS, random_tokens, tiny
from tests.wrapped_models import T, hooks_of, wrapped


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_model_itself(name):
    model = wrapped(name)
    tokens = random_tokens(model.hf, 2, T)
    with torch.no_grad():
        assert torch.equal(model(tokens), model.hf(tokens, use_cache=False).logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_capturing_everything_changes_no_logit_and_leaves_no_hook(name):
    model = wrapped(name)
    tokens, before = random_tokens(model.hf, 2, T), hooks_of(model.hf)
    with torch.no_grad():
        logits, found = model.run_recorded(tokens, all_sites(model))
        assert logits is not None and torch.equal(logits, model.hf(tokens).logits)
    assert hooks_of(model.hf) == before
    assert set(found) == set(all_sites(model))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_stream_adds_up(name):
    model = wrapped(name)
    with torch.no_grad():
        _, at = model.run_with_cache(random_tokens(model.hf, 2, T))
    for layer in range(model.cfg.n_layers):
        after_attn = at["resid_pre", layer] + at["attn_out", layer]
        if not model.cfg.parallel:
            assert torch.equal(at["resid_mid", layer], after_attn)
        torch.testing.assert_close(at["resid_post", layer], after_attn + at["mlp_out", layer])
        if layer:
            assert torch.equal(at["resid_pre", layer], at["resid_post", layer - 1])


@pytest.mark.parametrize("name", VARIANTS)
def test_patterns_mix_values_into_z(name):
    """pattern · v = z of the fused attention: scale, cap, mask, window, RoPE, norms and groups must all be right."""
    model = wrapped(name)
    with torch.no_grad():
        _, at = model.run_with_cache(random_tokens(model.hf, 2, T))
    for layer in range(model.cfg.n_layers):
        pattern = at["pattern", layer]
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
        assert torch.equal(at["attn_scores", layer].isneginf(), pattern == 0)
        v = at["v", layer].repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, dim=2)
        torch.testing.assert_close(torch.einsum("bhts,bshe->bthe", pattern, v), at["z", layer], atol=1e-5, rtol=1e-5)
        window = model.cfg.window(layer)
        seen = torch.ones(T, T).tril() if window is None else torch.ones(T, T).tril().triu(1 - window)
        assert torch.equal((pattern > 0).float(), seen.expand_as(pattern))


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "gpt2", "gpt_neox"])
def test_one_head_is_a_slice_that_keeps_nothing_else_alive(name):
    model = wrapped(name)
    tokens = random_tokens(model.hf, 2, T)
    with torch.no_grad():
        for point in (p for p in model.anatomy.points() if p.per_head):
            axis = 1 if point in (Point.PATTERN, Point.ATTN_SCORES) else 2
            whole, head = Site(point, 1), Site(point, 1, 1)
            found = model.capture(tokens, [whole, head])
            torch.testing.assert_close(found[head], found[whole].select(axis, 1))
            assert found[head].untyped_storage().nbytes() == found[head].numel() * 4
            # Of a fused projection, q alone must not keep k and v.
            assert found[whole].untyped_storage().nbytes() == found[whole].numel() * 4


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_executes_no_later_module(name):
    model = wrapped(name)
    tokens, calls = random_tokens(model.hf, 1, 5), []
    blocks = model.anatomy.blocks(model.hf)
    last = [blocks[1], model.anatomy.at(model.hf, 0, model.anatomy.mlp_post), model.anatomy.ln_final(model.hf)]
    handles = [m.register_forward_pre_hook(lambda m, a: calls.append(m)) for m in (*blocks, *last[1:])]
    try:
        with torch.no_grad():
            for site, layers, mlp in (
                ("resid_post.0", 1, 1),
                ("resid_pre.1", 1, 1),
                ("attn_out.0", 1, 0),
                ("pattern.0", 1, 0),
                ("embed", 0, 0),
                ("ln1.1", 2, 1),
            ):
                calls.clear()
                model.capture(tokens, [site])
                # The test's own pre-hook is older than the capture's, so for resid_pre.1 it sees block 1 entered.
                entered = layers + (site == "resid_pre.1")
                assert sum(m in tuple(blocks) for m in calls) == entered, site
                assert calls.count(last[1]) == mlp and last[2] not in calls, site
            calls.clear()
            model.capture(tokens, ["resid_post.0"], stop=False)
            assert last[2] in calls
    finally:
        for handle in handles:
            handle.remove()


def test_transformers_own_output_capturing_works_after_a_stopped_run():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, 5)
    with torch.no_grad():
        model.capture(tokens, ["resid_post.0"])
        out = model.hf(tokens, output_hidden_states=True)
        assert len(out.hidden_states) == model.cfg.n_layers + 1
        assert model.hf(tokens).hidden_states is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_padding_changes_no_row(name):
    model = wrapped(name)
    tokens, lengths = random_tokens(model.hf, 3, T), torch.tensor([T, 4, 7])
    sites = all_sites(model)
    left = tokens.clone()
    for row, n in enumerate(lengths.tolist()):
        left[row] = torch.cat([torch.zeros(T - n, dtype=torch.long), tokens[row, :n]])
    with torch.no_grad():
        logits, right_found = model.run_recorded(tokens, sites, lengths=lengths)
        left_logits, left_found = model.run_recorded(left, sites, lengths=lengths, padding="left")
        assert logits is not None and left_logits is not None
        for row, n in enumerate(lengths.tolist()):
            alone_logits, alone = model.run_recorded(tokens[row : row + 1, :n], sites)
            assert alone_logits is not None
            assert torch.equal(left_logits[row, T - n :], logits[row, :n])
            torch.testing.assert_close(logits[row, :n], alone_logits[0], atol=1e-4, rtol=1e-4)
            for site in sites:
                two = site.point in (Point.PATTERN, Point.ATTN_SCORES)
                r = right_found[site][row][..., :n, :n] if two else right_found[site][row, :n]
                le = left_found[site][row][..., T - n :, T - n :] if two else left_found[site][row, T - n :]
                assert torch.equal(le, r), site
                torch.testing.assert_close(r, alone[site][0], atol=1e-4, rtol=1e-4, msg=str(site))


@pytest.mark.parametrize(
    ("name", "frozen", "h", "tolerance"),
    [
        ("gpt2", False, 1e-4, 1e-5),
        ("gpt2", True, 1e-4, 1e-5),
        ("gpt_neox_sequential", True, 1e-4, 1e-5),
        ("gpt_neox", False, 1e-4, 1e-5),
        # Their RMS norms compute in float32 even in a float64 model, which is all that a difference quotient sees.
        ("llama", True, 5e-3, 3e-2),
        ("gemma2", False, 5e-3, 3e-2),
        ("qwen3", True, 5e-3, 3e-2),
    ],
)
def test_gradients_flow_through_every_captured_site(name, frozen, h, tolerance):
    """The directional derivative of the logits by each site, against a central difference made with an edit."""
    hf = tiny(name).double()
    hf.requires_grad_(not frozen)
    model = HookedModel.wrap(hf)
    tokens, generator = random_tokens(hf, 1, 6), torch.Generator().manual_seed(3)
    weights = torch.randn(97, dtype=torch.float64, generator=generator)
    derived = (Point.ROT_Q, Point.ROT_K, Point.PATTERN, Point.ATTN_SCORES)
    sites = [site for site in all_sites(model) if site.point not in derived and site.layer in (None, 1)]
    for site in [*sites, Site(Point.Z, 1, 1), Site(Point.K, 1, 0)]:
        logits, found = model.run_recorded(tokens, [site])
        assert logits is not None
        (slope,) = torch.autograd.grad((logits @ weights).sum(), found[site])
        step = torch.randn(found[site].shape, dtype=torch.float64, generator=generator)

        def moved(by: float, site=site, step=step) -> float:
            with torch.no_grad(), model.edited({site: lambda x, where: x + by * step}):
                return float((model(tokens) @ weights).sum())

        expected = (moved(h) - moved(-h)) / (2 * h)
        assert float((slope * step).sum()) == pytest.approx(expected, rel=tolerance, abs=tolerance), site


@pytest.mark.parametrize(("name", "tolerance"), [("llama", 3e-2), ("gemma2", 3e-2), ("gpt2", 1e-5)])
def test_gradients_reach_derived_sites(name, tolerance):
    """Against a central difference; RMS norms and the softmax compute in float32 even in a float64 model."""
    model = HookedModel.wrap(tiny(name).double())
    tokens, generator = random_tokens(model.hf, 1, 6), torch.Generator().manual_seed(3)
    start, h = Site.parse("resid_pre.1"), 5e-3
    step = torch.randn(1, 6, 48, dtype=torch.float64, generator=generator)
    for end in map(Site.parse, ("attn_scores.1", "rot_k.1", "pattern.1") if name != "gpt2" else ("attn_scores.1",)):
        found = model.capture(tokens, [start, end])
        weights = torch.randn(found[end].shape, dtype=torch.float64, generator=generator)

        def seen(x: torch.Tensor, weights: torch.Tensor = weights) -> torch.Tensor:
            return (x.masked_fill(x.isinf(), 0) * weights).sum()

        def moved(by: float, end: Site = end, seen=seen) -> float:
            with torch.no_grad(), model.edited({start: lambda x, where: x + by * step}):
                return float(seen(model.capture(tokens, [end])[end]))

        (slope,) = torch.autograd.grad(seen(found[end]), found[start])
        expected = (moved(h) - moved(-h)) / (2 * h)
        assert float((slope * step).sum()) == pytest.approx(expected, rel=tolerance, abs=tolerance), end


def test_gradients_flow_through_left_padding():
    model = wrapped("llama")
    tokens, lengths, site = random_tokens(model.hf, 2, 6), torch.tensor([6, 3]), Site.parse("resid_mid.1")
    logits, found = model.run_recorded(tokens, [site], lengths=lengths, padding="left")
    assert logits is not None
    (slope,) = torch.autograd.grad(logits[1, -1].sum(), found[site])
    assert slope[1, 3:].abs().min() > 0 and not slope[0].any()


def test_inference_mode_and_no_grad_keep_no_graph():
    model = wrapped("llama")
    tokens, site = random_tokens(model.hf, 1, 6), Site.parse("q.1")
    with torch.inference_mode():
        assert model.capture(tokens, [site])[site].is_inference()
    with torch.no_grad():
        assert not model.capture(tokens, [site])[site].requires_grad


def test_a_headless_model_captures_but_gives_no_logits():
    whole = wrapped("llama")
    base = HookedModel.wrap(whole.hf.model)
    tokens = random_tokens(whole.hf, 1, 6)
    with torch.no_grad():
        for site in ("resid_post.2", "ln_final"):
            found, expected = base.capture(tokens, [site]), whole.capture(tokens, [site])
            assert torch.equal(found[Site.parse(site)], expected[Site.parse(site)])
        with pytest.raises(InputError, match="logits need the unembedding"):
            base(tokens)
        assert base.run_with_cache(tokens, "embed")[0] is None


class Int8Linear(nn.Module):
    """A stand-in for a quantised projection: no floating-point weight, and a forward of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.codes * self.scale).T


def test_quantised_projections_work_and_the_model_is_left_as_it_was():
    hf = tiny("llama")
    for layer in hf.model.layers:
        layer.self_attn.q_proj = Int8Linear(layer.self_attn.q_proj)
        layer.mlp.down_proj = Int8Linear(layer.mlp.down_proj)

    def state() -> list[object]:
        tensors = hf.state_dict(keep_vars=True).items()
        modules = [(n, id(m), len(m._forward_hooks)) for n, m in hf.named_modules()]
        return [
            *modules,
            *((n, id(x), x.data_ptr(), x.dtype, x.requires_grad, float(x.detach().sum())) for n, x in tensors),
        ]

    before, tokens = state(), random_tokens(hf, 1, 6)
    model = HookedModel.wrap(hf)
    with torch.no_grad():
        found = model.capture(tokens, ["q.1", "ln1.1"])
        module = hf.model.layers[1]
        read = found[Site.parse("ln1.1")] * module.input_layernorm.weight
        torch.testing.assert_close(found[Site.parse("q.1")].flatten(-2), module.self_attn.q_proj(read))
        with model.edited({Site.parse("mlp_out.1"): lambda x, where: x * 0}):
            at = model.capture(tokens, ["resid_mid.1", "resid_post.1"])
        assert torch.equal(*at.values())
    assert state() == before


class OwnBlock(nn.Module):
    """A block of our own that works in place, as hand-written models do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(self.a(x)).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x += self.o(z.transpose(1, 2).flatten(-2))
        x += self.down(self.up(self.b(x)).relu_())
        return x


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.stack = nn.Embedding(20, 8), nn.ModuleList([OwnBlock(), OwnBlock()])
        self.end, self.out = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, tokens):
        x = self.emb(tokens)
        for block in self.stack:
            x = block(x)
        return self.out(self.end(x))


def own_model() -> HookedModel:
    from interp.anatomy import Anatomy, ModelSpec

    torch.manual_seed(0)
    spec = ModelSpec(
        family="own", n_layers=2, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=16, d_vocab=20, n_ctx=32,
        norm="layer", gated=False, rotary=False,
    )  # fmt: skip
    paths = {"embed": "emb", "layers": "stack", "norm": "end", "head": "out", "ln1": "a", "attn": "", "ln2": "b"}
    paths |= {"q": "qkv", "k": "qkv", "v": "qkv", "fused": "blocks", "o": "o", "attn_out": "o"}
    paths |= {"mlp_pre": "up", "mlp_post": "down", "mlp_out": "down"}
    return HookedModel.wrap(Own(), anatomy=Anatomy(spec=spec, base="", mlp_pre_linear=None, **paths))


def test_a_model_of_our_own_through_an_explicit_anatomy():
    model = own_model()
    tokens = torch.arange(6)[None] + 3
    with torch.no_grad():
        logits, at = model.run_with_cache(tokens)
        assert torch.equal(logits, model.hf(tokens))
        x = model.hf.emb(tokens)
        assert torch.equal(at["embed"], x) and torch.equal(at["resid_pre", 0], x)
        for layer, block in enumerate(model.hf.stack):
            torch.testing.assert_close(at["mlp_pre", layer], block.up(block.b(at["resid_mid", layer])))
            torch.testing.assert_close(at["mlp_post", layer], at["mlp_pre", layer].relu())
            z = torch.einsum("bhts,bshe->bthe", at["pattern", layer], at["v", layer])
            torch.testing.assert_close(z, at["z", layer])
            torch.testing.assert_close(at["resid_mid", layer], at["resid_pre", layer] + at["attn_out", layer])
            torch.testing.assert_close(at["resid_post", layer], at["resid_mid", layer] + at["mlp_out", layer])


def test_errors_say_what_was_expected():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 2, 6)
    cases = [
        (lambda: model.capture(tokens, ["resid_post.3"]), "resid_post: the model has 3 layers, 0 to 2"),
        (lambda: model.capture(tokens, ["z.0[4]"]), "z has 4 heads, 0 to 3"),
        (lambda: model.capture(tokens, ["k.0[2]"]), "k has 2 heads, 0 to 1"),
        (lambda: model.capture(tokens, ["resid_past.0"]), "names no site"),
        (lambda: model.capture(tokens + 97, ["embed"]), "token ids from 10[0-9] to 1[0-9]+: expected 0 to 96"),
        (lambda: model.capture(tokens[:, :0], ["embed"]), "expected \\(sequences, positions\\)"),
        (lambda: model.capture(tokens, ["embed"], padding="left"), "padding='left' needs `lengths`"),
        (lambda: model.capture(tokens, ["embed"], lengths=torch.tensor([0, 6])), "expected 2 numbers from 1 to 6"),
        (lambda: model.capture(tokens, ["embed"], lengths=torch.tensor([7, 6])), "expected 2 numbers from 1 to 6"),
        (lambda: wrapped("gpt2").capture(tokens, ["rot_q.0"]), "gpt2 has no blocks.0.attn.hook_rot_q.*use q and k"),
        (lambda: wrapped("gpt2").capture(tokens, ["mlp_pre_linear.0"]), "its MLP is not gated"),
        (lambda: wrapped("gpt_neox").capture(tokens, ["resid_mid.0"]), "parallel residual"),
        (lambda: model.where, "no pass is running"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()


def test_tokens_and_lengths_of_the_wrong_kind_are_named():
    """What a user's Python lets through, past the type checks of the tests."""
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 2, 6)
    call, capture = inspect.unwrap(HookedModel.__call__), inspect.unwrap(HookedModel.capture)
    recorded, frame = inspect.unwrap(HookedModel.run_recorded), inspect.unwrap(Frame.of.__func__)
    for wrong, message in (
        (tokens[0], r"tokens of shape \(6,\): expected \(sequences, positions\)"),
        ([[1, 2]], r"tokens are of type list: expected a tensor of token ids.*to_tokens"),
        ("The capital", r"tokens are of type str: .*batch = model.to_tokens\(texts\)"),
        (tokens.float(), r"tokens of dtype torch.float32"),
    ):
        with pytest.raises(InputError, match=message):
            call(model, wrong)
        with pytest.raises(InputError, match=message):
            recorded(model, wrong, ["embed"])
    with pytest.raises(InputError, match=r"lengths are of type list: expected a tensor of 2 whole numbers"):
        frame(Frame, tokens, [6, 2], "right")
    with pytest.raises(InputError, match=r"lengths are torch.float32: expected a tensor of 2 whole numbers"):
        frame(Frame, tokens, torch.tensor([6.0, 2.0]), "right")
    with torch.no_grad():  # one site may stand for a list of one
        assert (
            list(capture(model, tokens, "z.1")) == list(model.capture(tokens, Site.parse("z.1"))) == [Site.parse("z.1")]
        )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_is_refused_where_it_would_falsify_gradients(name):
    hf = tiny(name).train()
    hf.activation_checkpointing_enable()
    model, site = HookedModel.wrap(hf), Site.parse("attn_out.1")
    tokens = random_tokens(hf, 1, 6)
    with pytest.raises(InputError, match=r"a second time in the backward pass.*switch it off"):
        with model.edited({site: lambda x, where: x * 2}):
            model(tokens)
    with pytest.raises(InputError, match=r"gradient checkpointing runs every block a second time"):
        model.capture(tokens, [site])
    with torch.no_grad():
        assert model.capture(tokens, [site])
    assert model(tokens).requires_grad
    hf.eval()
    assert model.capture(tokens, [site])[site].requires_grad


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("everything", [True, False])
def test_weights_that_accelerate_keeps_elsewhere(name, everything, tmp_path):
    """All weights on the meta device between calls, or those of one block on disk: device_map's two ways."""
    accelerate = pytest.importorskip("accelerate")
    whole, hf = wrapped(name), tiny(name).requires_grad_(False)
    if everything:
        hf = accelerate.cpu_offload(hf, torch.device("cpu"))
    else:
        base, layers = whole.anatomy.base, whole.anatomy.layers
        places = {f"{base}.{n}": "cpu" for n, _ in hf.get_submodule(base).named_children() if n != layers}
        places |= {f"{base}.{layers}.{i}": "disk" if i == 1 else "cpu" for i in range(whole.cfg.n_layers)}
        hf = accelerate.dispatch_model(hf, {**places, "lm_head": "cpu"}, main_device="cpu", offload_dir=str(tmp_path))
    assert any(p.is_meta for p in hf.parameters())
    model, tokens, sites = HookedModel.wrap(hf), random_tokens(whole.hf, 2, T), all_sites(whole)
    assert model.device == torch.device("cpu")
    with torch.no_grad():
        found, expected = model.run_recorded(tokens, sites)[1], whole.run_recorded(tokens, sites)[1]
        assert all(torch.equal(found[site], expected[site]) for site in sites)
        model.capture(tokens, ["q.1"])  # leaves block 1 in the middle of its call
        for site in map(Site.parse, ("ln1.1", "ln2.1", "resid_mid.1", "q.1", "ln_final")):
            edits = {site: lambda x, where: 2 * x}
            with model.edited(edits), whole.edited(edits):
                assert torch.equal(model(tokens), whole(tokens)), site
    assert torch.equal(model.generate(tokens, max_new_tokens=3), whole.generate(tokens, max_new_tokens=3))


def test_a_bypassed_module_is_reported():
    hf = tiny("llama")
    model = HookedModel.wrap(hf)
    hf.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(InputError, match=r"did not come by blocks.1.mlp.hook_pre.*replaced, bypassed or compiled"):
        model.capture(random_tokens(hf, 1, 4), ["mlp_pre.1"])
