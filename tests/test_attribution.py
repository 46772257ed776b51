"""Direct logit attribution: it is complete, and its parts are those of an independent computation."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import attribution
from interp.errors import InputError
from interp.lens import Component, direct_logit_attribution
from interp.model import HookedModel
from interp.sites import Point, Site
from tests.plain_surgery import operate
from tests.tiny_models import VARIANTS, random_tokens, tiny
from tests.wrapped_models import T, wrapped


def uncapped(model: HookedModel, logits: Tensor) -> Tensor:
    cap = model.cfg.final_cap
    return logits if cap is None else torch.atanh(logits / cap) * cap


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("neurons", [False, True, [1]])
def test_the_components_sum_to_the_logits(name, neurons):
    model = wrapped(name)
    tokens, lengths = random_tokens(model.hf, 3, T), torch.tensor([T, 4, 9])
    found = direct_logit_attribution(model, tokens, lengths=lengths, neurons=neurons)
    truth = torch.stack([operate(model.hf, tokens[i : i + 1, :n])[0][0, -1] for i, n in enumerate(lengths.tolist())])
    truth = uncapped(model, truth)
    torch.testing.assert_close(found.values.double().sum(-1), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits.double(), truth, rtol=1e-4, atol=1e-4)
    assert len(found.components) == found.values.shape[-1] == len(set(found.components))
    heads, split = model.cfg.n_heads * model.cfg.n_layers, model.cfg.d_mlp
    assert sum(c.kind == "attn" for c in found.components) == heads
    expected = {False: 0, True: split * model.cfg.n_layers}.get(neurons, split) if neurons != [1] else split
    assert sum(c.kind == "mlp" and c.part is not None for c in found.components) == expected


def parameter(module: Any) -> Tensor:
    return module.weight.detach()


def frozen_norm(model: HookedModel, x: Tensor, gain: Tensor):
    """The norm's slope at x, as a function of a part of its input, in float64 by the definition."""
    spec = model.cfg
    gain = gain.double() + (1 if spec.norm == "rms_offset" else 0)

    def centred(y: Tensor) -> Tensor:
        return y - y.mean(-1, keepdim=True) if spec.norm == "layer" else y

    sigma = (centred(x).square().mean(-1, keepdim=True) + spec.norm_eps).sqrt()
    return lambda part: centred(part) / sigma * gain


@pytest.mark.parametrize("name", ["llama_biased", "gemma2", "gemma3_text", "gpt2", "gpt_neox"])
def test_heads_and_neurons_are_what_their_removal_takes_from_the_frozen_norms(name):
    """Independent: the block's output with and without the part, each through the slopes of the norms behind it."""
    model = wrapped(name)
    hf: Any = model.hf
    tokens, targets = random_tokens(hf, 2, T), torch.tensor([5, 50, 96])
    found = direct_logit_attribution(model, tokens, targets, neurons=True)
    _, kept = operate(hf, tokens)
    n = model.cfg.n_layers - 1
    norm, head = parameter(model.anatomy.ln_final(hf)), parameter(model.anatomy.unembed(hf))
    final, W = frozen_norm(model, kept[Site(Point.RESID_POST, n)][:, -1], norm), head[targets].double()
    for point, path, post, kind, part in (
        (Point.Z, model.anatomy.o, model.anatomy.attn_out, "attn", 2),
        (Point.MLP_POST, model.anatomy.mlp_post, model.anatomy.mlp_out, "mlp", 17),
    ):
        values = kept[Site(point, 1)][:, -1]
        only = torch.zeros_like(values)
        only[:, part] = values[:, part]
        linear = model.anatomy.at(hf, 1, path)
        with torch.no_grad():
            both, one, none = (linear.double()(x.flatten(1)) for x in (values, only, torch.zeros_like(values)))
            linear.float()
        written = one - none
        if "gemma" in name:
            written = frozen_norm(model, both, parameter(model.anatomy.at(hf, 1, post)))(written)
        expected = torch.einsum("kd,bd->bk", W, final(written))
        index = found.components.index(Component(kind, 1, part))
        torch.testing.assert_close(found.values[..., index].double(), expected, rtol=1e-3, atol=1e-5)
        assert expected.abs().max() > 1e-3


def test_an_attention_bias_and_the_positions_have_their_own_shares():
    model = wrapped("gpt2")
    tokens = random_tokens(model.hf, 2, T)
    found = direct_logit_attribution(model, tokens, torch.tensor([[3], [4]]), position=2, neurons=[0])
    names = [str(c) for c in found.components]
    assert names[:7] == ["embed", "positions", *(f"attn.0[{h}]" for h in range(4)), "attn_bias.0"]
    assert names[-1] == "bias" and "mlp_bias.0" in names and "mlp.1" in names and "mlp.0[191]" in names
    assert found.of("attn", 1).shape == (2, 1, 4) and found.of("mlp").shape == (2, 1, 192 + 2)
    lone = direct_logit_attribution(model, tokens[:, :3], torch.tensor([[3], [4]]), neurons=[0])
    torch.testing.assert_close(found.values, lone.values, rtol=1e-4, atol=1e-5)  # position 2 sees positions 0 to 2
    llama = wrapped("llama")
    assert "positions" not in map(str, direct_logit_attribution(llama, tokens, torch.tensor([3])).components)


def test_a_scale_not_held_fixed_would_not_add_up():
    """The converse of completeness: the parts through their own norms do not sum to the logits."""
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, T)
    found = direct_logit_attribution(model, tokens, torch.tensor([9]))
    norm, head = model.anatomy.ln_final(model.hf), model.anatomy.unembed(model.hf)
    sites = [Site(Point.EMBED)] + [Site(p, i) for i in range(3) for p in (Point.ATTN_OUT, Point.MLP_OUT)]
    with torch.no_grad():
        parts = model.capture(tokens, sites)
        naive = sum(head(norm(parts[s][:, -1]))[0, 9] for s in sites)  # pyright: ignore
    assert abs(float(naive - found.logits[0, 0])) > 0.1


def test_what_cannot_be_attributed_is_refused():
    model = wrapped("gpt2")
    tokens = random_tokens(model.hf, 2, T)
    with pytest.raises(InputError, match=r"neurons of layers \[3\]: the model has layers 0 to 2"):
        direct_logit_attribution(model, tokens, neurons=[3])
    with pytest.raises(InputError, match="token ids below 97"):
        direct_logit_attribution(model, tokens, torch.tensor([97]))
    with pytest.raises(InputError, match="one number, or one for each of 2 rows"):
        inspect.unwrap(direct_logit_attribution)(model, tokens, position=torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match=r"do not lie within the rows' lengths, \[11, 3\]"):
        direct_logit_attribution(model, tokens, lengths=torch.tensor([11, 3]), position=4)
    with pytest.raises(InputError, match="no component of kind 'head' in layer None; there are embed, positions, attn"):
        direct_logit_attribution(model, tokens, torch.tensor([1])).of("head")
    hf = tiny("gpt2")
    hf.transformer.h[0].attn.c_proj.weight.data = hf.transformer.h[0].attn.c_proj.weight.data[:, :, None]  # pyright: ignore
    with pytest.raises(InputError, match="load the model without quantisation"):
        attribution._writer(HookedModel.wrap(hf), 0, "attn.c_proj")
