"""Patching against surgery on an independent forward pass, and the theorems that patches obey."""

import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.errors import InputError
from interp.model import HookedModel
from interp.patching import (
    Patch,
    PatchTable,
    Path,
    Run,
    activation_patching,
    head_sites,
    logit_difference,
    patch_edits,
    path_edits,
    path_patching,
    run_patched,
)
from interp.sites import Point, Site
from interp.taps import DERIVED
from tests.plain_surgery import operate
from tests.tiny_models import FAMILIES, random_tokens, tiny
from tests.wrapped_models import T, wrapped

SOME = ["llama", "gemma2", "gpt2", "gpt_neox"]


def site(text: str) -> Site:
    return Site.parse(text)


def two_runs(model: HookedModel, lengths: list[int] | None = None) -> tuple[Run, Run]:
    b = 2 if lengths is None else len(lengths)
    many = None if lengths is None else torch.tensor(lengths)
    return tuple(Run(random_tokens(model.hf, b, T, seed=s), many) for s in (1, 2))  # pyright: ignore[reportReturnType]


def last(token: int, lengths: Tensor | None = None):
    def metric(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits))
        return logits[rows, -1 if lengths is None else lengths - 1, token]

    return metric


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_every_site_from_the_same_run_changes_no_bit(name):
    model = wrapped(name)
    run, _ = two_runs(model)
    points = [p for p in model.anatomy.points() if p not in DERIVED]
    patches = [Patch(Site(p, 1 if p.in_block else None), run) for p in points]
    patches += [Patch(Site(p, 1, 0), run, (2, -1)) for p in points if p.per_head]
    with torch.no_grad():
        assert torch.equal(run_patched(model, run, patches), model(run.tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_stream_from_the_other_run_gives_its_logits(name):
    model = wrapped(name)
    clean, corrupt = two_runs(model)
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            found = run_patched(model, corrupt, [Patch(Site(Point.RESID_PRE, layer), clean)])
            assert torch.equal(found, model(clean.tokens)), layer
        # the converse: without the last position the last logits stay away from the clean ones
        short = run_patched(model, corrupt, [Patch(site("resid_pre.1"), clean, tuple(range(T - 1)))])
        assert (short[:, -1] - model(clean.tokens)[:, -1]).abs().max() > 1e-2
        assert torch.equal(short[:, : T - 1], model(clean.tokens)[:, : T - 1])


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("text", ["z.1[2]", "k.1[1]", "mlp_post.0", "attn_out.1", "resid_post.1"])
def test_a_patch_is_the_surgery_on_an_independent_forward_pass(name, text):
    model, s = wrapped(name), site(text)
    clean, corrupt = two_runs(model)
    _, theirs = operate(model.hf, clean.tokens)
    whole = theirs[Site(s.point, s.layer)]
    source = whole if s.head is None else whole[:, :, s.head]

    def write(x: Tensor) -> Tensor:
        x[:, [3, T - 2]] = source[:, [3, T - 2]]
        return x

    expected, _ = operate(model.hf, corrupt.tokens, {s: write})
    with torch.no_grad():
        found = run_patched(model, corrupt, [Patch(s, clean, (3, -2))])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
    assert (expected - operate(model.hf, corrupt.tokens)[0]).abs().max() > 1e-2, "the patch does something"


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_rows_of_unequal_length_are_patched_as_if_alone(name):
    model = wrapped(name)
    clean, corrupt = two_runs(model, [T, 6, 8])
    metric = last(7, clean.lengths)
    table = activation_patching(model, clean, corrupt, ["z.1[3]", "resid_pre.1"], metric, positions="each", show=False)
    tail = activation_patching(model, clean, corrupt, ["resid_pre.1"], metric, positions=[-3], show=False)
    assert table.values.shape == (2, T, 3)
    for row, length in enumerate(clean.row_lengths.tolist()):
        one, other = (Run(run.tokens[row : row + 1, :length]) for run in (clean, corrupt))
        sites = ["z.1[3]", "resid_pre.1"]
        single = activation_patching(model, one, other, sites, last(7), positions="each", show=False)
        np.testing.assert_allclose(table.values[:, :length, row], single.values[..., 0], rtol=1e-4, atol=1e-5)
        assert np.isnan(table.values[:, length:, row]).all()
        np.testing.assert_allclose(tail.values[0, 0, row], table.values[1, length - 3, row], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(table.clean[row], single.clean[0], rtol=1e-4, atol=1e-5)


def test_shares_run_from_nothing_to_everything_in_both_directions():
    model = wrapped("llama")
    clean, corrupt = two_runs(model)
    sites = ["resid_pre.0", "resid_post.2", "z.1[0]"]
    restored = activation_patching(model, clean, corrupt, sites, last(5), direction="denoising", show=False)
    lost = activation_patching(model, clean, corrupt, sites, last(5), direction="noising", show=False)
    for table in (restored, lost):
        np.testing.assert_allclose(table.share[:2, 0], 1.0)
        assert table.positions is None
    np.testing.assert_allclose(lost.values[0, 0], lost.corrupt)
    np.testing.assert_allclose(restored.values[0, 0], restored.clean)
    expected = (restored.values[2, 0] - restored.corrupt).sum() / (restored.clean - restored.corrupt).sum()
    np.testing.assert_allclose(restored.share[2, 0], expected)
    first = activation_patching(model, clean, corrupt, ["resid_post.1"], last(5), positions=[0], show=False)
    assert 1e-6 < abs(first.share[0, 0]) < 0.9, "one early position is not everything"


def test_the_table_survives_json():
    model = wrapped("gpt2")
    clean, corrupt = two_runs(model, [T, 5])
    made = activation_patching(
        model, clean, corrupt, head_sites(model, layers=[1]), last(3), positions="each", show=False
    )
    read = PatchTable.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert (read.sites, read.positions, read.direction) == (made.sites, made.positions, made.direction)
    for name in ("values", "clean", "corrupt", "share"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


def test_the_ready_metric_reads_the_last_real_token():
    logits = torch.arange(2 * 4 * 5.0).view(2, 4, 5).square()
    lengths, right, wrong = torch.tensor([4, 2]), torch.tensor([1, 4]), torch.tensor([0, 2])
    assert logit_difference(right)(logits).tolist() == [logits[0, 3, 1], logits[1, 3, 4]]
    found = logit_difference(right, wrong, lengths=lengths)(logits)
    assert found.tolist() == [logits[0, 3, 1] - logits[0, 3, 0], logits[1, 1, 4] - logits[1, 1, 2]]


# Paths


def stream_change(model: HookedModel, clean: Run, corrupt: Run, sender: Site) -> Tensor:
    """What the sender's corrupt value changes in the stream by its own block's output, by plain surgery."""
    _, theirs = operate(model.hf, corrupt.tokens)
    source = theirs[Site(sender.point, sender.layer)]
    source = source if sender.head is None else source[:, :, sender.head]
    out = Site(Point.ATTN_OUT if sender.point is Point.Z else Point.MLP_OUT, sender.layer)
    _, moved = operate(model.hf, clean.tokens, {sender: lambda x: source})
    return moved[out] - operate(model.hf, clean.tokens)[1][out]


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("receiver", ["q.2[1]", "z.2[3]", "mlp_post.1", "ln_final"])
@pytest.mark.parametrize("sender", ["z.0[1]", "mlp_post.0"])
def test_a_path_is_the_change_of_the_stream_read_by_the_receiver(name, sender, receiver):
    """By hand: the clean stream in front of the receiver, moved by the sender's change alone."""
    model, start, end = wrapped(name), site(sender), site(receiver)
    clean, corrupt = two_runs(model)
    change = stream_change(model, clean, corrupt, start)
    _, kept = operate(model.hf, clean.tokens)
    sees_mid = end.point is Point.MLP_POST and not model.cfg.parallel
    layer = model.cfg.n_layers - 1 if end.point is Point.LN_FINAL else end.layer
    stream = Site(
        Point.RESID_POST if end.point is Point.LN_FINAL else Point.RESID_MID if sees_mid else Point.RESID_PRE, layer
    )
    _, read = operate(model.hf, clean.tokens, {stream: lambda x: kept[stream] + change})
    value = read[Site(end.point, end.layer)]
    value = value if end.head is None else value[:, :, end.head]
    expected, _ = operate(model.hf, clean.tokens, {end: lambda x: value})
    with torch.no_grad(), model.edited(path_edits(model, clean, corrupt, Path(start, (end,)))):
        found = model(clean.tokens)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=3e-5)
    assert (expected - operate(model.hf, clean.tokens)[0]).abs().max() > 1e-3


def test_through_mlps_lets_them_follow():
    """Wang et al.: the receiver's stream is that of a run with only the heads held."""
    model, start, end = wrapped("gpt2"), site("z.0[1]"), site("q.2[1]")
    clean, corrupt = two_runs(model)
    _, mine = operate(model.hf, clean.tokens)
    _, theirs = operate(model.hf, corrupt.tokens)
    held = {Site(Point.ATTN_OUT, layer): (lambda x, layer=layer: mine[Site(Point.ATTN_OUT, layer)]) for layer in (1, 2)}
    _, frozen = operate(model.hf, clean.tokens, {start: lambda x: theirs[site("z.0")][:, :, 1], **held})
    expected, _ = operate(model.hf, clean.tokens, {end: lambda x: frozen[site("q.2")][:, :, 1]})
    found = {}
    for through in (True, False):
        path = Path(start, (end,), through_mlps=through)
        with torch.no_grad(), model.edited(path_edits(model, clean, corrupt, path)):
            found[through] = model(clean.tokens).double()
    torch.testing.assert_close(found[True], expected, rtol=1e-4, atol=3e-5)
    assert (found[False] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_with_one_path_only_path_patching_is_activation_patching(name):
    model = wrapped(name)
    clean, corrupt = two_runs(model)
    n = model.cfg.n_layers - 1
    one_path = f"mlp_post.{n}"
    args = clean, corrupt, [one_path, f"z.{n}[0]"]
    by_path = path_patching(model, *args, ["ln_final"], last(5), show=False)
    whole = activation_patching(model, *args, last(5), direction="noising", show=False)
    np.testing.assert_allclose(by_path.values[0], whole.values[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_path.share[0], whole.share[0], rtol=1e-4)
    assert (np.abs(by_path.values[1] - whole.values[1]) > 1e-3).any(), "the last MLP reads the head too"


def test_a_table_of_paths_is_each_path_by_itself():
    model = wrapped("gemma2")
    clean, corrupt = two_runs(model, [T, 7])
    senders = [site("z.0[1]"), site("mlp_post.0"), site("embed")]
    ends = (site("q.2[0]"), site("mlp_post.2"))
    metric = last(5, clean.lengths)
    table = path_patching(model, clean, corrupt, senders, ends, metric, positions=[-2], through_mlps=True, show=False)
    for sender, row in zip(senders, table.values[:, 0], strict=True):
        path = Path(sender, ends, positions=(-2,), through_mlps=True)
        with torch.no_grad(), model.edited(path_edits(model, clean, corrupt, path)):
            np.testing.assert_array_equal(row, metric(model(clean.tokens, lengths=clean.lengths)).double().numpy())
    assert len({*table.values[:, 0, 0], table.clean[0]}) == 4


def linear_model() -> HookedModel:
    """GPT-2 without norms, with linear MLPs and uniform attention: logits are an affine function of the embeddings."""
    hf = tiny("gpt2")
    body: Any = hf.transformer
    body.ln_f = nn.Identity()
    with torch.no_grad():
        for block in body.h:
            block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
            block.attn.c_attn.weight[:, :96] = 0
            block.attn.c_attn.bias[:96] = 0
    return HookedModel.wrap(hf)


FIRST_STEPS = ["resid_post.2", "mlp_post.0", "z.1", "mlp_post.1", "z.2", "mlp_post.2"]


@pytest.mark.parametrize("linear", [True, False])
def test_in_a_linear_model_the_effects_by_first_step_add_up(linear):
    """Every path from a head takes one first step: to the logits, to a later block's attention, or to an MLP."""
    model = linear_model() if linear else wrapped("gpt2")
    clean, corrupt = two_runs(model)
    sender = site("z.0[2]")
    with torch.no_grad():
        start = model(clean.tokens)
        total = run_patched(model, clean, [Patch(sender, corrupt)]) - start
        parts = torch.zeros_like(total)
        for step in FIRST_STEPS:
            with model.edited(path_edits(model, clean, corrupt, Path(sender, (site(step),)))):
                parts += model(clean.tokens) - start
    if linear:
        torch.testing.assert_close(parts, total, rtol=1e-4, atol=1e-4)
        assert total.abs().max() > 0.1
    else:
        assert (parts - total).abs().max() > 0.05 * total.abs().max()


def test_a_path_can_be_limited_to_positions():
    model = wrapped("llama")
    clean, corrupt = two_runs(model)
    early = Path(site("mlp_post.0"), (site("z.1[0]"),), positions=(2,), receiver_positions=(6, -1))
    with torch.no_grad():
        plain = model(clean.tokens)
        with model.edited(path_edits(model, clean, corrupt, early)):
            found = model(clean.tokens)
        assert torch.equal(found[:, :6], plain[:, :6])
        assert (found[:, 6] - plain[:, 6]).abs().max() > 1e-4, "head 0 reads position 2 from position 6"
        causal = Path(site("mlp_post.0"), (site("z.1[0]"),), positions=(6,), receiver_positions=(2,))
        with model.edited(path_edits(model, clean, corrupt, causal)):
            torch.testing.assert_close(model(clean.tokens), plain)  # nothing later reaches an earlier receiver


def test_what_cannot_be_meant_is_refused():
    model = wrapped("llama")
    clean, corrupt = two_runs(model)
    short, shape = Run(clean.tokens, torch.tensor([4, 5])), Run(clean.tokens[:, :5])
    z, metric = ["z.0"], last(3)
    for other in (short, shape):
        with pytest.raises(InputError, match="expected equal ones, so that a position is the same place in both"):
            activation_patching(model, clean, other, z, metric, show=False)
    with pytest.raises(InputError, match="expected one of denoising, noising"):
        inspect.unwrap(activation_patching)(model, clean, corrupt, z, metric, direction="both")
    with pytest.raises(InputError, match="each from -11 to 10"):
        activation_patching(model, clean, corrupt, z, metric, positions=[11], show=False)
    with pytest.raises(InputError, match="'all', 'each' or a list"):
        inspect.unwrap(activation_patching)(model, clean, corrupt, z, metric, positions="last")
    with pytest.raises(InputError, match="at least one, and none twice"):
        activation_patching(model, clean, corrupt, ["z.0", "blocks.0.attn.hook_z"], metric, show=False)
    with pytest.raises(InputError, match="a tensor of 2 numbers, one for each row"):
        activation_patching(model, clean, corrupt, z, lambda logits: logits.mean(), show=False)
    with pytest.raises(InputError, match=r"cannot be edited: fused attention never forms it"):
        patched = patch_edits(model, clean, [Patch(site("pattern.0"), corrupt)])
        with model.edited(patched):
            model(clean.tokens)
    with pytest.raises(InputError, match="name the heads that read the stream"):
        Path(site("z.0[0]"), (site("attn_out.1"),))
    with pytest.raises(InputError, match="no path leads from the one to it"):
        Path(site("z.1[0]"), (site("q.1[1]"),))
    with pytest.raises(InputError, match="none twice"):
        Path(site("z.0[0]"), (site("z.1"), site("z.1")))
    with pytest.raises(InputError, match="has no head axis"):
        head_sites(model, Point.MLP_OUT)
