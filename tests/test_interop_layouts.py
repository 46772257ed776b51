"""SAEs of other tools encode and reconstruct here as they do there: every committed case, by output."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from interp.errors import InputError
from saes.directions import directions
from saes.interop import load_sae
from saes.sae import SAE
from tests.sae_layouts import CASES, FIXTURES, expected, place

RELATIVE = 1e-5
LLAMA = "llama_scope/Llama3_1-8B-Base-L15R-32x"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that may then be written again: `load_file` would map it."""
    return load(path.read_bytes())


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest entry of the same token, and the same entries active."""
    scale = wanted.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)
    assert ((found - wanted).abs() / scale).max() < RELATIVE


def same_function(sae: SAE, x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor) -> None:
    found = sae.encode(x)
    assert torch.equal(found.dense() > 0, codes > 0)
    close(found.dense().detach(), codes)
    close(sae(x).detach(), out)
    close(sae.decode(found, x).detach(), out)


def test_every_layout_has_cases():
    assert len(CASES) == 39
    assert {case.split("/")[0] for case in CASES} == {
        "dictionary_learning", "gemma_scope", "gemma_scope_2", "goodfire", "llama_scope", "llamascopium", "saelens",
        "saelens_legacy", "sparsify",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_codes_and_reconstructions(tmp_path, case):
    x, codes, out = expected(case)
    sae = load_sae(place(case, tmp_path), trust_pickle=True)
    if case in ("llamascopium/topk", "llamascopium/transcoder"):
        # their TopK ranks by z times the decoder's row norm, so here codes carry that norm and rows are without it
        codes = codes * read(FIXTURES / case / "sae_weights.safetensors")["W_D"].norm(dim=1)
    same_function(sae, x, codes, out)
    assert sae.W_dec.dtype == torch.float32 and sae.W_dec.requires_grad


@pytest.mark.parametrize(
    "case",
    ["goodfire", "sparsify/layers.15", "sparsify/layers.3.mlp", "dictionary_learning/GatedAutoEncoder", LLAMA],
)
def test_saved_here_it_is_still_the_same(tmp_path, case):
    x = expected(case)[0]
    sae = load_sae(place(case, tmp_path), trust_pickle=True)
    sae.save(tmp_path / "ours")
    again = load_sae(tmp_path / "ours")
    assert torch.equal(again(x), sae(x)) and torch.equal(again.encode(x).dense(), sae.encode(x).dense())
    assert {k: v for k, v in again.config.metadata.items() if k in sae.config.metadata} == dict(sae.config.metadata)


def test_what_is_known_of_an_sae_goes_to_its_metadata(tmp_path):
    wanted = {
        "sparsify/layers.15": ("topk", "EleutherAI/pythia-160m", "blocks.15.hook_resid_post", "topk", True),
        "dictionary_learning/AutoEncoder": ("standard", "EleutherAI/pythia-160m-deduped", 5, "standard", True),
        "dictionary_learning/AutoEncoderNew": ("standard", "EleutherAI/pythia-160m-deduped", 5, "standard", False),
        "dictionary_learning/BatchTopKSAE": ("jumprelu", "EleutherAI/pythia-160m-deduped", 5, "batchtopk", True),
        "dictionary_learning/MatryoshkaBatchTopKSAE": (
            "jumprelu", "EleutherAI/pythia-160m-deduped", 5, "matryoshka_batchtopk", True,
        ),
        "goodfire": ("standard", "meta-llama/Llama-3.1-8B-Instruct", "blocks.19.hook_resid_post", "standard", False),
        LLAMA: ("jumprelu", "meta-llama/Llama-3.1-8B", "blocks.15.hook_resid_post", "topk", False),
        "saelens_legacy/topk": ("topk", "gpt2-small", 5, None, True),
        "gemma_scope_2/resid_post/layer_5_width_16k_l0_small": (
            "jumprelu", "google/gemma-3-1b-pt", 5, "jumprelu", False,
        ),
    }  # fmt: skip
    for case, (architecture, model, hook, trained, subtract) in wanted.items():
        config = load_sae(place(case, tmp_path), trust_pickle=True).config
        hook = f"blocks.{hook}.hook_resid_post" if isinstance(hook, int) else hook
        known = config.metadata
        assert (config.architecture, known["model_name"], known["hook_name"]) == (architecture, model, hook), case
        assert (known.get("training_architecture"), config.apply_b_dec_to_input) == (trained, subtract), case
        assert not config.is_transcoder
    assert load_sae(place("dictionary_learning/AutoEncoderTopK", tmp_path), trust_pickle=True).config.k == 6


def test_transcoders_say_what_they_read_and_write(tmp_path):
    sae = load_sae(place("sparsify/layers.3.mlp", tmp_path))
    assert sae.config.is_transcoder and sae.config.skip and not sae.config.apply_b_dec_to_input
    known = sae.config.metadata
    assert known["hf_hook_name"] == "layers.3.mlp" and known["hook_name_out"] == "blocks.3.hook_mlp_out"
    assert "hook_name" not in known  # the input of an MLP is a norm's output times its weight, which no hook shows
    known = load_sae(place("sparsify/layers.4", tmp_path)).config.metadata  # an SAE with a skip: from a site to itself
    assert known["hook_name"] == known["hook_name_out"] == "blocks.4.hook_resid_post"
    sae = load_sae(place("gemma_scope_2/transcoder_all/layer_5_width_16k_l0_small_affine", tmp_path))
    assert sae.config.skip and sae.config.metadata["hook_name_out"] == "blocks.5.hook_mlp_out"
    sae = load_sae(place("llamascopium/transcoder", tmp_path))
    assert sae.config.metadata["hook_name"] == "blocks.5.ln2.hook_normalized"
    assert sae.config.metadata["hook_name_out"] == "blocks.5.hook_mlp_out"


def test_a_sparsify_mlp_of_gemma_is_not_given_a_site_behind_the_post_norm(tmp_path):
    place("sparsify/layers.2.mlp", tmp_path)
    (tmp_path / "sparsify" / "config.json").write_text(json.dumps({"model": "google/gemma-2-2b"}))
    known = load_sae(tmp_path / "sparsify", part="layers.2.mlp").config.metadata
    assert "hook_name_out" not in known and known["hf_hook_name_out"] == "layers.2.mlp"


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("h.5", "blocks.5.hook_resid_post"),
        ("transformer.h.5.mlp", "blocks.5.hook_mlp_out"),
        ("model.layers.12.self_attn", "blocks.12.hook_attn_out"),
        ("gpt_neox.layers.0.attention", "blocks.0.hook_attn_out"),
        ("embed_in", None),
    ],
)
def test_sparsify_hookpoints(tmp_path, module, site):
    place("sparsify/layers.15", tmp_path).rename(tmp_path / "sparsify" / module)
    assert load_sae(tmp_path / "sparsify" / module).config.metadata.get("hook_name") == site


def llama_scope_formula(weights, about, x):
    """What the suite's authors run, step by step and in float64: scales folded, rows made units, one threshold."""
    E, e, D, c = (weights[f"{side}.{kind}"].double() for side in ("encoder", "decoder") for kind in ("weight", "bias"))
    norms, root = about["dataset_average_activation_norm"], math.sqrt(about["d_model"])
    s_in, s_out = root / norms["in"], root / norms["out"]
    e, D, c = e / s_in, D * s_in / s_out, c / s_out  # codes in the units of the raw input
    if about["sparsity_include_decoder_norm"]:
        size = D.norm(dim=0)
        E, e, D = E * size[:, None], e * size, D / size
    pre = x.double() @ E.T + e
    codes = pre * (pre > about["jump_relu_threshold"])
    return codes.float(), (codes @ D.T + c).float()


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("norms", [(0.676, 0.676), (4.0, 0.35)])
def test_llama_scope_with_rows_of_any_length(tmp_path, weighed, norms):
    """The published rows are not units, and transcoders scale what they write by another norm than what they read."""
    folder = place(LLAMA, tmp_path)
    weights = read(folder / "checkpoints" / "final.safetensors")
    weights["decoder.weight"] *= torch.linspace(0.3, 3, 40)
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    about = json.loads((folder / "hyperparams.json").read_text())
    about |= {
        "sparsity_include_decoder_norm": weighed,
        "dataset_average_activation_norm": {"in": norms[0], "out": norms[1]},
    }
    if norms[0] != norms[1]:
        about |= {"hook_point_in": "blocks.15.ln2.hook_normalized", "hook_point_out": "blocks.15.hook_mlp_out"}
    (folder / "hyperparams.json").write_text(json.dumps(about))
    x = expected(LLAMA)[0] * norms[0] / 0.676
    codes, out = llama_scope_formula(weights, about, x)
    assert 0.02 < (codes > 0).float().mean() < 0.6
    sae = load_sae(folder)
    assert sae.config.is_transcoder == (norms[0] != norms[1])
    # the codes here are those of the scaled input: theirs, put back by the length of their rows
    s_in, s_out = (4 / norm for norm in norms)
    unit = weights["decoder.weight"].norm(dim=0) * s_in / s_out if weighed else torch.ones(40)
    same_function(sae, x, codes * s_in / unit, out)


