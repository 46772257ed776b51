"""The Triton kernel of `topk_encode` in the interpreter, under the guard, and compiled."""

import contextlib
import importlib.util
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import topk_encode, use_backend
from midlens_kernels.topk_encode.reference import topk_encode_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise, assert_rightly_chosen

pytest.importorskip("triton")
from midlens_kernels.topk_encode import _triton as kernel

from tests.kernels import compile_only
from tests.kernels.guard import checked

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="checked in the interpreter only")
NAMES = ("code", "d x", "d W_enc", "d b_enc")
# n, k, f, d: one of one, all of them, several splits of several tiles, widths that no tile divides
SHAPES = [(1, 1, 1, 1), (3, 4, 7, 33), (5, 3, 3, 17), (17, 2, 75, 18)]


def small(n, f, k, dtype, processors, *, wide=True):
    """Tiles so small that these shapes need several of everything, and that lists fill up."""
    splits = min(2 if k < 4 else 1, -(-f // 16))
    return kernel.Tiles(16, 16, 16, splits, kernel.triton.next_power_of_2(k + 2), 16 if n > 9 else 8, 4, 1)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "tiles_for", small)


def guarded(**options):
    return checked(**options) if INTERPRETED else contextlib.nullcontext()


def inputs(n: int, f: int, d: int, bias: float = 0.0, dtype=torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x, W, b, loss = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (f, d), (f,), (n, f)))
    return tuple(t.to(dtype).to(DEVICE) for t in (x, W, b + bias, loss))


def ours(x: Tensor, W: Tensor, b: Tensor, k: int, **options) -> tuple[Tensor, Tensor]:
    with use_backend("triton"):
        return topk_encode(x, W.T, b, k, **options)


def reference(x: Tensor, W: Tensor, b: Tensor, k: int, **options) -> tuple[Tensor, Tensor]:
    return topk_encode_reference(x, W.T, b, k, **options)


def graded(fn, x: Tensor, W: Tensor, b: Tensor, loss: Tensor, k: int, **options) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    acts, idx = fn(*leaves, k, **options)
    code = acts.new_zeros(len(x), len(b)).scatter(1, idx, acts)
    return (code, *torch.autograd.grad((code * loss.to(code.dtype)).sum(), leaves))


@pytest.mark.parametrize(
    "n,k,f,d,bias", [*((*shape, 0.0) for shape in SHAPES), (3, 4, 7, 33, -6.0), (5, 3, 9, 17, -1e3)]
)
def test_matches_the_reference(n, k, f, d, bias):
    """Last two: fewer than k positive, none."""
    x, W, b, loss = inputs(n, f, d, bias, seed=n + k)
    found = graded(ours, x, W, b, loss, k)
    plain = graded(reference, x, W, b, loss, k)
    truth = graded(reference, *(t.double() for t in (x, W, b, loss)), k)
    for name, a, p, t in zip(NAMES, found, plain, truth, strict=True):
        assert_as_precise(name, a, p, t)


