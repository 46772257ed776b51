"""What damaged, mixed-up, untrusted or unsupported SAE files are told; nothing is read on a guess."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from interp.errors import InputError
from saes.directions import _indices, directions
from saes.interop import load_sae
from saes.sae import SAE
from tests.sae_layouts import place

LLAMA = "llama_scope/Llama3_1-8B-Base-L15R-32x"
GEMMA_2 = "gemma_scope_2/resid_post/layer_5_width_16k_l0_small"
# per layout: a case, its config, its weights, and the names of encoder and threshold there
SAFE = {
    "sparsify/layers.15": ("cfg.json", "sae.safetensors", "encoder.weight"),
    "saelens/jumprelu": ("cfg.json", "sae_weights.safetensors", "W_enc"),
    "saelens_legacy/jumprelu": ("cfg.json", "sae_weights.safetensors", "W_enc"),
    GEMMA_2: ("config.json", "params.safetensors", "w_enc"),
    LLAMA: ("hyperparams.json", "checkpoints/final.safetensors", "encoder.weight"),
    "llamascopium/jumprelu": ("config.json", "sae_weights.safetensors", "W_E"),
}


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that may then be written again: `load_file` would map it."""
    return load(path.read_bytes())


def change_weights(folder: Path, file: str, **changes: torch.Tensor | None) -> None:
    weights = read(folder / file) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}, folder / file)


def change_config(folder: Path, file: str, **changes) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


def refused(source: Path | str, *told: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        load_sae(source, **options)
    for words in told:
        assert words in str(caught.value), (words, str(caught.value))


@pytest.mark.parametrize("case", SAFE)
def test_a_tensor_missing_too_many_or_of_another_sae(tmp_path, case):
    _, file, encoder = SAFE[case]
    folder = place(case, tmp_path)
    good = read(folder / file)
    change_weights(folder, file, W_extra=torch.zeros(3))
    refused(folder, "W_extra", str(folder / file) if "saelens/" not in case else "")
    change_weights(folder, file, W_extra=None, **{encoder.replace(".", "__"): None})
    refused(folder, encoder)
    change_weights(folder, file, **{encoder.replace(".", "__"): good[encoder].flatten()[: 16 * 39].reshape(39, 16)})
    refused(folder, encoder, "39")
    change_weights(folder, file, **{encoder.replace(".", "__"): good[encoder]})
    load_sae(folder)


@pytest.mark.parametrize("case", SAFE)
def test_nan_and_infinite_weights(tmp_path, case):
    _, file, encoder = SAFE[case]
    folder = place(case, tmp_path)
    bad = read(folder / file)[encoder]
    for value in (float("nan"), float("inf")):
        bad[2, 3] = value
        change_weights(folder, file, **{encoder.replace(".", "__"): bad})
        refused(folder, encoder, "NaN or infinite")


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("sparsify/layers.15", "d_in"),
        ("sparsify/layers.15", "num_latents"),
        ("saelens/jumprelu", "d_in"),
        ("saelens_legacy/jumprelu", "d_sae"),
        (GEMMA_2, "width"),
        (LLAMA, "d_model"),
        (LLAMA, "d_sae"),
        ("llamascopium/jumprelu", "d_model"),
    ],
)
def test_a_config_of_another_width(tmp_path, case, key):
    folder = place(case, tmp_path)
    change_config(folder, SAFE[case][0], **{key: 24})
    refused(folder, "24" if case != "llamascopium/jumprelu" else "60")  # 24 x 2.5 features


@pytest.mark.parametrize(
    ("case", "threshold"),
    [("saelens/jumprelu", -0.1), ("saelens_legacy/jumprelu", -1e-6), (GEMMA_2, -2.0), (GEMMA_2, float("nan"))],
)
def test_thresholds_below_zero_or_nan(tmp_path, case, threshold):
    folder = place(case, tmp_path)
    values = read(folder / SAFE[case][1])["threshold"]
    values[5] = threshold
    change_weights(folder, SAFE[case][1], threshold=values)
    refused(folder, "NaN" if threshold != threshold else "negative")


