"""Sweeps of surgeries: losses against direct computation, intervals over documents, resuming, both gauges."""

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch

from interp import stats
from interp.attention import surgery_sweep as sweeps
from interp.attention.corpus_gram import corpus_grams
from interp.attention.operated import operated
from interp.attention.surgery import Surgery
from interp.attention.surgery_sweep import document_nats, gauged, per_head, removals, surgery_sweep, truncations
from interp.batching import Batch
from interp.effects import compare
from interp.errors import InputError
from interp.model import HookedModel
from interp.stats import bootstrap_ratio
from tests.tiny_models import random_tokens, tiny


def _batches(model: HookedModel, seed: int = 0) -> list[Batch]:
    """Two batches of five windows of three documents, one window too short to predict a token."""
    first, second = random_tokens(model.hf, 3, 12, seed=seed), random_tokens(model.hf, 2, 7, seed=seed + 1)
    zeros = torch.zeros(5, dtype=torch.int64)
    return [
        Batch(first, torch.tensor([12, 9, 1]), torch.tensor([4, 7, 9]), zeros[:3]),
        Batch(second, torch.tensor([7, 3]), torch.tensor([7, 2]), zeros[:2]),
    ]


def _direct(model: HookedModel, fed: list[Batch], surgery: Surgery) -> dict[int, tuple[float, int]]:
    """One sequence at a time, in float64."""
    found: dict[int, tuple[float, int]] = {}
    for batch in fed:
        for tokens, length, doc in zip(batch.tokens, batch.lengths.tolist(), batch.doc.tolist(), strict=True):
            with operated(model, surgery), torch.no_grad():
                log_p = model(tokens[None, :length])[0].double().log_softmax(-1)
            nats = -sum(float(log_p[i, tokens[i + 1]]) for i in range(length - 1))
            old = found.get(doc, (0.0, 0))
            found[doc] = (old[0] + nats, old[1] + length - 1)
    return {doc: value for doc, value in found.items() if value[1]}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_losses_are_those_of_each_document(name):
    model, surgery = HookedModel.wrap(tiny(name)), Surgery([(0, 1), (2, 3)], alpha=0.3, beta=1.5)
    fed = _batches(model)
    got, expected = document_nats(model, fed, surgery), _direct(model, fed, surgery)
    assert list(got) == [4, 7, 2]
    for doc, (nats, count) in got.items():
        assert nats == pytest.approx(expected[doc][0], rel=1e-5) and count == expected[doc][1]
    clean = document_nats(model, fed)
    total = sum(count for _, count in clean.values())
    assert total == 11 + 8 + 6 + 2
    assert sum(nats for nats, _ in clean.values()) / total == pytest.approx(compare(model, fed, {}).ce_clean, rel=1e-7)


def test_rows_hold_means_differences_and_settings():
    model = HookedModel.wrap(tiny("llama"))
    fed = _batches(model)
    chosen = [Surgery(), Surgery([(1, 0), (0, 2)], beta=0.0), Surgery(alpha=2.0, planes=3, level="kernel")]
    clean, same, one, other = surgery_sweep(model, chosen, fed, progress=False)
    assert (clean["heads"], clean["level"], clean["gauge"]) == ("none", None, None)
    assert (same["heads"], same["level"], same["gauge"], same["planes"]) == ("all", "position", "raw", None)
    assert (one["heads"], one["alpha"], one["beta"]) == ("0.2 1.0", 1.0, 0.0)
    assert (other["level"], other["alpha"], other["planes"], other["modes"]) == ("kernel", 2.0, 3, None)
    for row, surgery in ((one, chosen[1]), (other, chosen[2])):
        direct, before = _direct(model, fed, surgery), _direct(model, fed, Surgery())
        ce = sum(nats for nats, _ in direct.values()) / 27
        assert row["ce"] == pytest.approx(ce, rel=1e-5) and row["perplexity"] == pytest.approx(math.exp(ce), rel=1e-5)
        assert row["delta_ce"] == pytest.approx(ce - sum(nats for nats, _ in before.values()) / 27, abs=1e-5)
        assert row["n_tokens"] == 27 and row["n_documents"] == 3
        per_document = [(direct[doc][0] - before[doc][0]) / direct[doc][1] for doc in direct]
        assert min(per_document) - 1e-5 <= row["delta_ce_low"] <= row["delta_ce"] <= row["delta_ce_high"]
        assert row["delta_ce_high"] <= max(per_document) + 1e-5
        assert row["perplexity_low"] == pytest.approx(math.exp(row["ce_low"]))
    assert clean["delta_ce"] == clean["delta_ce_low"] == clean["delta_ce_high"] == 0
    # Paired: the documents differ much more among themselves than with and without an identity.
    assert same["delta_ce_high"] - same["delta_ce_low"] < 1e-4 < same["ce_high"] - same["ce_low"]


