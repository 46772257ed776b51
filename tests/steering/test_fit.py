"""`fit_steering` on a tiny model: what every method does at its site, what is skipped, what is refused."""

import math
from pathlib import Path
from typing import Any, get_args

import jaxtyping
import pytest
import torch
from tiny_models import tiny
from torch import Tensor
from toy_store import word_tokenizer

from interp.errors import InputError
from interp.model import HookedModel
from interp.moments import Moments, Whitening, prompt_rows, text_batches
from interp.sites import Site
from interp.steering.diagnostics import Rows
from interp.steering.edits import AffineEdit, GatedEdit
from interp.steering.fit import Settings, fit_site, fit_steering
from interp.steering.fit_data import Prompts, SiteData, gather
from interp.steering.methods import AGAINST_NEUTRAL, PAIRS, Method, Recipe
from interp.steering.steering import Steering, steered

SITE = Site.parse("resid_post.1")
LATER = Site.parse("resid_post.2")


@pytest.fixture(scope="module")
def toy() -> HookedModel:
    return HookedModel.wrap(tiny("llama"), word_tokenizer())


def _texts(last: str, n: int, seed: int) -> list[str]:
    """Prompts of random words that end in `last`."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(10, 59, (n, 6), generator=g)
    return [" ".join(f"w{w}" for w in row[: 3 + i % 4].tolist()) + f" {last}" for i, row in enumerate(words)]


SOURCE, TARGET = _texts("w1", 24, 0), _texts("w2", 24, 1)
NEUTRAL = [text for i in range(3, 9) for text in _texts(f"w{i}", 20, i)]


def _rows(model: HookedModel, texts: list[str], site: Site = SITE, *, edits: Any = None) -> Tensor:
    batches = text_batches(model, texts)
    return torch.cat([x.acts[site] for x in prompt_rows(model, batches, site, edits=edits)]).double()


def _fit(model: HookedModel, method: Method, **options: Any) -> Steering:
    needs = method in AGAINST_NEUTRAL or not (method in PAIRS or "target" in options)
    given = {"neutral": NEUTRAL} if needs else {}
    target = options.pop("target", TARGET if method in PAIRS else None)
    return fit_steering(model, SOURCE, target, sites=SITE, method=method, **{**given, **options})


def _seen(model: HookedModel, steering: Steering, texts: list[str]) -> Tensor:
    """What the model itself has at the site when steered."""
    with steered(model, steering):
        return _rows(model, texts)


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max().clamp(min=1))


@pytest.mark.parametrize("method", ["midsteer", "flip", "swap", "set", "ace", "add", "ot"])
def test_source_prompts_of_the_steered_model_average_what_target_prompts_do(toy: HookedModel, method: Method):
    steering = _fit(toy, method, calibrate=False)
    _close(_seen(toy, steering, SOURCE).mean(0), _rows(toy, TARGET).mean(0))
    if method in ("flip", "swap"):
        _close(_seen(toy, steering, TARGET).mean(0), _rows(toy, SOURCE).mean(0))
    elif method == "midsteer":
        _close(_seen(toy, steering, NEUTRAL).mean(0), _rows(toy, NEUTRAL).mean(0))
    half = _seen(toy, steering.at(0.5), SOURCE).mean(0)
    _close(half, (_rows(toy, SOURCE).mean(0) + _rows(toy, TARGET).mean(0)) / 2)


@pytest.mark.parametrize("how", get_args(Whitening))
def test_every_whitening_carries_the_means_over_and_only_the_side_effects_differ(toy: HookedModel, how: Whitening):
    steering = _fit(toy, "midsteer", calibrate=False, whiten=how)
    _close(_seen(toy, steering, SOURCE).mean(0), _rows(toy, TARGET).mean(0))
    best = _fit(toy, "midsteer", calibrate=False, whiten="full").provenance["sites"][str(SITE)]["eta"]
    assert steering.provenance["sites"][str(SITE)]["eta"] >= best * (1 - 1e-6)


def test_erasing_leaves_the_two_sides_with_one_mean_and_vanilla_takes_the_direction_out(toy: HookedModel):
    both = _fit(toy, "erase", target=TARGET, calibrate=False)
    assert float((_rows(toy, SOURCE).mean(0) - _rows(toy, TARGET).mean(0)).norm()) > 0.5
    _close(_seen(toy, both, SOURCE).mean(0), _seen(toy, both, TARGET).mean(0))
    one = _fit(toy, "erase", calibrate=False)
    _close(_seen(toy, one, SOURCE).mean(0), _rows(toy, NEUTRAL).mean(0))
    direction = _rows(toy, SOURCE).mean(0) - _rows(toy, TARGET).mean(0)
    after = _seen(toy, _fit(toy, "vanilla", target=TARGET), SOURCE)
    assert float((after @ (direction / direction.norm())).abs().max()) < 1e-4


def test_per_neuron_matches_every_coordinates_mean(toy: HookedModel):
    _close(_seen(toy, _fit(toy, "per-neuron"), SOURCE).mean(0), _rows(toy, TARGET).mean(0))


def test_the_free_form_moves_the_source_and_spares_neutral_prompts(toy: HookedModel):
    steering = _fit(toy, "free")
    assert isinstance(steering.edits[SITE], GatedEdit)
    before, want = _rows(toy, SOURCE).mean(0), _rows(toy, TARGET).mean(0)
    moved = _seen(toy, steering, SOURCE).mean(0) - before
    assert float((moved - (want - before)).norm() / (want - before).norm()) < 0.35
    spared = (_seen(toy, steering, NEUTRAL) - _rows(toy, NEUTRAL)).square().sum(1).mean()
    affine = (_seen(toy, _fit(toy, "midsteer"), NEUTRAL) - _rows(toy, NEUTRAL)).square().sum(1).mean()
    assert float(spared) < 0.7 * float(affine)


def test_a_gate_spares_what_is_not_the_source(toy: HookedModel):
    open_, gated = _fit(toy, "add"), _fit(toy, "add", gate="hard")
    assert isinstance(gated.edits[SITE], GatedEdit)
    _close(_seen(toy, gated, SOURCE).mean(0), _seen(toy, open_, SOURCE).mean(0))
    assert torch.equal(_seen(toy, gated, TARGET), _rows(toy, TARGET))


def test_calibration_makes_new_source_prompts_read_one_and_held_out_prompts_say_so(toy: HookedModel):
    few, new = SOURCE[:8], _texts("w1", 60, 77)
    read = {}
    for name, options in {"plain": {"calibrate": False}, "own": {}, "held out": {"held_out": new}}.items():
        edit = fit_steering(toy, few, TARGET, sites=SITE, neutral=NEUTRAL, **options).edits[SITE]
        assert isinstance(edit, AffineEdit)
        read[name] = float(edit.readout(_rows(toy, new).mean(0)))
    assert abs(read["own"] - 1) < abs(read["plain"] - 1) and read["plain"] < 0.97
    assert read["held out"] == pytest.approx(1, abs=1e-4)
    told = fit_steering(toy, few, TARGET, sites=SITE, neutral=NEUTRAL, held_out=new, calibrate=False)
    found = told.provenance["sites"][str(SITE)]["held_out_read_out"]
    assert found == pytest.approx(read["plain"], rel=1e-4)


def test_preserved_concepts_are_not_moved_and_protected_read_outs_stay(toy: HookedModel):
    other = _texts("w3", 30, 40)
    kept = _fit(toy, "midsteer", preserve=[other], calibrate=False)
    edit = kept.edits[SITE]
    assert isinstance(edit, AffineEdit) and edit.rank == 1
    _close(_seen(toy, kept, other).mean(0), _rows(toy, other).mean(0))
    free = _seen(toy, _fit(toy, "midsteer", calibrate=False), other).mean(0) - _rows(toy, other).mean(0)
    assert float(free.abs().max()) > 1e-3
    n = (_rows(toy, other).mean(0) - _rows(toy, NEUTRAL).mean(0))[:, None]
    by_direction = _fit(toy, "midsteer", preserve={str(SITE): n}, calibrate=False)
    _close(by_direction.edits[SITE].tensors()["V"], edit.V, 1e-4)
    c = torch.randn(48, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    protected = _fit(toy, "add", protect={SITE: c})
    _close(_seen(toy, protected, SOURCE) @ c, _rows(toy, SOURCE) @ c, 1e-4)
    assert 0 < protected.provenance["sites"][str(SITE)]["protect_lost"] < 1


def test_a_form_that_both_sides_share_triggers_midsteer_unless_the_target_is_preserved():
    """Neutral prompts of another form: s and t share a large h. New prompts of both sides, averaged over fits."""
    d, n, read = 48, 40, {"plain": [], "preserved": [], "exact": []}
    h, a = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    h[0], a[1] = 20.0, 2.0
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        noise = [torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, n, 2000)]
        source, target, neutral = Rows.of(noise[0] + h + a), Rows.of(noise[1] + h - a), Rows.of(noise[2])
        data = SiteData(source, target, neutral, None, (), Moments.from_rows(neutral.x))
        for name, settings in {
            "plain": Settings(Recipe("midsteer")),
            "preserved": Settings(Recipe("midsteer"), preserve="target"),
            "exact": Settings(Recipe("midsteer", calibrate=False), preserve="target"),
        }.items():
            edit = fit_site(SITE, data, settings).edit
            assert isinstance(edit, AffineEdit) and edit.rank == 1
            read[name].append(edit.readout(torch.stack([h + a, h - a])))
            if name == "exact":
                _close(edit.readout(target.mean[None]), torch.zeros(1, 1), 1e-4)
    mean = {name: torch.stack(seen).mean(0)[:, 0].tolist() for name, seen in read.items()}
    assert mean["plain"] == pytest.approx([1.0, 0.98], abs=0.03)  # target prompts get the whole edit
    assert mean["preserved"] == pytest.approx([1.0, 0.0], abs=0.06)
    assert mean["exact"][0] < 0.95 and mean["exact"][1] > 0.05  # without calibration: attenuated on either side


def test_a_large_leak_is_warned_about(toy: HookedModel):
    neutral = [f"w3 w4 {text} w40 w41" for text in _texts("w50", 40, 11)]
    both = [f"{text} w30" for text in SOURCE], [f"{text} w30" for text in TARGET]
    with pytest.warns(UserWarning, match=r"target prompts get up to \d+% of the edit"):
        leaking = fit_steering(toy, *both, neutral=neutral, sites=SITE)
    assert leaking.provenance["sites"][str(SITE)]["rho"] > 0.5
    kept = fit_steering(toy, *both, neutral=neutral, sites=SITE, preserve="target", calibrate=False)
    _close(_seen(toy, kept, both[1]).mean(0), _rows(toy, both[1]).mean(0))
    _close(_seen(toy, kept, both[0]).mean(0), _rows(toy, both[1]).mean(0))


@pytest.mark.parametrize("method", ["midsteer", "add", "per-neuron", "free"])
def test_a_budget_sets_the_strength_by_site(toy: HookedModel, method: Method):
    options: dict[str, Any] = {"neutral": NEUTRAL, "method": method, "sites": [SITE, LATER]}
    steering = fit_steering(toy, SOURCE, TARGET, eta=0.01, **options)
    for site in (SITE, LATER):
        rows = _rows(toy, NEUTRAL, site)
        variance = float(Moments.from_rows(rows).covariance().trace())
        moved = steering.edits[site](rows) - rows
        assert float(moved.square().sum(1).mean()) / variance == pytest.approx(0.01, rel=1e-3)
        assert steering.provenance["sites"][str(site)]["eta"] == pytest.approx(0.01, rel=1e-9)
    assert len({edit.beta for edit in steering.edits.values()}) == 2


def test_a_sequential_fit_erases_what_earlier_edits_left_and_a_parallel_one_does_not(toy: HookedModel):
    gap = {}
    for sequential in (True, False):
        steering = fit_steering(
            toy, SOURCE, TARGET, neutral=NEUTRAL, sites=[SITE, LATER], method="erase", whiten="shrink",
            calibrate=False, sequential=sequential, level=None,
        )  # fmt: skip
        with steered(toy, steering):
            means = [_rows(toy, texts, LATER).mean(0) for texts in (SOURCE, TARGET)]
        gap[sequential] = float((means[0] - means[1]).norm())
    clean = float((_rows(toy, SOURCE, LATER).mean(0) - _rows(toy, TARGET, LATER).mean(0)).norm())
    assert gap[True] < 1e-3 * clean < gap[False]


def test_sites_without_a_signal_are_left_out_with_a_message(toy: HookedModel):
    same = _texts("w1", 24, 5)  # the same kind of prompt on both sides
    late = Site.parse("resid_post.2")
    with pytest.warns(UserWarning, match=r"resid_post is left out: source and reference do not differ significantly"):
        with pytest.raises(InputError, match="no site shows the concept"):
            fit_steering(toy, SOURCE, same, neutral=NEUTRAL, sites=late)
    # the first words of a prompt are in no way at its last position before attention has run
    first, second = ([f"w{a} " + text for text in _texts("w5", 24, s)] for a, s in ((1, 6), (2, 7)))
    with pytest.warns(UserWarning, match="embed is left out"):
        found = fit_steering(toy, first, second, sites=["embed", SITE], method="add", level=0.05)
    assert list(found.edits) == [SITE] and found.provenance["sites"]["hook_embed"]["skipped"]
    assert found.provenance["sites"][str(SITE)]["p"] <= 0.05


def test_identical_sides_are_skipped_and_without_the_test_nothing_moves(toy: HookedModel):
    with pytest.warns(UserWarning, match="is left out"), pytest.raises(InputError, match="no site shows"):
        fit_steering(toy, SOURCE, SOURCE, neutral=NEUTRAL, sites=SITE)
    with pytest.warns(UserWarning, match="length 0"):
        idle = fit_steering(toy, SOURCE, SOURCE, sites=SITE, method="flip", level=None, calibrate=False)
    assert torch.equal(_seen(toy, idle, SOURCE), _rows(toy, SOURCE))


def test_one_prompt_of_a_kind_is_refused_unless_asked_for(toy: HookedModel):
    with pytest.raises(InputError, match="level=None to go on"):
        fit_steering(toy, SOURCE[:1], TARGET[:1], sites=SITE, method="add")
    steering = fit_steering(toy, SOURCE[:1], TARGET[:1], sites=SITE, method="add", level=None)
    _close(_seen(toy, steering, SOURCE[:1]), _rows(toy, TARGET[:1]))
    assert steering.provenance["sites"][str(SITE)]["alpha_debiased"] is None


def test_fewer_prompts_than_dimensions_are_enough_when_shrunk(toy: HookedModel):
    steering = fit_steering(toy, SOURCE, TARGET, neutral=NEUTRAL[::5], sites=SITE, calibrate=False)
    assert 0 < steering.provenance["sites"][str(SITE)]["shrinkage"] < 1
    _close(_seen(toy, steering, SOURCE).mean(0), _rows(toy, TARGET).mean(0))


def test_nan_activations_are_named_with_their_site(toy: HookedModel):
    spoil = {Site.parse("resid_post.0"): lambda x, where: x * math.nan}
    with pytest.raises(InputError, match=r"blocks\.1\.hook_resid_post hold NaN"):
        gather(toy, Prompts(SOURCE, TARGET), [SITE], edits=spoil)


def test_all_positions_weigh_by_token_and_count_by_prompt(toy: HookedModel):
    steering = fit_steering(toy, SOURCE, TARGET, neutral=NEUTRAL, sites=SITE, positions="all", level=None)
    facts = steering.provenance["sites"][str(SITE)]
    assert (facts["n_source"], facts["n_target"], facts["n_neutral"]) == (24, 24, len(NEUTRAL))
    data = gather(toy, Prompts(SOURCE, TARGET, NEUTRAL, positions="all"), [SITE])[SITE]
    tokens = torch.cat(
        [x.acts[SITE] for x in prompt_rows(toy, text_batches(toy, SOURCE), SITE, positions="all")]
    ).double()
    assert data.source.weight.sum() == len(tokens) > 24
    _close(data.source.mean, tokens.mean(0), 1e-10)


def test_what_was_measured_is_saved_with_the_edits(toy: HookedModel, tmp_path: Path):
    steering = _fit(toy, "midsteer", beta=2.0)
    steering.save(tmp_path / "s")
    again = Steering.load(tmp_path / "s")
    assert again.provenance == steering.provenance and again.method == "midsteer"
    facts = again.provenance["sites"][str(SITE)]
    assert facts["beta"] == again.edits[SITE].beta == 2.0
    assert facts["alpha"] > facts["alpha_debiased"] > 0 and facts["p"] == 0.001
    data = gather(toy, Prompts(SOURCE, TARGET, NEUTRAL), [SITE])[SITE]
    edit = again.edits[SITE]
    assert isinstance(edit, AffineEdit)
    s, t = data.source.mean - data.moments.mean, _rows(toy, TARGET).mean(0) - data.moments.mean
    v = edit.V[:, 0].double()
    assert facts["rho"] == pytest.approx(float(v @ t) / float(v @ s), rel=1e-4)
    torch.testing.assert_close(_seen(toy, again, SOURCE), _seen(toy, steering, SOURCE), rtol=0, atol=0)


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_fits_twice_to_the_same_bits(toy: HookedModel, method: Method):
    one, two = (_fit(toy, method).edits[SITE].tensors() for _ in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert all(x.dtype == torch.float32 for x in one.values())


def test_what_does_not_go_together_is_refused(toy: HookedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "nudge"}, "expected one of midsteer, erase, flip, swap, set, ace, add, vanilla, ot, per-neuron"),
        ({"method": "add", "target": None}, "needs target prompts"),
        ({"method": "midsteer"}, "counts from neutral prompts"),
        ({"method": "erase", "target": None}, "without a target counts from neutral prompts"),
        ({"method": "add", "preserve": [SOURCE]}, "preserve is for methods that read"),
        ({"method": "erase", "neutral": NEUTRAL, "preserve": "target"}, "preserve='target' is for method='midsteer'"),
        ({"method": "midsteer", "neutral": NEUTRAL, "preserve": "form"}, "expected 'target', a list of sets"),
        ({"method": "add", "gate": "free"}, "gate: expected 'hard' or 'soft'"),
        ({"method": "add", "protect": {"resid_post.0": torch.ones(48, 1)}}, "not for blocks.1.hook_resid_post"),
        ({"method": "add", "gate": "soft", "protect": {SITE: torch.ones(48, 1)}}, "protect is for affine edits"),
        ({"method": "add", "eta": -1.0}, "eta=-1"),
        ({"method": "add", "source": []}, "source: expected a list of prompts"),
        ({"method": "add", "target": "w1 w2"}, "target: expected a list of prompts"),
        ({"method": "add", "source": ["w1"]}, "one token, at position 0"),
    ]
    for options, message in cases:
        given = {"source": SOURCE, "target": TARGET, **options}
        with pytest.raises(InputError, match=message):
            fit_steering(toy, given.pop("source"), given.pop("target"), sites=SITE, **given)


def test_a_concept_smaller_than_its_error_is_skipped_even_where_the_test_passes():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, generator=g, dtype=torch.float64)
    moments = Moments.from_rows(torch.randn(300, 40, generator=g, dtype=torch.float64))
    shift = torch.zeros(40, dtype=torch.float64)
    shift[0] = 8.0
    target = Rows.of(moments.mean + torch.cat([x, -x]) - shift)
    source = Rows.of(moments.mean + 1.001 * torch.cat([x, -x]))  # at the neutral mean itself: α of midsteer is 0
    data = SiteData(source, target, source, None, (), moments)
    with pytest.warns(UserWarning, match="no larger than the error of its estimate"):
        fitted = fit_site(SITE, data, Settings(Recipe("midsteer")))
    assert fitted.edit is None and "skipped" in fitted.facts