def test_a_negative_threshold_in_params_npz(tmp_path):
    folder = place("gemma_scope", tmp_path)
    with np.load(folder / "params.npz") as held:
        params = dict(held)
    params["threshold"][7] = -0.5
    np.savez(folder / "params.npz", **params)
    refused(folder, "1 of 40 thresholds are negative")
    change = {"jump_relu_threshold": -0.3}
    folder = place(LLAMA, tmp_path)
    change_config(folder, "hyperparams.json", **change)
    refused(folder, "40 of 40 thresholds are negative")


@pytest.mark.parametrize("case", ["dictionary_learning/BatchTopKSAE", "goodfire"])
def test_a_pickle_is_not_opened_unless_trusted(tmp_path, case):
    folder = place(case, tmp_path)
    refused(folder, "pickle", "trust_pickle=True")
    load_sae(folder, trust_pickle=True)


class Payload:
    """Runs when a pickle of it is opened as pickles are."""

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.mark.parametrize("case", ["dictionary_learning/BatchTopKSAE", "goodfire"])
def test_a_trusted_pickle_still_runs_nothing(tmp_path, case):
    folder = place(case, tmp_path)
    file = next(path for path in folder.iterdir() if path.suffix in (".pt", ".pth"))
    payload = Payload()
    payload.target = str(tmp_path / "it ran")
    torch.save({"encoder.weight": payload}, file)
    refused(folder, "not opened at all", trust_pickle=True)
    assert not (tmp_path / "it ran").exists()
    torch.load(file, weights_only=False)  # the file does run something when opened without care
    assert (tmp_path / "it ran").exists()


def test_a_pickle_under_the_name_of_a_safetensors_file(tmp_path):
    folder = place("sparsify/layers.15", tmp_path)
    weights = read(folder / "sae.safetensors")
    torch.save(weights, folder / "sae.safetensors")
    refused(folder, "pickle", "expected safetensors", "trust_pickle=True")
    assert load_sae(folder, trust_pickle=True).config.k == 6
    torch.save([1, 2], folder / "sae.safetensors")
    refused(folder, "list", "plain table of tensors", trust_pickle=True)


def test_pickled_objects_in_an_npz_are_not_opened(tmp_path):
    folder = place("gemma_scope", tmp_path)
    np.savez(folder / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    refused(folder, "plain arrays", "pickled objects are not opened", trust_pickle=True)


@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("gemma_scope", "params.npz"),
        (LLAMA, "checkpoints/final.safetensors"),
        ("goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth"),
        ("dictionary_learning/GatedAutoEncoder", "ae.pt"),
    ],
)
def test_a_file_cut_short(tmp_path, case, file):
    path = place(case, tmp_path) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(tmp_path / case, str(path), trust_pickle=True)
    path.write_bytes(b"")
    refused(tmp_path / case, str(path), trust_pickle=True)


def test_a_damaged_config(tmp_path):
    folder = place("sparsify/layers.15", tmp_path)
    (folder / "cfg.json").write_text("{")
    refused(folder, "not JSON")
    (folder / "cfg.json").write_text("[1]")
    refused(folder, "list", "expected a JSON object")


