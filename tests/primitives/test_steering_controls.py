"""Specifications and controls: what is added, how long it is, and that nothing at strength 0 is nothing."""

import json
from dataclasses import replace
from typing import Any, Literal

import jaxtyping
import pytest
import torch

from interp.errors import InputError
from interp.running import Where
from saes.primitives.controls import RandomDirection, Way, flipped, matched, random_direction, ways, zero
from saes.primitives.specs import SteeringSpec, Term
from saes.primitives.writing import Request, Writer
from saes.sae import SAE, SAEConfig
from tests.primitives.planted_primitives import SITE
from tests.primitives.planted_recipes import FEATURES, PROMPTS, plant, setup

TWO = SteeringSpec((Term(0, 0.5), Term(3, -0.25)), 10.8)


def _sae(length: float, *, bias: float = 0.0) -> SAE:
    """Unit directions times `length`; the encoder reads the same activations in either scale."""
    rng = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(6, 32, generator=rng), dim=1)
    return SAE.of_weights(
        SAEConfig(d_in=32, d_sae=6, architecture="standard", metadata={"hook_name": "blocks.1.hook_resid_post"}),
        W_enc=rows.T.contiguous() / length, b_enc=torch.full((6,), -0.1) / length, W_dec=rows * length,
        b_dec=torch.full((32,), bias),
    )  # fmt: skip


