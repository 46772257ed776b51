"""The dtype nobody asked for: bfloat16 where the hardware has it, float32 elsewhere, and said aloud either way."""

import types

import pytest
import torch

from interp import precision
from interp.extract import prepare
from interp.loading import load_hf
from interp.model import HookedModel
from interp.precision import default_dtype
from tests.tiny_models import tiny
from tests.toy_store import token_file


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