@pytest.mark.parametrize(
    ("case", "config", "changes", "told"),
    [
        ("sparsify/layers.15", "cfg.json", {"activation": "groupmax"}, ["groupmax", "topk"]),
        ("sparsify/layers.15", "cfg.json", {"signed": True}, ["signed"]),
        ("sparsify/layers.15", "cfg.json", {"new_rule": 1}, ["unknown keys: new_rule"]),
        ("sparsify/layers.15", "cfg.json", {"k": None}, ["k is None"]),
        ("sparsify/layers.15", "cfg.json", {"k": 41}, ["k=41"]),
        ("sparsify/layers.15", "cfg.json", {"k": True}, ["k is True"]),
        ("sparsify/layers.15", "cfg.json", {"skip_connection": True}, ["lacks a W_skip"]),
        ("sparsify/layers.3.mlp", "cfg.json", {"skip_connection": False}, ["holds a W_skip"]),
        (GEMMA_2, "config.json", {"type": "clt"}, ["'clt'"]),
        (GEMMA_2, "config.json", {"type": "crosscoder"}, ["'crosscoder'"]),
        (GEMMA_2, "config.json", {"architecture": "topk"}, ["'topk'", "jump_relu"]),
        (GEMMA_2, "config.json", {"affine_connection": True}, ["affine_skip_connection"]),
        (LLAMA, "hyperparams.json", {"norm_activation": "token-wise"}, ["token-wise", "dataset-wise"]),
        (LLAMA, "hyperparams.json", {"norm_activation": None}, ["None", "dataset-wise"]),
        (LLAMA, "hyperparams.json", {"dataset_average_activation_norm": None}, ["'in' is None"]),
        (LLAMA, "hyperparams.json", {"dataset_average_activation_norm": {"in": 1.0, "out": 0.0}}, ["'out' is 0.0"]),
        (LLAMA, "hyperparams.json", {"act_fn": "batchtopk"}, ["batchtopk", "convert it"]),
        (LLAMA, "hyperparams.json", {"act_fn": "gelu"}, ["gelu"]),
        (LLAMA, "hyperparams.json", {"use_glu_encoder": True}, ["use_glu_encoder"]),
        (LLAMA, "hyperparams.json", {"jump_relu_threshold": None}, ["jump_relu_threshold is None"]),
        ("llamascopium/jumprelu", "config.json", {"sae_type": "lorsa"}, ["lorsa"]),
        ("llamascopium/jumprelu", "config.json", {"expansion_factor": "x"}, ["expansion_factor is 'x'"]),
        ("llamascopium/topk", "config.json", {"act_fn": "jumprelu"}, ["log_jumprelu_threshold"]),
        ("dictionary_learning/AutoEncoder", "config.json", {"trainer": {"dict_class": "CrossCoder"}}, ["CrossCoder"]),
        ("dictionary_learning/AutoEncoder", "config.json", {"trainer": None}, ["trainer is None"]),
        ("saelens_legacy/topk", "cfg.json", {"activation_fn_kwargs": {}}, ["activation_fn 'topk'"]),
        ("saelens_legacy/topk", "cfg.json", {"activation_fn_str": "tanh-relu"}, ["tanh-relu"]),
        ("saelens_legacy/oldest", "cfg.json", {"normalize_activations": "layer_norm"}, ["layer_norm"]),
        ("saelens_legacy/oldest", "cfg.json", {"normalize_activations": True}, ["True", "fold the scale"]),
        ("saelens_legacy/oldest", "cfg.json", {"architecture": "transcoder"}, ["'transcoder'"]),
        ("saelens/topk", "cfg.json", {"architecture": "abstopk"}, ["abstopk"]),
        ("saelens/topk", "cfg.json", {"normalize_activations": "layer_norm"}, ["layer_norm"]),
        ("saelens/topk", "cfg.json", {"some_new_key": 3}, ["some_new_key"]),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path, case, config, changes, told):
    folder = place(case, tmp_path)
    change_config(folder, config, **changes)
    refused(folder, *told, trust_pickle=True)


def test_dictionary_learning_before_its_threshold_was_estimated_or_with_another_k(tmp_path):
    folder = place("dictionary_learning/BatchTopKSAE", tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    refused(folder, "threshold is -1", "before it was estimated", trust_pickle=True)
    torch.save(state | {"k": torch.tensor(9)}, folder / "ae.pt")
    refused(folder, "k is 6", "k = 9", trust_pickle=True)


def test_an_old_factor_that_no_setting_asks_for(tmp_path):
    folder = place("saelens_legacy/oldest", tmp_path)
    change_weights(folder, "sae_weights.safetensors", scaling_factor=torch.full((40,), 1.5))
    refused(folder, "scaling_factor", "finetuning_scaling_factor is not set")
    folder = place("saelens_legacy/jumprelu", tmp_path)
    change_weights(folder, "sae_weights.safetensors", threshold=None)
    refused(folder, "neither threshold nor log_threshold")


def test_gemma_scopes_embedding_and_a_transcoder_under_another_name(tmp_path):
    place("gemma_scope", tmp_path).rename(tmp_path / "embedding")
    refused(tmp_path / "embedding", "sqrt(d)")
    folder = place("gemma_scope", tmp_path)
    with np.load(folder / "params.npz") as held:
        params = dict(held)
    params |= {"W_dec": params["W_dec"][:, :12], "b_dec": params["b_dec"][:12]}
    np.savez(folder / "params.npz", **params)
    refused(folder, "reads width 16 and writes 12", "transcoder")
    folder.rename(tmp_path / "transcoders")
    sae = load_sae(tmp_path / "transcoders")
    assert sae.config.is_transcoder and sae(torch.randn(3, 16)).shape == (3, 12)


@pytest.mark.parametrize(
    ("above", "transcoder"),
    [
        ("transcoder-study", False),
        ("my-transcoders", False),
        ("gemma-scope-2b-pt-transcoders-study", False),
        ("transcoder", True),
        ("gemma-scope-2b-pt-transcoders", True),
    ],
)
def test_only_the_suite_s_own_folders_make_a_square_sae_a_transcoder(tmp_path, above, transcoder):
    folder = tmp_path / above / "layer_3" / "width_1k" / "average_l0_5"
    folder.parent.mkdir(parents=True)
    place("gemma_scope", tmp_path).rename(folder)
    config = load_sae(folder).config
    assert config.is_transcoder == transcoder and config.d_in == config.width_out
    assert ("hook_name_out" in config.metadata) == above.endswith("pt-transcoders")


@pytest.mark.parametrize("value", [[1], 3, None, "text"])
def test_a_config_that_is_no_object(tmp_path, value):
    folder = place("saelens/topk", tmp_path)
    (folder / "cfg.json").write_text(json.dumps(value))
    refused(folder, "cfg.json", "expected a JSON object of settings")
    with pytest.raises(InputError, match=r"cfg\.json holds .*, expected a JSON object of settings"):
        SAE.load(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"d_in": "4"}, "d_in is '4', expected a whole number"),
        ({"d_sae": 4.0}, "d_sae is 4.0, expected a whole number"),
        ({"d_sae": True}, "d_sae is True, expected a whole number"),
        ({"d_in": None}, "d_in is None, expected a whole number"),
        ({"k": "3"}, "k is '3', expected a whole number or null"),
        ({"d_out": [4]}, "d_out is [4], expected a whole number or null"),
        ({"architecture": ["topk"]}, "architecture is ['topk'], expected a text"),
        ({"dtype": 32}, "dtype is 32, expected a text"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no', expected true or false"),
        ({"rescale_acts_by_decoder_norm": 1}, "rescale_acts_by_decoder_norm is 1, expected true or false"),
        ({"skip": True}, "unknown keys: skip"),
        ({"sources": [2, 2]}, "unknown keys: sources"),
        ({"metadata": ["a"]}, "metadata is ['a'], expected an object or null"),
        ({"metadata": "a"}, "metadata is 'a', expected an object or null"),
        ({"metadata": {"sae_lens_version": "new"}}, "sae_lens_version is 'new', expected a version such"),
        ({"metadata": {"sae_lens_version": 6}}, "sae_lens_version is 6, expected a version such"),
        ({"metadata": {"sae_lens_version": "6.1", "midlens_sources": None}}, "midlens_sources is None, expected"),
        ({"metadata": {"sae_lens_version": "6.1", "midlens_sources": "88"}}, "midlens_sources is '88', expected"),
    ],
)
def test_settings_of_another_type_name_file_key_and_what_is_expected(tmp_path, changes, told):
    folder = place("saelens/topk", tmp_path)
    change_config(folder, "cfg.json", **changes)
    refused(folder, "cfg.json", told)
    with pytest.raises(InputError, match=re.escape(told)):
        SAE.load(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"d_in": "4"}, "d_in is '4', expected a whole number"),
        ({"activation_fn_kwargs": {"k": "many"}}, "k is 'many'"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no', expected true or false"),
        ({"metadata": [1]}, "metadata is [1], expected an object or null"),
    ],
)
def test_the_same_before_version_6(tmp_path, changes, told):
    folder = place("saelens_legacy/topk", tmp_path)
    change_config(folder, "cfg.json", **changes)
    refused(folder, "cfg.json", told)