def _at(x: torch.Tensor) -> Where:
    b, t = x.shape[:2]
    return Where(torch.arange(t).expand(b, t), torch.full((b,), t), torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_short_decoder_rows_give_the_same_edit_as_unit_rows(mode: Literal["add", "clamp"]):
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    spec = replace(TWO, mode=mode)
    unit, short = (spec.edit(_sae(length, bias=0.3))(x) for length in (1.0, 0.17))
    torch.testing.assert_close(unit, short, rtol=1e-5, atol=1e-5)
    assert (unit - x).norm() > 1
    wrong = x + sum(spec.raw[i] * _sae(0.17).W_dec[i].double() for i in spec.features)
    assert not torch.allclose(wrong, short, atol=0.1), "without unit rows the edit would be 5.9 times weaker"


def test_adding_is_the_sum_of_unit_rows_times_raw_coefficients():
    sae, x = _sae(0.17), torch.randn(1, 3, 32, dtype=torch.float64)
    assert TWO.raw == pytest.approx({0: 5.4, 3: -2.7})
    rows = sae.W_dec.double() / sae.W_dec.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(TWO.edit(sae)(x), x + 5.4 * rows[0] - 2.7 * rows[3], rtol=1e-6, atol=1e-6)


def test_a_clamped_feature_gives_up_its_own_activation_first():
    """The result does not depend on how active the feature was, as far as its direction alone carried it."""
    sae = _sae(0.17, bias=0.3)
    spec = SteeringSpec((Term(2, 0.5),), 10.8, mode="clamp")
    row = (sae.W_dec[2] / sae.W_dec[2].norm()).double()
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    x = x - ((x - 0.3) @ row)[..., None] * row + 2 * row  # active: coordinate 2, threshold 0.1
    own = torch.relu((x - 0.3) @ row - 0.1)
    torch.testing.assert_close(spec.edit(sae)(x), x + (5.4 - own)[..., None] * row, rtol=1e-5, atol=1e-5)
    more = spec.edit(sae)(x + 3 * row)
    torch.testing.assert_close(more, spec.edit(sae)(x), rtol=1e-5, atol=1e-5)


def test_json_round_trip_and_refusals():
    spec = replace(TWO, site="blocks.1.hook_resid_post", n_features=6, mode="clamp")
    value = json.loads(json.dumps(spec.to_json()))
    assert SteeringSpec.from_json(value) == spec and value["terms"][0]["raw"] == pytest.approx(5.4)
    value["terms"][0]["raw"] = 1.0
    with pytest.raises(InputError, match="expected strength times mean norm"):
        SteeringSpec.from_json(value)
    with pytest.raises(InputError, match="a steering specification has"):
        SteeringSpec.from_json({"terms": []})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"terms": ()}, "one feature or more, each once"),
        ({"terms": (Term(1, 0.1), Term(1, 0.2))}, r"each once; got \[1, 1\]"),
        ({"mean_norm": 0.0}, "a positive number"),
        ({"mode": "multiply"}, "known: add, clamp"),
        ({"scope": "mask"}, "unknown scope 'mask'"),
    ],
)
def test_bad_specifications_are_named(change: dict[str, Any], error: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    with pytest.raises(InputError, match=error):
        replace(TWO, **change)


def test_another_dictionary_or_site_is_refused():
    sae = _sae(1.0)
    with pytest.raises(InputError, match="among 7, the SAE has 6"):
        replace(TWO, n_features=7).edit(sae)
    with pytest.raises(InputError, match="the SAE has 6"):
        SteeringSpec((Term(6, 0.5),), 1.0).edit(sae)
    with pytest.raises(InputError, match=r"is of blocks\.2\.hook_resid_post, not of blocks\.1"):
        replace(TWO, site="blocks.2.hook_resid_post").hooks(sae, "blocks.1.hook_resid_post")
    with pytest.raises(InputError, match=r"blocks\.2"):
        TWO.hooks(sae, "blocks.2.hook_resid_post")


def test_a_random_direction_is_as_long_as_the_edit():
    sae, x = _sae(0.17), torch.randn(1, 4, 32, dtype=torch.float64)
    control = random_direction(TWO, sae, seed=5)
    moved = TWO.edit(sae)(x) - x
    (drawn,) = replace(control, scope="all").hooks(sae, "blocks.1.hook_resid_post").values()
    other = drawn(x, _at(x)) - x
    torch.testing.assert_close(other.norm(dim=-1), moved.norm(dim=-1), rtol=1e-5, atol=1e-6)
    assert control.norm == pytest.approx(TWO.norm(sae)) and abs(float(other[0, 0] @ moved[0, 0])) < control.norm**2
    assert not torch.equal(control.vector(32), random_direction(TWO, sae, seed=6).vector(32))


def test_the_matched_feature_has_the_nearest_rate_outside_the_recipe():
    density = torch.tensor([0.10, 0.50, 0.11, 0.30, 0.29, 0.13])
    spec = SteeringSpec((Term(0, 0.5), Term(3, -0.2)), 1.0)
    assert matched(spec, density, seed=0).terms == (Term(2, 0.5), Term(4, -0.2))
    assert matched(spec, density, seed=0, without=(2,)).features == (5, 4)
    near = SteeringSpec((Term(0, 0.5), Term(2, 0.5)), 1.0)
    assert matched(near, density, seed=0).features == (5, 4), "none is taken twice, none of the recipe"
    dead = torch.zeros(50)
    assert matched(TWO, dead, seed=1) != matched(TWO, dead, seed=2), "the seed decides among equals"
    with pytest.raises(InputError, match="none is left to match"):
        matched(spec, density, seed=0, without=(1, 2, 4))


def test_zero_writes_the_unsteered_text_bit_for_bit_and_other_ways_do_not():
    model, sae, _ = plant()
    writer = Writer(model, sae, SITE, None, setup().writer.settings)
    spec = SteeringSpec((Term(0, 0.5), Term(4, 0.5)), 1.0, scope="all")
    used = (Way("unsteered"), *ways("emotion0", spec, sae, torch.linspace(0, 1, FEATURES), seed=0))
    written = writer.write([Request(way, prompt, seed) for way in used for seed in (0, 1) for prompt in PROMPTS])
    texts = [tuple(one.text for one in written[4 * k : 4 * k + 4]) for k in range(len(used))]
    assert texts[2] == texts[0] and written[8:12] == written[:4]
    assert len(set(texts)) == len(used) - 1
    assert flipped(flipped(spec)) == spec and zero(spec).norm(sae) == 0


def test_a_text_does_not_depend_on_what_shares_its_batch():
    model, sae, _ = plant()
    settings = setup().writer.settings
    spec = SteeringSpec((Term(0, 1.0),), 1.0)
    requests = [
        Request(way, prompt, seed)
        for way in (Way("a"), Way("b", spec), Way("c", RandomDirection(1.0, 3)))
        for prompt in PROMPTS
        for seed in (0, 1)
    ]
    together = Writer(model, sae, SITE, None, settings).write(requests)
    alone = [Writer(model, sae, SITE, None, settings).write([request])[0] for request in requests]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.fluency for one in together] == pytest.approx([one.fluency for one in alone], abs=1e-4)


def test_fluency_is_the_unsteered_models_mean_log_probability():
    """Against one plain forward pass a text."""
    model, sae, _ = plant()
    writer = Writer(model, sae, SITE, None, setup().writer.settings)
    way = Way("steered", SteeringSpec((Term(0, 1.0),), 1.0))
    for one in writer.write([Request(way, PROMPTS[0], seed) for seed in (0, 1)]):
        batch = model.to_tokens([f"{PROMPTS[0]} {one.text}"])
        ids = batch.tokens[0, : int(batch.lengths[0])]
        first = int(model.to_tokens([PROMPTS[0]]).lengths[0])
        with torch.no_grad():
            logs = torch.log_softmax(model.hf(ids[None]).logits[0].double(), dim=-1)
        picked = [float(logs[i - 1, ids[i]]) for i in range(first, len(ids))]
        assert one.fluency == pytest.approx(sum(picked) / len(picked), abs=1e-3)