def test_lists_of_surgeries():
    model, base = HookedModel.wrap(tiny("llama")), Surgery(level="kernel")
    assert [(s.alpha, s.beta) for s in removals(base)] == [(1, 0), (0, 1)]
    kept = truncations(base, planes=(1, 2), modes=(5,))
    assert [(s.planes, s.modes, s.level) for s in kept] == [
        (1, None, "kernel"),
        (2, None, "kernel"),
        (None, 5, "kernel"),
    ]
    single = per_head(model, removals(base), layers=[0, 2])
    assert len(single) == 2 * 4 * 2
    assert single[0].heads == ((0, 0),) and single[-1].heads == ((2, 3),) and single[-1].alpha == 0


def _counted(model: HookedModel, monkeypatch) -> list[int]:
    passes, forward = [0], model._forward

    def counting(*args):
        passes[0] += 1
        return forward(*args)

    monkeypatch.setattr(model, "_forward", counting)
    return passes


def test_a_sweep_is_resumed_where_it_was_cut_off(tmp_path, monkeypatch):
    model = HookedModel.wrap(tiny("llama"))
    fed, whole, cut = _batches(model), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    chosen = [Surgery(beta=beta) for beta in (0.0, 0.5, 2.0)] + per_head(model, [Surgery(alpha=0.0)], layers=[1])
    expected = surgery_sweep(model, chosen, fed, path=whole, progress=False)
    assert len(whole.read_text().splitlines()) == 1 + len(chosen)

    measured = sweeps.document_nats

    def killed(model, fed, surgery=None):
        if surgery is chosen[3]:
            raise KeyboardInterrupt
        return measured(model, fed, surgery)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "document_nats", killed)
        with pytest.raises(KeyboardInterrupt):
            surgery_sweep(model, chosen, fed, path=cut, progress=False)
    with cut.open("a") as file:
        file.write('{"surgery": "half a li')
    passes = _counted(model, monkeypatch)
    assert surgery_sweep(model, chosen, fed, path=cut, progress=False) == expected
    assert cut.read_bytes() == whole.read_bytes()
    assert passes[0] == len(fed) * (1 + 4), "the clean run, and what was missing"
    passes[0] = 0
    assert surgery_sweep(model, chosen[::-1], fed, path=cut, progress=False)[1:] == expected[:0:-1]
    assert passes[0] == len(fed)


def test_kernels_are_taken_apart_once_for_a_sweep(monkeypatch):
    model, layers = HookedModel.wrap(tiny("llama")), []
    fed, found = _batches(model), sweeps.kernel_bases
    monkeypatch.setattr(sweeps, "kernel_bases", lambda model, at: [layers.append(at), found(model, at)][1])
    base = Surgery(level="kernel")
    chosen = [*per_head(model, truncations(base, planes=(1,)), layers=[1]), *truncations(base, modes=(2, 3))]
    rows = surgery_sweep(model, [*chosen, *removals(base)], fed, progress=False)
    assert [layer for at in layers for layer in at] == [1, 0, 2]
    for row, surgery in zip(rows[1:], chosen, strict=False):
        nats = document_nats(model, fed, surgery)
        assert row["ce"] * 27 == pytest.approx(sum(nat for nat, _ in nats.values()), rel=1e-6)


def test_surgeries_with_other_bases_are_other_surgeries(tmp_path):
    model, path = HookedModel.wrap(tiny("llama")), tmp_path / "sweep.jsonl"
    fed = _batches(model)
    bases = [gauged(corpus_grams(model, random_tokens(model.hf, 2, 40, seed=s), progress=False))[0] for s in (0, 1)]
    chosen = [Surgery(planes=2, bases=held) for held in bases]
    first = surgery_sweep(model, chosen[:1], fed, path=path, progress=False)
    second = surgery_sweep(model, chosen[1:], fed, path=path, progress=False)
    assert first[1]["ce"] != second[1]["ce"]
    assert len({json.loads(line).get("surgery") for line in path.read_text().splitlines()}) == 3


def test_a_file_of_another_sweep_is_refused(tmp_path):
    model, path = HookedModel.wrap(tiny("llama")), tmp_path / "sweep.jsonl"
    surgery_sweep(model, [], _batches(model), path=path, progress=False)
    with pytest.raises(InputError, match=r"a sweep of something else \(tokens: "):
        surgery_sweep(model, [], _batches(model, seed=5), path=path, progress=False)
    with pytest.raises(InputError, match="a sweep of other weights under the same name"):
        surgery_sweep(HookedModel.wrap(tiny("llama", seed=3)), [], _batches(model), path=path, progress=False)