def test_llama_scope_still_in_topk_form(tmp_path):
    folder = place(LLAMA, tmp_path)
    weights = read(folder / "checkpoints" / "final.safetensors")
    weights["decoder.weight"] *= torch.linspace(0.3, 3, 40)
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    about = json.loads((folder / "hyperparams.json").read_text())
    about |= {"act_fn": "topk", "top_k": 5, "jump_relu_threshold": 0.0}
    (folder / "hyperparams.json").write_text(json.dumps(about))
    x, scale = expected(LLAMA)[0], 4 / 0.676
    pre = x * scale @ weights["encoder.weight"].T + weights["encoder.bias"]
    score = pre * weights["decoder.weight"].norm(dim=0)
    codes = (score * (score >= score.topk(5).values[:, -1:])).relu()
    unit = weights["decoder.weight"] / weights["decoder.weight"].norm(dim=0)
    sae = load_sae(folder)
    assert sae.config.k == 5
    same_function(sae, x, codes, (codes @ unit.T + weights["decoder.bias"]) / scale)
    about |= {"jump_relu_threshold": 0.33}  # the threshold that replaces TopK is used where there is one
    (folder / "hyperparams.json").write_text(json.dumps(about))
    assert load_sae(folder).config.architecture == "jumprelu"


def test_a_bias_subtracted_before_llama_scopes_encoder(tmp_path):
    folder = place(LLAMA, tmp_path)
    weights = read(folder / "checkpoints" / "final.safetensors")
    about = json.loads((folder / "hyperparams.json").read_text()) | {"apply_decoder_bias_to_pre_encoder": True}
    (folder / "hyperparams.json").write_text(json.dumps(about))
    x, scale = expected(LLAMA)[0], 4 / 0.676
    pre = (x * scale - weights["decoder.bias"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    codes = pre * (pre > about["jump_relu_threshold"] * scale)
    out = (codes @ weights["decoder.weight"].T + weights["decoder.bias"]) / scale
    same_function(load_sae(folder), x, codes, out)


def test_raw_rows_of_llama_scope_are_short_by_its_scale_and_directions_are_units(tmp_path):
    folder = place(LLAMA, tmp_path)
    sae = load_sae(folder)
    norm = json.loads((folder / "hyperparams.json").read_text())["dataset_average_activation_norm"]["in"]
    factor = math.sqrt(16) / norm
    assert 5.9 < factor < 5.95  # that of the real suite at layer 15 is 5.919
    raw = directions(sae, [3, 7, 31], unit=False)
    torch.testing.assert_close(raw.norm(dim=1), torch.full((3,), 1 / factor), rtol=1e-5, atol=0)
    unit = directions(sae, [3, 7, 31])
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(unit, raw * factor)


def test_old_sae_lens_files_with_a_finetuned_factor_or_a_logarithm(tmp_path):
    folder = place("saelens_legacy/oldest", tmp_path)
    weights, cfg = read(folder / "sae_weights.safetensors"), json.loads((folder / "cfg.json").read_text())
    weights["scaling_factor"] = torch.linspace(0.5, 2, 40)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg | {"finetuning_scaling_factor": True}))
    x, codes, _ = expected("saelens_legacy/oldest")
    out = (codes * weights["scaling_factor"]) @ weights["W_dec"] + weights["b_dec"]
    same_function(load_sae(folder), x, codes, out)

    folder = place("saelens_legacy/jumprelu", tmp_path)
    weights = read(folder / "sae_weights.safetensors")
    weights["log_threshold"] = weights.pop("threshold").log()
    save_file(weights, folder / "sae_weights.safetensors")
    same_function(load_sae(folder), *expected("saelens_legacy/jumprelu"))


