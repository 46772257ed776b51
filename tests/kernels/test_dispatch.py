"""Which implementation an encoder takes: calls that its Triton kernel cannot take fall back, or are refused."""

import importlib
import os

import pytest
import torch
from midlens_kernels import _dispatch, threshold_select, topk_encode, use_backend

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ENCODERS = {"topk_encode": topk_encode, "threshold_select": threshold_select}
each = pytest.mark.parametrize("op", ENCODERS)


@pytest.fixture
def taken(monkeypatch):
    """Names of the implementations called, once "auto" may choose both Triton kernels."""
    called = []
    for op in ENCODERS:
        front, by_triton = (importlib.import_module(f"midlens_kernels.{op}{part}") for part in ("", "._triton"))
        for module, name in ((front, "cpu"), (front, "reference"), (by_triton, "triton")):
            implementation = getattr(module, f"{op}_{name}")

            def recorded(*args, fn=implementation, name=name, **options):
                called.append(name)
                return fn(*args, **options)

            monkeypatch.setattr(module, f"{op}_{name}", recorded)
    monkeypatch.setattr(_dispatch, "FASTER", frozenset(ENCODERS))
    return called


def encoded(op: str, size: int, f: int = 40, compute: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(*shape, generator=g).to(DEVICE) for shape in ((2, 3), (f, 3), (f,)))
    return ENCODERS[op](x, W.T, b, size, compute=compute)


def assert_equal(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.sort().values, b.sort().values)


def with_limit(monkeypatch: pytest.MonkeyPatch, op: str, limit: int) -> None:
    for part in ("", "._triton"):
        monkeypatch.setattr(importlib.import_module(f"midlens_kernels.{op}{part}"), "LIMIT", limit)


@each
def test_auto_takes_triton_up_to_the_limit_and_falls_back_beyond_it(op, taken, monkeypatch):
    with_limit(monkeypatch, op, 3)
    encoded(op, 3)
    assert taken == ["triton"]
    found = encoded(op, 4)
    assert taken == ["triton", "cpu"]
    with use_backend("torch"):
        assert_equal(found, encoded(op, 4))


def test_auto_encodes_more_than_triton_can(taken):
    found = encoded("topk_encode", 2049, f=2100)
    with use_backend("reference"):
        assert_equal(found, encoded("topk_encode", 2049, f=2100))
    assert taken == ["cpu", "reference"]


@each
def test_auto_falls_back_for_products_that_triton_has_not(op, taken):
    found = encoded(op, 3, compute=torch.float64)
    with use_backend("torch"):
        assert_equal(found, encoded(op, 3, compute=torch.float64))
    encoded(op, 3, compute=torch.bfloat16)
    assert taken == ["cpu", "cpu", "triton"]


@each
def test_without_a_measured_kernel_auto_takes_none(op, taken, monkeypatch):
    monkeypatch.setattr(_dispatch, "FASTER", frozenset())
    encoded(op, 3)
    assert taken == ["cpu"]


def test_what_an_explicit_request_is_told(taken):
    rows = torch.zeros(1, 3, device=DEVICE).expand(2**15 + 1, 3)
    bias = torch.zeros(1, device=DEVICE).expand(2**15 + 1)
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match=r"its kernel takes k up to 2,048, got 2,049: use .*'torch'"):
            encoded("topk_encode", 2049, f=2100)
        with pytest.raises(RuntimeError, match=r"'triton' was requested.* count up to 1,073,741,824, got"):
            threshold_select(rows, rows.T, bias, 2**30 + 1)
        for op in ENCODERS:
            with pytest.raises(RuntimeError, match=r"products in float32, float16 or bfloat16, got torch\.float64"):
                encoded(op, 3, compute=torch.float64)
    assert not taken


@pytest.mark.skipif(not INTERPRETED, reason="there is a GPU")
def test_what_the_tensors_forbid_is_named_first(monkeypatch):
    """A caller without a GPU is not sent to look for another k."""
    monkeypatch.delenv("TRITON_INTERPRET")
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"a tensor is on cpu: Triton needs a GPU"):
        encoded("topk_encode", 2049, f=2100)