@pytest.mark.parametrize(("case", "file"), [("sparsify/layers.15", "cfg.json"), ("saelens/topk", "cfg.json")])
def test_more_active_features_than_there_are_names_the_sae(tmp_path, case, file):
    folder = place(case, tmp_path)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {"k": 10_000}))
    refused(folder, str(folder), "k=10000 active features do not fit")


def test_layouts_that_are_not_known_or_not_there(tmp_path):
    folder = place("sparsify/layers.15", tmp_path)
    refused(folder, "layout is one of saelens, sparsify, ", "got 'foo'", layout="foo")
    refused(folder, "holds no .pth or .pt file, expected one", "part=", layout="goodfire")
    for name in ("a.pth", "b.pth"):
        (folder / name).touch()
    refused(folder, "holds a.pth, b.pth, expected one", layout="goodfire", trust_pickle=True)


def test_a_pickle_named_sae_weights_is_told_as_one(tmp_path):
    folder = place("saelens/topk", tmp_path)
    expected = load_sae(folder).W_dec
    torch.save(read(folder / "sae_weights.safetensors"), folder / "sae_weights.safetensors")
    refused(folder, "is a pickle", "expected safetensors", "trust_pickle=True, --trust-pickle")
    assert torch.equal(load_sae(folder, trust_pickle=True).W_dec, expected)