def test_weights_in_half_precision_are_read_in_full(tmp_path):
    """As Llama Scope is published: products are formed in float32, from the rounded weights."""
    folder = place(LLAMA, tmp_path)
    path = folder / "checkpoints" / "final.safetensors"
    weights = {name: tensor.bfloat16() for name, tensor in read(path).items()}
    save_file(weights, path)
    about = json.loads((folder / "hyperparams.json").read_text())
    x = expected(LLAMA)[0]
    codes, out = llama_scope_formula(weights, about, x)
    scale = 4 / 0.676
    sae = load_sae(folder)
    same_function(sae, x, codes * scale / weights["decoder.weight"].float().norm(dim=0), out)
    assert sae.config.dtype == "float32"


def test_a_safetensors_copy_is_read_in_place_of_the_pickle(tmp_path):
    case = "dictionary_learning/GatedAutoEncoder"
    folder = place(case, tmp_path)
    save_file(read(FIXTURES / case / "pickled.safetensors"), folder / "ae.safetensors")
    same_function(load_sae(folder), *expected(case))  # no trust asked for: the pickle beside it stays closed
    safe = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.safetensors"
    save_file(read(FIXTURES / "goodfire" / "pickled.safetensors"), safe)
    same_function(load_sae(safe), *expected("goodfire"))


