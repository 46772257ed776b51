"""`SAE` against a dense formula; its config, its folder, and what damaged or foreign files are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import InputError
from saes.sae import CFG, SAE, WEIGHTS, SAEConfig


def weights(d: int, f: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}


def make(d: int = 6, f: int = 20, k: int = 3, **over) -> SAE:
    return SAE.of_weights(SAEConfig(d_in=d, d_sae=f, k=k, **over), **weights(d, f))


def dense_formula(sae: SAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    centred = x - sae.b_dec if sae.config.apply_b_dec_to_input else x
    pre = centred @ sae.W_enc + sae.b_enc
    code = (pre * (pre >= pre.topk(sae.config.k).values[:, -1:])).relu()
    return code, code @ sae.W_dec + sae.b_dec


@pytest.mark.parametrize("subtract", [True, False])
def test_encode_and_decode_are_the_dense_formula(subtract):
    sae, x = make(apply_b_dec_to_input=subtract), torch.randn(9, 6)
    code, reconstruction = dense_formula(sae, x)
    torch.testing.assert_close(sae.encode(x).dense(), code)
    torch.testing.assert_close(sae(x), reconstruction)
    torch.testing.assert_close(sae.decode(sae.encode(x)), reconstruction)
    assert (sae.encode(x).values > 0).all()
    assert sae.activate(x).counts.tolist() == [3] * 9


def test_gradients_are_those_of_the_dense_formula():
    sae = SAE.of_weights(SAEConfig(d_in=5, d_sae=12, k=4, dtype="float64"), **weights(5, 12))
    with torch.no_grad():
        sae.b_enc -= 3  # fewer than k positive on many tokens
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, *sae.parameters()]
    target = torch.randn(30, 5, dtype=torch.float64)
    ours = torch.autograd.grad((sae(x) - target).square().sum(), wanted)
    plain = torch.autograd.grad((dense_formula(sae, x)[1] - target).square().sum(), wanted)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_no_tokens():
    sae = make()
    assert sae(torch.zeros(0, 6)).shape == (0, 6)
    assert sae.encode(torch.zeros(0, 6)).n_tokens == 0


def test_W_enc_shares_the_encoder_memory():
    sae = make()
    assert sae.W_enc.data_ptr() == sae.encoder.data_ptr() and sae.W_enc.shape == (6, 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load(tmp_path, dtype):
    sae = make(dtype=dtype, metadata={"hook_name": "blocks.3.hook_resid_post", "own": {"a": [1]}})
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    x = torch.randn(4, 6)
    assert torch.equal(again(x), sae(x)) and again.encoder.dtype == getattr(torch, dtype)
    assert again.config.metadata["own"] == {"a": [1]}
    assert again.config.metadata["hook_name"] == "blocks.3.hook_resid_post"
    again.save(tmp_path / "twice")
    for name in (CFG, WEIGHTS):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "sae" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == [CFG, WEIGHTS]


def test_a_truncated_or_flipped_weights_file_is_refused(tmp_path):
    make().save(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"damaged or cut short .*; take the SAE from a copy"):
        SAE.load(tmp_path)
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    (tmp_path / WEIGHTS).write_bytes(flipped)
    with pytest.raises(InputError, match=r"is damaged: its tensors have the sha256 .*its header says"):
        SAE.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"holds no {WEIGHTS}, so it is no finished SAE"):
        SAE.load(tmp_path)
    (tmp_path / CFG).write_text("{")
    with pytest.raises(InputError, match=r"cfg\.json is damaged, it is not JSON"):
        SAE.load(tmp_path)


def test_an_unfinished_save_over_another_sae_is_no_sae(tmp_path, monkeypatch):
    """Killed between weights and cfg.json: the old cfg.json must not vouch for the new weights."""
    make().save(tmp_path)
    monkeypatch.setattr("saes.sae.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(apply_b_dec_to_input=False).save(tmp_path)
    with pytest.raises(InputError):
        SAE.load(tmp_path)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="the SAE's metadata cannot be written as JSON"):
        make(metadata={"where": tmp_path}).save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_negative_threshold_is_refused_from_tensors_too():
    threshold = torch.zeros(20).index_fill(0, torch.tensor([3]), -1.0)
    with pytest.raises(InputError, match="1 of 20 thresholds are negative or NaN"):
        SAE.of_weights(SAEConfig(d_in=6, d_sae=20, architecture="jumprelu"), **weights(6, 20), threshold=threshold)


def test_a_pickle_under_another_name_is_called_one(tmp_path):
    make().save(tmp_path)
    torch.save({"W_enc": torch.zeros(6, 20)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError, match="is a pickle, expected safetensors"):
        SAE.load(tmp_path)


def test_the_dtype_on_disk_is_said(tmp_path):
    make().to(torch.bfloat16).save(tmp_path)
    assert SAE.load(tmp_path).config.dtype == "bfloat16"


def edit(folder, **changes):
    cfg = json.loads((folder / CFG).read_text())
    for name, value in changes.items():
        cfg.pop(name, None) if value is None else cfg.update({name: value})
    (folder / CFG).write_text(json.dumps(cfg))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold_lr": 0.1}, "unknown keys: threshold_lr"),
        ({"architecture": "temporal"}, "architecture is 'temporal', but only .*'topk', .* can be loaded"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm', but only 'none'"),
        ({"normalize_activations": "expected_average_only_in"}, "but only 'none' can be loaded"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q', but only 'none', 'hook_z' can be"),
        ({"metadata": {}}, "no metadata.sae_lens_version, so it is no SAELens version 6 file"),
        ({"k": None}, "a topk SAE needs k"),
        ({"d_sae": None}, "lacks d_sae; an SAE cannot be rebuilt without"),
        ({"architecture": "jumprelu"}, "k=3 was given, but a jumprelu SAE has no k"),
        ({"architecture": "topk_transcoder"}, "'topk_transcoder' and d_out=None contradict"),
        ({"d_out": 5}, "'topk' and d_out=5 contradict"),
        ({"k": 21}, "k=21 active features do not fit an SAE of d_sae=20"),
        ({"d_sae": 21}, r"holds .*\(6, 20\).* but cfg.json calls for .*\(6, 21\)"),
    ],
)
def test_a_config_that_would_change_the_outputs_is_refused(tmp_path, changes, message):
    make().save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        SAE.load(tmp_path)


def test_foreign_training_keys_become_metadata_but_are_refused_in_our_own_files(tmp_path):
    make().save(tmp_path)
    edit(tmp_path, decoder_init_norm=0.1)
    with pytest.raises(InputError, match="unknown keys: decoder_init_norm"):
        SAE.load(tmp_path)
    edit(tmp_path, metadata={"sae_lens_version": "6.54.12", "neuronpedia_id": "x/1"})
    assert dict(SAE.load(tmp_path).config.metadata) == {
        "sae_lens_version": "6.54.12",
        "neuronpedia_id": "x/1",
        "decoder_init_norm": 0.1,
    }


def test_nan_weights_are_refused(tmp_path):
    make().save(tmp_path)
    held = load_file(tmp_path / WEIGHTS)
    held["b_enc"][3] = float("nan")
    save_file(held, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="b_enc holds NaN or infinite values"):
        SAE.load(tmp_path)


@pytest.mark.parametrize("k", [0, 21])
def test_k_must_fit(k):
    with pytest.raises(InputError, match=rf"k={k} active features do not fit .* choose k between 1 and 20"):
        SAEConfig(d_in=6, d_sae=20, k=k)


def test_activations_of_another_width_are_refused():
    sae = make(metadata={"hook_name": "blocks.3.hook_resid_post"})
    with pytest.raises(InputError, match=r"width 6 \(blocks.3.hook_resid_post\), got width 7: they come from another"):
        sae.encode(torch.zeros(2, 7))


MISMATCHED = """
import torch
from interp.errors import InputError
from saes.sae import SAE, SAEConfig
shape = SAEConfig(d_in=4, d_sae=6, k=2, d_out=3, skip=True, apply_b_dec_to_input=False)
sae = SAE.of_weights(shape, **{name: torch.zeros(sizes) for name, sizes in shape.shapes().items()})
other = SAEConfig(d_in=4, d_sae=8, k=2)
other = SAE.of_weights(other, **{name: torch.zeros(sizes) for name, sizes in other.shapes().items()})
x = torch.zeros(5, 4)
for wrong in (
    lambda: sae.encode(x[0]),
    lambda: sae(x[None]),
    lambda: sae.decode(other.encode(x), x),
    lambda: sae.decode(sae.encode(x), x[:2]),
):
    try:
        wrong()
    except InputError as error:
        print(error)
"""


def test_what_does_not_fit_is_named_where_no_shape_is_checked():
    """Outside the tests annotations are not executed: the methods themselves have to refuse."""
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", MISMATCHED], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "an SAE reads one row per token, (tokens, 4); got (4,): x.reshape(-1, 4) makes rows of it",
        "an SAE reads one row per token, (tokens, 4); got (1, 5, 4): x.reshape(-1, 4) makes rows of it",
        "these codes are of 8 features, this SAE has 6",
        "codes of 5 tokens with the inputs of 2: give those they come from",
    ]
