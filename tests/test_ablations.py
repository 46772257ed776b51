"""Ablations write what they say, where they say, and read no padding."""

import inspect
from typing import Any

import pytest
import torch

from interp.ablations import HOW, ablation, donors
from interp.errors import InputError
from interp.patching import Run
from interp.sites import Site
from tests.plain_surgery import operate
from tests.tiny_models import random_tokens
from tests.wrapped_models import T, wrapped


def site(text: str) -> Site:
    return Site.parse(text)


def run_of(name: str, lengths: list[int]) -> Run:
    return Run(random_tokens(wrapped(name).hf, len(lengths), T, seed=3), torch.tensor(lengths))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("text", ["z.1[2]", "mlp_out.1", "attn_out.0"])
def test_zero_and_mean_against_plain_surgery(name, text):
    model, s = wrapped(name), site(text)
    reference, tokens = run_of(name, [T, 5, 8]), random_tokens(wrapped(name).hf, 2, T, seed=9)
    rows = []
    for row, length in enumerate(reference.row_lengths.tolist()):
        value = operate(model.hf, reference.tokens[row : row + 1, :length])[1][Site(s.point, s.layer)][0]
        rows.append(value if s.head is None else value[:, s.head])
    mean = torch.cat(rows).mean(0)
    for how, given, value in (("zero", None, torch.zeros_like(mean)), ("mean", reference, mean)):
        expected, _ = operate(model.hf, tokens, {s: lambda x, value=value: value.expand_as(x)})
        kind: Any = how
        with torch.no_grad(), model.edited(ablation(model, [s], how=kind, reference=given)):
            torch.testing.assert_close(model(tokens).double(), expected, rtol=1e-4, atol=2e-5)
    assert mean.abs().max() > 1e-2


def test_the_mean_at_each_position_is_over_the_rows_that_reach_it():
    model, s = wrapped("gpt2"), site("mlp_out.0")
    reference, tokens = run_of("gpt2", [T, 5, 8]), random_tokens(wrapped("gpt2").hf, 2, T, seed=9)
    value = model.capture(reference.tokens, [s], lengths=reference.lengths)[s]
    edits = ablation(model, [s], how="mean", reference=reference, per_position=True)
    with torch.no_grad(), model.edited(edits):
        found = model.capture(tokens, [s])[s]
    torch.testing.assert_close(found[1, 2], value[:, 2].mean(0))
    torch.testing.assert_close(found[0, 6], value[[0, 2], 6].mean(0))
    torch.testing.assert_close(found[0, 10], value[0, 10])
    longer = ablation(model, [s], how="mean", reference=Run(tokens[:, :4]), per_position=True)
    with pytest.raises(InputError, match="the run has 11 positions, the reference of the mean only 4"):
        with model.edited(longer):
            model(tokens)


def test_resampling_gives_whole_rows_of_others():
    model, sites = wrapped("llama"), [site("z.1[0]"), site("mlp_out.1")]
    run = run_of("llama", [T, 5, 8, T, 6])
    values = model.capture(run.tokens, sites, lengths=run.lengths)
    with torch.no_grad(), model.edited(ablation(model, sites, how="resample", reference=run, seed=4)):
        found = model.capture(run.tokens, sites, lengths=run.lengths)
    givers = donors(run.row_lengths, run.row_lengths, 4).tolist()
    for row, giver in enumerate(givers):
        length = int(run.row_lengths[row])
        assert giver != row and run.row_lengths[giver] >= length
        for s in sites:
            assert torch.equal(found[s][row, :length], values[s][giver, :length])
    assert len({tuple(donors(run.row_lengths, run.row_lengths, seed).tolist()) for seed in range(20)}) > 3
    with pytest.raises(InputError, match="row 0 of the run has 11 tokens, and no other row"):
        donors(torch.tensor([11, 3]), torch.tensor([11, 3]), 0)


@pytest.mark.parametrize("how", HOW)
def test_only_the_listed_positions_change(how):
    model, s = wrapped("gpt2"), site("attn_out.1")
    run = run_of("gpt2", [T, T, 8])
    before = model.capture(run.tokens, [s], lengths=run.lengths)[s]
    reference = None if how == "zero" else run
    with torch.no_grad(), model.edited(ablation(model, [s], how=how, reference=reference, positions=[0, -1])):
        after = model.capture(run.tokens, [s], lengths=run.lengths)[s]
    changed = (after != before).any(-1)
    expected = torch.zeros(3, T, dtype=torch.bool)
    expected[:, 0] = expected[:2, T - 1] = expected[2, 7] = True
    assert torch.equal(changed, expected)


def test_what_cannot_be_meant_is_refused():
    model, run = wrapped("gpt2"), run_of("gpt2", [T, T])
    with pytest.raises(InputError, match="expected one of zero, mean, resample"):
        inspect.unwrap(ablation)(model, ["z.0"], how="noise")
    with pytest.raises(InputError, match="mean ablation needs a reference run"):
        ablation(model, ["z.0"], how="mean")
    with pytest.raises(InputError, match="zero ablation takes no reference run"):
        ablation(model, ["z.0"], how="zero", reference=run)
    with pytest.raises(InputError, match="per_position belongs to mean ablation"):
        ablation(model, ["z.0"], how="resample", reference=run, per_position=True)
    with pytest.raises(InputError, match="the run has 11 positions, the reference only 4"):
        with model.edited(ablation(model, ["z.0"], how="resample", reference=Run(run.tokens[:, :4]))):
            model(run.tokens)