def test_a_folder_of_no_layout_names_those_known_and_what_is_there(tmp_path):
    (tmp_path / "layers.1").mkdir()
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, "layers.1/, notes.txt", "part=", "params.npz", "cfg.json + sae.safetensors")
    refused(tmp_path, "holds no layers.2", "layers.1/", part="layers.2")
    refused(tmp_path / "notes.txt", "no layout known")
    refused(tmp_path / "nothing here", "no file or folder", "llama-scope-l15r-32x", "organisation/name")
    refused("sae", "no file or folder")
    for name in ("../a/b", "~/a/b", "a//b", str(tmp_path / "missing")):
        refused(name, "no file or folder")


def test_another_layout_than_that_of_the_files(tmp_path):
    folder = place("sparsify/layers.15", tmp_path)
    refused(folder, "params.npz", layout="gemma_scope")
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("readme", "no array")
    refused(tmp_path / "params.npz", "params.npz")


def test_features_that_do_not_exist_or_have_no_direction(tmp_path):
    sae = load_sae(place("sparsify/layers.15", tmp_path))
    with pytest.raises(InputError, match=re.escape("from 0 to 39, got 40")):
        directions(sae, [1, 40])
    with pytest.raises(InputError, match="got -1 and others"):
        directions(sae, [-1, -2])
    with torch.no_grad():
        sae.W_dec[4] = 0
    with pytest.raises(InputError, match="feature 4 has a decoder row of zeros"):
        directions(sae, torch.tensor([3, 4]))
    assert directions(sae, [4], unit=False).shape == directions(sae, 3).shape == (1, 16)


def test_features_are_named_by_whole_numbers_or_by_a_mask_of_all(tmp_path):
    """A mask taken for numbers would name features 0 and 1, and half a feature the one below."""
    sae = load_sae(place("sparsify/layers.15", tmp_path))
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[3, 17]] = True
    for given in (mask, mask.tolist(), torch.tensor([3, 17], dtype=torch.int32)):
        assert torch.equal(directions(sae, given, unit=False), sae.W_dec.detach()[[3, 17]])
    assert directions(sae, []).shape == directions(sae, ~mask & mask).shape == (0, 16)
    with pytest.raises(InputError, match="a mask of features has 40 entries, one for each, got 39"):
        directions(sae, mask[:39])
    for wrong in (1.5, [1.0, 2.0], torch.tensor([1.0])):  # which the annotations forbid, but only these tests heed them
        with pytest.raises(InputError, match=r"whole numbers from 0 to 39, or a mask of all, got torch\.float32"):
            _indices(wrong, 40)