@pytest.mark.parametrize(
    "dtype,compute",
    [(torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_low_precision(dtype, compute):
    """The selection may differ between precisions: it must be as good, and values and gradients right for it."""
    x, W, b, loss = inputs(3, 65, 18, dtype=dtype)
    acts, idx = ours(x, W, b, 8, compute=compute)
    assert acts.dtype == dtype
    low = (x.to(compute or dtype) @ W.T.to(compute or dtype) + b.to(compute or dtype)).to(dtype)
    exact = x.double() @ W.T.double() + b.double()
    for i in range(3):
        assert_rightly_chosen(idx[i], low[i], exact[i])

    def chosen(x, W, b, k, **_):
        return (x @ W.T + b).gather(1, idx).relu() * (acts > 0), idx

    found = graded(ours, x, W, b, loss, 8, compute=compute)
    plain = graded(chosen, x, W, b, loss, 8)
    truth = graded(chosen, *(t.double() for t in (x, W, b, loss)), 8)
    as_plain = (exact.new_zeros(3, 65).scatter(1, idx, low.gather(1, idx).relu().double()).to(dtype), *plain[1:])
    for name, a, p, t in zip(NAMES, found, as_plain, truth, strict=True):
        assert_as_precise(name, a, p, t)


@settings(max_examples=4, deadline=None)
@given(n=st.integers(0, 3), f=st.integers(1, 40), d=st.integers(1, 20), data=st.data())
def test_any_shape_weighted_or_not(n, f, d, data):
    k = data.draw(st.integers(1, f))
    x, W, b, loss = inputs(n, f, d, data.draw(st.sampled_from([0.0, -2.0])), seed=n + f)
    weight = data.draw(st.sampled_from([None, torch.rand(f, generator=torch.Generator().manual_seed(f)) * 3 + 0.1]))
    weight = None if weight is None else weight.to(DEVICE)
    with guarded(order_seed=n):
        found = graded(ours, x, W, b, loss, k, weight=weight)
    for a, t in zip(found, graded(reference, x, W, b, loss, k, weight=weight), strict=True):
        torch.testing.assert_close(a, t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 75])
@pytest.mark.parametrize("rising", [False, True])
def test_ties_and_whatever_the_tiles(k, rising, monkeypatch):
    """Small integers: many scores tie. The k distinct features hold the k largest; ascending scores fill every list."""
    g = torch.Generator().manual_seed(k)
    x = torch.randint(1, 3, (2, 2), generator=g).float()
    W = (torch.arange(150).view(75, 2) // 20 if rising else torch.randint(-1, 3, (75, 2), generator=g)).float()
    x, W = x.to(DEVICE), W.to(DEVICE)
    acts, idx = ours(x, W, torch.zeros(75, device=DEVICE), k)
    pre = x @ W.T
    assert torch.equal(acts.sort(1, descending=True).values, pre.topk(k).values.relu())
    assert torch.equal(pre.gather(1, idx).relu(), acts) and all(len(set(row)) == k for row in idx.tolist())
    again = ours(x, W, torch.zeros(75, device=DEVICE), k)
    assert torch.equal(again[0], acts) and torch.equal(again[1], idx)


def test_all_equal_negative_infinite_and_nan():
    """Of equal scores k different ones; -inf ranks below all, NaN above inf as in `topk`, and is returned."""
    x, W = torch.ones(2, 1, device=DEVICE), torch.zeros(40, 1, device=DEVICE)
    acts, idx = ours(x, W, torch.full((40,), -2.0, device=DEVICE), 5)
    assert not acts.any() and all(len(set(row)) == 5 for row in idx.tolist())
    b = torch.arange(40.0, device=DEVICE)
    b[torch.tensor([3, 17, 20])] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)
    acts, idx = ours(x, W, b, 3)
    assert all(set(row) == {3, 17, 39} for row in idx.tolist())
    at = idx[0].tolist().index(3)
    assert acts[0, at].isnan() and acts[0].isnan().sum() == 1
    _, idx = ours(x, W, b, 39)
    assert all(20 not in row for row in idx.tolist())
    assert all(len(set(row)) == 40 for row in ours(x, W, b, 40)[1].tolist())


def test_fewer_tokens_a_launch_and_strided_tensors(monkeypatch):
    case = inputs(18, 30, 9)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    truth = graded(reference, *case, 4, weight=weight)
    monkeypatch.setattr(kernel, "TOKENS", 16)
    *twice, strided = [torch.stack([t, t], -1)[..., 0] for t in (*case, weight)]
    assert not any(t.is_contiguous() for t in twice)
    for a, t in zip(graded(ours, *twice, 4, weight=strided), truth, strict=True):
        torch.testing.assert_close(a, t, rtol=1e-4, atol=1e-4)
    x, W, b, _ = (t[:3] for t in case)
    with use_backend("triton"):
        assert torch.equal(topk_encode(x, W.T.contiguous(), b, 2)[1], topk_encode(x, W.T, b, 2)[1])


def test_tiles_fit_whatever_the_call(monkeypatch):
    """Lists take a tile after they were shortened; the second pass reads all of a token's; lists stay within bounds."""
    monkeypatch.undo()
    for n, f, k, dtype, processors in itertools.product(
        (1, 100, 4096, 4097), (1, 999, 131072), (1, 64, 500, 2048), (torch.float32, torch.bfloat16), (1, 108, 132)
    ):
        tokens = kernel._tokens(k, dtype)
        part = min(n, tokens)
        tiles = kernel.tiles_for(part, f, k, dtype, processors, wide=processors > 108)
        assert tiles.capacity >= k + tiles.features // 8 and tiles.splits * tiles.capacity <= 2**13
        assert tiles.rows % tiles.shrunk == 0 and 1 <= tiles.splits <= -(-f // tiles.features)
        assert part * tiles.splits * tiles.capacity * kernel.LISTED <= 2**29
    assert kernel.tiles_for(4096, 131072, 64, torch.bfloat16, 132)[:5] == (128, 256, 64, 4, 256)


@interpreted
def test_row_offsets_past_two_to_the_31():
    """The last program's token lies past 2^31 elements of x, its list past 2^31 values; few pages are touched."""
    width, n, splits, capacity = 2**26 + 1, 33, 2**19 + 1, 16
    x = torch.empty(n, width, dtype=torch.float16)
    x[32:, :3] = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).half()
    W, b = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).half(), torch.zeros(20).half()
    maxima, firsts = (torch.empty(n, splits, capacity, dtype=dtype) for dtype in (torch.float32, torch.int32))
    values, counts = torch.empty(n, splits, capacity, 8), torch.empty(n, splits, dtype=torch.int32)
    assert 32 * splits * capacity * 8 > 2**31 and 32 * width > 2**31
    with checked(program=(2, 0, 0)):
        kernel._candidates[(3, 1)](
            x, W, b, b, maxima, firsts, values, counts, torch.empty(n, splits),
            n, 20, 3, 4, 32, splits, width, 1, 1, 3,
            RANKED=False, WIDEN=True, ROWS=16, FEATURES=16, DEPTH=16, CAPACITY=capacity, SHRUNK=8,
        )  # fmt: skip
    assert counts[32, 0] == 4  # 20 features in tiles of 16: two groups of the first, two of the second
    exact = x[32, :3].float() @ W.float().T
    torch.testing.assert_close(values[32, 0, 0], exact[0:16:2])
    torch.testing.assert_close(maxima[32, 0, 1], exact[1:16:2].max())


@interpreted
@pytest.mark.parametrize(
    "fault,caught",
    [
        (("mask=(row < n)[:, None] & deep[None, :]", "mask=deep[None, :]"), ("OutOfBounds",)),
        (("deep = step < d - at", "deep = step < d"), ("OutOfBounds", "AssertionError")),
        (("cell = row.to(tl.int64) * n_splits + tl.program_id(1)", "cell = row.to(tl.int64) * n_splits"), ("Race",)),
        (("inside = (row < n)[:, None] & (leader < f)[None, :]", "inside = (leader < f)[None, :]"), ("OutOfBounds",)),
        (("> CAPACITY:", "> 10 * CAPACITY:"), ("OutOfBounds", "AssertionError", "Race")),
        (("tl.cumsum(chosen, axis=1) - 1", "tl.cumsum(chosen, axis=1)"), ("AssertionError",)),
        (('other=-float("inf")', "other=0.0"), ("AssertionError",)),
        (("score = tile * tl.load", "score = tile + 0 * tl.load"), ("AssertionError",)),
    ],
    ids=[
        "rows unmasked",
        "depth",
        "splits share a cell",
        "rows stored",
        "lists overflow",
        "moved by one",
        "past f",
        "rank",
    ],
)
def test_planted_faults_are_caught(fault, caught, tmp_path, monkeypatch):
    source = Path(kernel.__file__).read_text()
    assert fault[0] in source
    path = tmp_path / "planted.py"
    path.write_text(source.replace(*fault))
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None and spec.loader is not None
    planted = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted", planted)
    spec.loader.exec_module(planted)
    planted.tiles_for = small
    x, W, b, _ = inputs(17, 75, 18, bias=-30.0, seed=3)
    weight = torch.rand(75, generator=torch.Generator().manual_seed(0)) * 3 + 0.1
    with pytest.raises(Exception) as found, checked(order_seed=1):  # the interpreter wraps what the guard raises
        _, idx = planted.topk_encode_triton(x, W.T, b, 2, weight=weight)
        pre = x @ W.T + b
        expected = (pre * weight).topk(2).indices.sort(1).values
        assert torch.equal(idx.sort(1).values, expected)
    assert any(kind in repr(found.value) for kind in caught), repr(found.value)


TILES_FOR = kernel.tiles_for
POINTERS = {"weight": "*fp32", "maxima": "*fp32", "firsts": "*i32", "values": "*fp32", "counts": "*i32"}
INTEGERS = dict.fromkeys(("n", "f", "d", "k", "per_split", "n_splits", "x_row", "W_column"), "i32")


def compiled(tiles: kernel.Tiles, dtype: torch.dtype, ranked: bool, capability: int) -> str:
    sizes = {"ROWS": tiles.rows, "FEATURES": tiles.features, "DEPTH": tiles.depth, "WIDEN": False, "RANKED": ranked}
    sizes |= {"CAPACITY": tiles.capacity, "SHRUNK": tiles.shrunk, "x_column": 1, "W_row": 1}
    pointer = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    signature = {**dict.fromkeys(("x", "W", "b"), pointer), **POINTERS, "bars": "*fp32", **INTEGERS}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return compile_only.compile_for(kernel.__name__, "_candidates", signature, sizes, capability, options=options)


@pytest.mark.parametrize("capability,instruction", [(80, "mma.sync"), (90, "wgmma")])
def test_small_tiles_compile(capability, instruction):
    """A quarter of the full size in both directions: the same code in a fifth of the compiler's time."""
    assert instruction in compiled(kernel.Tiles(64, 64, 32, 1, 64, 8, 4, 2), torch.float16, True, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_the_second_pass_compiles(capability):
    signature = {**POINTERS, "places": "*i32", "out": "*bf16", "idx": "*i64"} | dict.fromkeys("fk", "i32")
    sizes = {"RANKED": True, "SPLITS": 4, "CAPACITY": 256, "APART": 8, "K": 64}
    compile_only.compile_for(kernel.__name__, "_merge", signature | {"n_splits": "i32"}, sizes, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability,instruction", [(80, "mma.sync"), (90, "wgmma")])
@pytest.mark.parametrize("ranked", [False, True])
def test_compiles_at_full_size(ranked, capability, instruction):
    """Half a minute each: tiles of 128 x 256 (sm_80: 128) in bfloat16, within the shared memory of the device."""
    tiles = TILES_FOR(4096, 131072, 64, torch.bfloat16, 132, wide=capability >= 90)
    assert instruction in compiled(tiles, torch.bfloat16, ranked, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_in_float32(capability):
    tiles = TILES_FOR(4096, 131072, 64, torch.float32, 132)
    assert "fma.rn.f32" in compiled(tiles, torch.float32, True, capability)