def test_text_without_a_prediction_and_losses_without_a_value_are_refused():
    model = HookedModel.wrap(tiny("llama"))
    with pytest.raises(InputError, match="no token was predicted"):
        surgery_sweep(model, [], random_tokens(model.hf, 3, 1), progress=False)
    with torch.no_grad():
        model.hf.lm_head.weight[5] = torch.nan
    with pytest.raises(InputError, match="losses under None are not finite"):
        surgery_sweep(model, [], _batches(model), progress=False)
    with pytest.raises(InputError, match="gauge='double_centred': expected raw or key_centred"):
        inspect.unwrap(gauged)({}, "double_centred")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_truncation_of_a_corpus_gauge_converges_to_the_model(name):
    """In either gauge: everything kept is the model itself; the fewer planes and modes, the further from it."""
    model = HookedModel.wrap(tiny(name))
    tokens = random_tokens(model.hf, 4, 30)
    grams = corpus_grams(model, random_tokens(model.hf, 8, 60, seed=1), progress=False)
    e = model.cfg.d_head
    with torch.no_grad():
        clean = model(tokens)
    for gauge in ("raw", "key_centred"):
        bases, means = gauged(grams, gauge)
        base, away = Surgery(bases=bases, key_means=means), []
        for planes, modes in ((1, 2), (e // 2, e), (e - 1, 2 * e - 1), (e, 2 * e)):
            with torch.no_grad(), operated(model, dataclasses.replace(base, planes=planes, modes=modes)):
                away.append(float((model(tokens) - clean).norm() / clean.norm()))
        assert away == sorted(away, reverse=True) and away[0] > 0.1 and away[-1] < 1e-5, away


def test_which_channel_bears_more_depends_on_the_gauge(smollm2):
    """SmolLM2: without key means either part alone does as badly, with them routing alone does far better.

    Key means by themselves leave its losses as they are.
    """
    text = (
        "The river rose in the night, and by morning the lower fields were under water. Nobody had expected it so "
        "early in the year. They moved the animals to the hill, counted them twice, and waited for the rain to stop."
    )
    tokens = smollm2.to_tokens([text]).tokens
    grams = corpus_grams(smollm2, tokens, progress=False)
    means = {layer: gram.mean[:, gram.mean.shape[-1] // 2 :] for layer, gram in grams.items()}
    lead = {}
    for gauge, base in (("raw", Surgery()), ("key_centred", Surgery(key_means=means))):
        rows = surgery_sweep(smollm2, [base, *removals(base)], tokens, draws=1, progress=False)
        clean, both, without_routing, without_filtering = (row["ce"] for row in rows)
        assert both == pytest.approx(clean, abs=1e-4)
        assert min(without_routing, without_filtering) > clean + 1
        lead[gauge] = without_filtering - without_routing
    assert abs(lead["raw"]) < 0.6 and lead["key_centred"] < -1.5


# --- the bootstrap of interp.stats ------------------------------------------------------------------------------------


def test_two_cases_have_a_known_bootstrap():
    """Draws of two: 0 and 1 with probability 1/4 each, their mean with 1/2."""
    sums, sizes = np.array([0.0, 3.0]), np.array([1, 3])
    assert bootstrap_ratio(sums, sizes) == (0, 1)
    assert bootstrap_ratio(sums, sizes, level=0.4) == (0.75, 0.75), "Σ sums / Σ sizes, not the mean of two ratios"
    assert bootstrap_ratio(np.array([6.0]), np.array([4])) == (1.5, 1.5)


def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap

    generator = np.random.default_rng(1)
    sizes = generator.integers(5, 50, 40)
    sums = sizes * generator.normal(2, 0.5, 40)
    theirs = bootstrap(
        (sums, sizes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=generator,
    ).confidence_interval
    ours = bootstrap_ratio(sums, sizes, draws=20_000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01 * (theirs.high - theirs.low) * 5)
    assert bootstrap_ratio(sums, sizes, draws=500, seed=1) == bootstrap_ratio(sums, sizes, draws=500, seed=1)
    assert bootstrap_ratio(sums, sizes, draws=500, seed=1) != bootstrap_ratio(sums, sizes, draws=500, seed=2)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    sums, sizes = np.arange(7.0), np.arange(1, 8)
    whole = bootstrap_ratio(sums, sizes, draws=100)
    monkeypatch.setattr(stats, "_chunks", lambda total, size: [30, 30, 40])
    assert bootstrap_ratio(sums, sizes, draws=100) == whole


def test_bootstrap_covers_the_truth_where_tokens_of_a_document_hang_together():
    """19 of 20 intervals over documents hold the mean; intervals over tokens, as if independent, do not."""
    generator, by_document, by_token = np.random.default_rng(0), 0, 0
    for trial in range(200):
        tokens = generator.normal(size=(40, 1)) + 0.3 * generator.normal(size=(40, 25))
        low, high = bootstrap_ratio(tokens.sum(1), np.full(40, 25), draws=400, seed=trial)
        by_document += low <= 0 <= high
        low, high = bootstrap_ratio(tokens.ravel(), np.ones(1000), draws=100, seed=trial)
        by_token += low <= 0 <= high
    assert 180 <= by_document <= 198 and by_token < 100


@pytest.mark.parametrize(
    ("sums", "sizes", "options"),
    [
        ([], [], {}),
        ([1.0], [1, 2], {}),
        ([1.0], [0], {}),
        ([1.0], [1], {"level": 1.0}),
        ([1.0], [1], {"draws": 0}),
    ],
)
def test_what_has_no_interval_is_refused(sums, sizes, options):
    with pytest.raises(InputError, match="bootstrap_ratio: expected as many sums as sizes"):
        inspect.unwrap(bootstrap_ratio)(np.array(sums), np.array(sizes), **options)
