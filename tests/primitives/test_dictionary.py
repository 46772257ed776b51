"""Dictionaries by name, the facts of their site against loops, the untrained twin; refusals."""

from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from saes.config import SAEConfig
from saes.presets import SAE_PRESETS
from saes.primitives.dictionary import SiteFacts, given_sae, sae_preset, site_facts, untrained_like
from saes.sae import SAE
from tests.tiny_models import tiny

SITE = "blocks.1.hook_resid_post"
TEXTS = ("The door opened and she came in.", "Rain.", "He waited for a long, long time at the gate, and nobody came.")


@pytest.fixture(scope="module")
def model(smollm2: HookedModel) -> HookedModel:
    return HookedModel.wrap(tiny("gemma2", vocab_size=len(smollm2.tokenizer)), smollm2.tokenizer)


def make_sae(d: int = 48, *, architecture: str = "topk", f: int = 96, **known: str) -> SAE:
    """Random, unit rows."""
    g = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(f, d, generator=g), dim=1)
    known = {"hook_name": SITE} | known
    k = 5 if architecture == "topk" else None
    config = SAEConfig(d_in=d, d_sae=f, architecture=architecture, k=k, metadata=known)
    return SAE.of_weights(
        config, W_enc=rows.T, W_dec=rows, b_enc=torch.zeros(f), b_dec=torch.randn(d, generator=g) * 0.1
    )


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("llama_scope:l15r_32x", "llama-scope-l15r-32x"),
        ("llama_scope_lxr_32x:l15r_32x", "llama-scope-l15r-32x"),
        ("gemma_scope:layer_20/width_131k/average_l0_81", "gemma-scope-9b-it-l20-131k"),
        ("gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81", "gemma-scope-9b-it-l20-131k"),
        ("llama-scope-l15r-32x", "llama-scope-l15r-32x"),
    ],
)
def test_saelens_spelling_stands_for_the_preset(name: str, preset: str):
    assert sae_preset(name) is SAE_PRESETS[preset]


def test_other_names_are_no_presets_and_unknown_ids_of_a_release_are_refused():
    assert sae_preset("runs/sae") is None and sae_preset("organisation/name:folder") is None
    with pytest.raises(
        InputError, match=r"no preset for 'llama_scope:l3r_8x'; of llama_scope there is llama_scope:l15"
    ):
        sae_preset("llama_scope:l3r_8x")


def test_an_sae_of_another_model_site_or_width_is_refused(model: HookedModel, tmp_path: Path):
    make_sae().save(tmp_path / "own")
    assert given_sae(str(tmp_path / "own"), model, None).config.d_sae == 96
    assert given_sae(str(tmp_path / "own"), model, Site.parse(SITE)).config.d_sae == 96
    with pytest.raises(InputError, match=r"own was made for the site blocks\.1\.hook_resid_post, and is asked"):
        given_sae(str(tmp_path / "own"), model, Site.parse("resid_post.2"))
    make_sae(40).save(tmp_path / "narrow")
    with pytest.raises(InputError, match=r"narrow reads activations of width 40, .* has width 48\. Give an SAE"):
        given_sae(str(tmp_path / "narrow"), model, None)
    make_sae(model_name="gemma-2-9b").save(tmp_path / "other")
    named = HookedModel.wrap(model.hf, model.tokenizer)
    named.name = "smollm2-135m"
    with pytest.raises(InputError, match="the SAE was made for the model gemma-2-9b, and is asked to work on smollm2"):
        given_sae(str(tmp_path / "other"), named, None)
    assert given_sae(str(tmp_path / "other"), named, None, force=True).config.d_sae == 96
    with pytest.raises(InputError, match="no file or folder here, no preset"):
        given_sae("nowhere", model, None)


def test_site_facts_equal_those_of_one_text_at_a_time(model: HookedModel, tmp_path: Path):
    sae, site = make_sae(), Site.parse(SITE)
    found = site_facts(model, sae, TEXTS, site, batch=2)
    rows = []
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            rows.append(model.capture(ids, [site])[site][0, 1:])
    x = torch.cat(rows)
    scores = (x - sae.b_dec) @ sae.W_enc
    active = torch.zeros_like(scores).scatter_(1, scores.topk(5, 1).indices, 1.0) * (scores > 0)
    assert found.n_tokens == len(x)
    assert found.mean_norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-5)
    assert found.l0 == pytest.approx(float(active.sum(1).mean()))
    torch.testing.assert_close(found.density, active.mean(0))
    found.save(tmp_path / "site.safetensors")
    again = SiteFacts.load(tmp_path / "site.safetensors")
    assert (again.mean_norm, again.l0, again.n_tokens) == (found.mean_norm, found.l0, found.n_tokens)
    assert torch.equal(again.density, found.density)


def test_site_facts_of_nothing_are_refused(model: HookedModel):
    with pytest.raises(InputError, match="one text or more"):
        site_facts(model, make_sae(), (), Site.parse(SITE))
    with pytest.raises(InputError, match="0 ordinary tokens at blocks"):
        site_facts(model, make_sae(), ("a",), Site.parse(SITE))


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_the_untrained_twin_has_shape_sparsity_and_centre_and_none_of_the_rows(architecture: str):
    sae = make_sae(architecture=architecture)
    twin = untrained_like(sae, l0=5.4)
    assert (twin.config.d_in, twin.config.d_sae, twin.config.k) == (48, 96, 5)
    assert torch.equal(twin.b_dec, sae.b_dec) and twin.config.metadata["hook_name"] == SITE
    assert torch.equal(twin.encoder, twin.W_dec)
    cosines = twin.W_dec @ sae.W_dec.T
    assert cosines.abs().max() < 0.75  # 9,216 random pairs in 48 dimensions
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(1))
    assert len(twin.encode(x).values) == 200 * 5
    assert not torch.equal(untrained_like(sae, l0=5, seed=1).W_dec, twin.W_dec)