def test_a_file_may_be_named_in_place_of_its_folder(tmp_path):
    for case, file in (
        ("gemma_scope", "params.npz"),
        ("saelens/gated", "sae_weights.safetensors"),
        ("dictionary_learning/BatchTopKSAE", "ae.pt"),
        ("goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth"),
    ):
        same_function(load_sae(place(case, tmp_path) / file, trust_pickle=True), *expected(case))


def test_the_manifest_names_the_versions_and_no_pickle_is_committed():
    versions = json.loads((FIXTURES / "manifest.json").read_text())
    assert set(versions) == {"torch", "sae-lens", "eai-sparsify", "dictionary-learning", "llamascopium"}
    assert all(re.match(r"\d+\.\d+", version) for version in versions.values())
    files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 1_000_000


OWN = {
    "saelens/gated": ("saelens", "sae_weights.safetensors"),
    "saelens_legacy/gated": ("saelens", "sae_weights.safetensors"),
    "sparsify/layers.15": ("sparsify", "sae.safetensors"),
    "gemma_scope": ("gemma_scope", "params.npz"),
    "gemma_scope_2/resid_post/layer_5_width_16k_l0_small": ("gemma_scope_2", "params.safetensors"),
    LLAMA: ("llama_scope", "checkpoints/final.safetensors"),
    "llamascopium/jumprelu": ("llamascopium", "sae_weights.safetensors"),
    "dictionary_learning/GatedAutoEncoder": ("dictionary_learning", "ae.pt"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_file_of_weights_of_another_name_is_the_one_that_is_read(tmp_path, case):
    """An earlier checkpoint beside the last one: told the layout, the file named is read, never its neighbour."""
    layout, usual = OWN[case]
    folder = place(case, tmp_path)
    named = (folder / usual).with_stem("earlier")
    (folder / usual).rename(named)
    (folder / usual).write_bytes(b"another SAE")
    x, codes, out = expected(case)
    same_function(load_sae(named, layout=layout, trust_pickle=True), x, codes, out)


def test_an_npz_of_the_other_order_of_bytes(tmp_path):
    folder = place("gemma_scope", tmp_path)
    with np.load(folder / "params.npz") as arrays:
        swapped = {name: arrays[name].astype(arrays[name].dtype.newbyteorder(">")) for name in arrays.files}
    np.savez(folder / "params.npz", **swapped)
    same_function(load_sae(folder), *expected("gemma_scope"))


def test_llama_scopes_file_may_be_named_too(tmp_path, monkeypatch):
    folder = place(LLAMA, tmp_path)
    same_function(load_sae(folder / "checkpoints/final.safetensors"), *expected(LLAMA))
    monkeypatch.chdir(folder / "checkpoints")
    same_function(load_sae("final.safetensors"), *expected(LLAMA))


def test_a_folder_of_two_saes_is_not_read_by_guess(tmp_path):
    folder = place("gemma_scope", tmp_path)
    (folder / "params.safetensors").write_bytes(b"another SAE")
    told = r"several layouts \(gemma_scope: params\.npz; gemma_scope_2: params\.safetensors\): name the file, or give"
    with pytest.raises(InputError, match=told):
        load_sae(folder)
    for chosen in (load_sae(folder, layout="gemma_scope"), load_sae(folder / "params.npz")):
        same_function(chosen, *expected("gemma_scope"))
