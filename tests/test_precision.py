"""The dtype nobody asked for: bfloat16 where the hardware has it, float32 elsewhere, and said aloud either way."""

import json
import types

import pytest
import torch

from interp import precision
from interp.extract import prepare
from interp.loading import load_hf
from interp.model import HookedModel
from interp.parity import prompt_tokens
from interp.precision import default_dtype
from tests.tiny_models import random_tokens, tiny
from tests.toy_store import token_file, word_tokenizer


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_it_follows_the_hardware(monkeypatch, has, dtype):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(precision, "cuda_has_bfloat16", lambda device: has)
    assert default_dtype("cpu") is dtype
    assert default_dtype(torch.device("cuda", 0)) is dtype
    assert default_dtype("mps") is torch.float32  # unmeasured


@pytest.mark.parametrize(
    ("found", "has"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),  # AVX-512 alone multiplies no bfloat16
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_cpu_by_its_capabilities(monkeypatch, found, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert precision.cpu_has_bfloat16() is has


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True)])
def test_a_cpu_seen_by_an_older_torch(monkeypatch, avx, amx):
    older = types.SimpleNamespace(_is_avx512_bf16_supported=lambda: avx, _is_amx_tile_supported=lambda: amx)
    monkeypatch.setattr(precision.torch, "cpu", older)
    assert precision.cpu_has_bfloat16() is (avx or amx)
    monkeypatch.setattr(precision.torch, "cpu", types.SimpleNamespace())
    assert precision.cpu_has_bfloat16() is False


def test_this_machine_agrees_with_its_own_flags():
    from pathlib import Path

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" not in flags:
        pytest.skip("no flags to compare with")
    assert precision.cpu_has_bfloat16() is ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(("has", "name"), [(True, "bfloat16"), (False, "float32")])
def test_loading_takes_it_and_the_plan_says_it(tmp_path, monkeypatch, has, name):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has)
    tiny("llama").save_pretrained(tmp_path / "m")
    model = HookedModel.load(tmp_path / "m", upto="resid_post.1", device="cpu")
    assert str(model.dtype) == f"torch.{name}" and {p.dtype for p in model.hf.parameters()} == {model.dtype}
    extraction = prepare(model, token_file(tmp_path / "t", [20, 30]), ["resid_post.1"], tmp_path / "s")
    assert f"computing in {name}" in extraction.describe()
    assert extraction.run(progress=False).specs[0].compute_dtype == name
    assert load_hf(tmp_path / "m", device="cpu", dtype="float32").hf.dtype is torch.float32


def test_parity_tells_what_sixteen_bits_cost(tmp_path, capsys):
    from midlens.parity import Parity

    hf = tiny("llama")
    hf.save_pretrained(tmp_path / "m")
    word_tokenizer(words=90).save_pretrained(tmp_path / "m")
    asked = {"device": "cpu", "opinions": ("plain",), "tolerance": 1.0, "sites": ("resid_post.0", "resid_post.2")}
    written = tmp_path / "table.json"
    assert Parity(str(tmp_path / "m"), dtype="bfloat16", out=written, **asked).run() == 0
    assert "largest against float32:" in capsys.readouterr().out
    rows = {row["site"]: row for row in json.loads(written.read_text())["rows"]}

    # The same by hand: hidden states of Hugging Face's own forward in both dtypes, sequence by sequence.
    tokens, lengths = prompt_tokens(HookedModel.load(tmp_path / "m", dtype="float32", device="cpu"))
    low = load_hf(tmp_path / "m", dtype="bfloat16", device="cpu").hf
    worst = 0.0
    for row, length in zip(tokens, lengths, strict=True):
        with torch.no_grad():
            b = hf(row[None, :length], output_hidden_states=True).hidden_states[1][0]
            a = low(row[None, :length], output_hidden_states=True).hidden_states[1][0].float()
        worst = max(worst, float(((a - b).abs().amax(1) / b.abs().amax(1)).max()))
    found = rows["blocks.0.hook_resid_post"]["float32"]["relative"]
    assert 1e-3 < found < 0.1 and found == pytest.approx(worst, rel=0.5)  # other batch shapes round otherwise

    assert Parity(str(tmp_path / "m"), dtype="float32", **asked).run() == 0
    assert "float32:" not in capsys.readouterr().out  # nothing to tell
    # However far float32 is, the verdict is that of the opinions asked.
    strict = {**asked, "tolerance": 5e-2, "sites": ("resid_post.0",)}
    assert Parity(str(tmp_path / "m"), dtype="bfloat16", **strict).run() == 0


def test_the_float32_column_is_no_part_of_the_verdict(tmp_path):
    from interp.parity import FLOAT32, parity

    model, other = HookedModel.wrap(tiny("llama")), HookedModel.wrap(tiny("llama", seed=1))
    table = parity(model, random_tokens(model.hf, 2, 9), sites=["resid_post.1"], opinions=("plain",), float32=other)
    assert table.worst(FLOAT32)[1].relative > 0.1 and not table.above(1e-4, opinions=["plain"])
