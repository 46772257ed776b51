"""`topk_decode` in Triton against its reference, values and gradients, under the guard; and compiled without a GPU."""

import contextlib
import os
import re
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import topk_decode, use_backend
from midlens_kernels.topk_decode.reference import topk_decode_reference
from torch import Tensor

pytest.importorskip("triton")

import triton
from midlens_kernels.topk_decode import _triton as kernels

from tests.kernels.compile_only import compile_for, compiler_version
from tests.kernels.guard import checked
from tests.kernels.precision import assert_as_precise
from tests.kernels.test_topk_decode import codes, double, run
from tests.kernels.watch import Allocated, NeverWaits, under

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RAGGED = [6, 0, 9]  # more than SPLIT of 4 entries, and none; an odd sum
SMALL = dict(SPLIT=4, COLUMNS=16, TILE=2)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the guard watches the interpreter")


def guarded(seed: int | None = None):
    return checked(order_seed=seed) if INTERPRETED else contextlib.nullcontext()


@contextlib.contextmanager
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.set_deterministic_debug_mode("error" if INTERPRETED else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(kernels, name, value)


def case(counts: list[int], f: int, d: int, dtype=torch.float32, seed=0) -> list[Tensor]:
    return [t.to(DEVICE) for t in codes(counts, f, d, dtype, seed)]


def assert_right(fn, given: list[Tensor], seed: int | None = None) -> None:
    """Values and both gradients are as precise as the reference in the same dtype."""
    with poisoned(), guarded(seed):
        ours = run(fn, *given)
    plain, truth = run(topk_decode_reference, *given), run(topk_decode_reference, *double(given))
    for name, a, b, t in zip(("y", "d acts", "d W_dec"), ours, plain, truth, strict=True):
        assert_as_precise(name, a, b, t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,k,f,d", [(1, 1, 1, 1), (3, 6, 4, 17), (0, 3, 5, 4), (4, 0, 5, 4)])
def test_fixed_k_matches_the_reference(n, k, f, d, dtype, small_blocks):
    def decode(acts, idx, _, W):
        with use_backend("triton"):
            return topk_decode(acts.view(n, k), idx.view(n, k), W)

    assert_right(decode, case([k] * n, f, d, dtype, seed=n + k), seed=n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", [None, 1])
def test_ragged_codes_and_bags_in_pieces(dtype, seed, small_blocks):
    assert_right(kernels.topk_decode_triton, case(RAGGED, 3, 20, dtype), seed)


@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), max_size=3),
    f=st.integers(1, 6),
    d=st.integers(1, 40),
    index=st.sampled_from([torch.int32, torch.int64]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_any_shape(counts, f, d, index, dtype, seed):
    acts, idx, offsets, W, g_y = case(counts, f, d, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(kernels, name, value)
        assert_right(kernels.topk_decode_triton, [acts, idx.to(index), offsets.to(index), W, g_y], seed)


def test_blocks_as_they_are():
    """More than one block of columns, and a token and a feature with more than one piece."""
    counts = [3, 2 * kernels.SPLIT + 5]
    assert_right(kernels.topk_decode_triton, case(counts, 3, kernels.COLUMNS + 3), seed=2)


def test_the_order_of_programs_changes_no_bit(small_blocks):
    given = case(RAGGED, 3, 20)
    results = []
    for seed in (None, 0, 1):
        with guarded(seed):
            results.append(run(kernels.topk_decode_triton, *given))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_the_gradients_asked_for(small_blocks):
    acts, idx, offsets, W, g_y = case([2, 3], f=4, d=3)
    _, right_acts, right_W = run(topk_decode_reference, acts, idx, offsets, W, g_y)
    only_acts, only_W = acts.detach().requires_grad_(), W.detach().requires_grad_()
    y = kernels.topk_decode_triton(only_acts, idx, offsets, W)
    torch.testing.assert_close(torch.autograd.grad(y, only_acts, g_y)[0], right_acts)
    y = kernels.topk_decode_triton(acts, idx, offsets, only_W)
    torch.testing.assert_close(torch.autograd.grad(y, only_W, g_y)[0], right_W)
    assert not kernels.topk_decode_triton(acts, idx, offsets, W).requires_grad


def scattered(given: list[Tensor]) -> list[Tensor]:
    """None of them contiguous; the rows of W lie apart, with NaN between."""
    acts, idx, offsets, W, g_y = given
    acts, idx, offsets = (torch.stack([t, t + 1], -1)[..., 0] for t in (acts, idx, offsets))
    rows = torch.cat([W, torch.full_like(W, torch.nan)], 1)[:, : W.shape[1]]
    return [acts, idx, offsets, rows, g_y[:, :1].expand_as(g_y)]


@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_that_are_not_contiguous(transposed, small_blocks):
    given = scattered(case(RAGGED, 3, 20))
    if transposed:
        given[3] = given[3].T.contiguous().T
    assert not any(t.is_contiguous() for t in given)
    assert_right(kernels.topk_decode_triton, given)


def test_a_row_that_is_read_is_not_copied():
    acts, idx, offsets, W, _ = case([2, 3], f=40, d=3)
    watch = Allocated()
    part = torch.cat([W, W], 1)[:, :3]
    under(watch, lambda: kernels.topk_decode_triton(acts, idx, offsets, part))
    assert not watch.above(2 * 3), watch.made


def test_a_second_derivative_is_refused():
    acts, idx, offsets, W, _ = case([2, 3], f=4, d=3)
    y = kernels.topk_decode_triton(acts.requires_grad_(), idx, offsets, W.requires_grad_())
    for g in torch.autograd.grad(y.square().sum(), (W, acts), create_graph=True):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            g.sum().backward()


def test_the_device_is_never_waited_for(small_blocks):
    acts, idx, offsets, W, _ = case(RAGGED, 3, 20)
    under(
        NeverWaits(),
        lambda: kernels.topk_decode_triton(acts.requires_grad_(), idx, offsets, W.requires_grad_()).sum().backward(),
    )
    assert acts.grad is not None and W.grad is not None


def test_nothing_as_large_as_entries_times_width():
    """Pieces take m d / SPLIT numbers, the largest of all the rest is the gradient itself."""
    acts, idx, offsets, W, g_y = case([kernels.SPLIT * 2, 3, 200], f=4, d=50)
    m, (f, d) = len(acts), W.shape
    assert m // kernels.SPLIT * d < m * 2  # a few numbers per entry
    watch = Allocated()
    under(watch, lambda: run(kernels.topk_decode_triton, acts, idx, offsets, W, g_y))
    assert watch.above(f * d - 1) and not watch.above(2 * m), watch.above(2 * m)


def test_known_bags_need_no_pieces(monkeypatch):
    acts, idx, offsets, W, _ = case([kernels.SPLIT] * 2, f=4, d=3)
    monkeypatch.setattr(kernels, "_pieces", None)
    with use_backend("triton"):
        y = topk_decode(acts.view(2, -1), idx.view(2, -1), W)
    torch.testing.assert_close(y, topk_decode_reference(acts, idx, offsets, W))
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        kernels.topk_decode_triton(acts, idx, offsets, W)  # as far as one knows, one bag may have all


def test_asked_for_it_serves_or_says_why_not_and_auto_leaves_it(monkeypatch):
    acts, idx, W = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, 5).requires_grad_()
    if INTERPRETED:
        with use_backend("triton"):
            assert type(topk_decode(acts, idx, W).grad_fn).__name__ == "_DecodeBackward"
    assert type(topk_decode(acts.to(DEVICE), idx.to(DEVICE), W.to(DEVICE)).grad_fn).__name__ != "_DecodeBackward"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"):
        with pytest.raises(
            RuntimeError, match=r"'triton' was requested, but a tensor is on cpu: Triton needs a GPU, or"
        ):
            topk_decode(acts, idx, W)
        with pytest.raises(RuntimeError, match=r"'triton' was requested, but torch\.float64 is no dtype it takes"):
            topk_decode(acts.double(), idx, W.double())
        with pytest.raises(
            RuntimeError, match=r"'triton' was requested, but the tensors mix torch\.float32 and torch\.b"
        ):
            topk_decode(acts, idx, W.bfloat16())


def untouched(rows: int, *shape: int) -> Tensor:
    """Float16, a row past 2^31 elements; pages that nobody touches cost nothing."""
    return torch.empty(rows, *shape, dtype=torch.float16)


def assert_far_rows_are_reached(module: ModuleType) -> None:
    d, block = 512, dict(TILE=2, BLOCK=512)
    last = 2**31 // d + 3
    far, near = untouched(last + 1, d), torch.arange(float(d), dtype=torch.float16)[None] / d
    far[last] = near[0] + 1
    one, zero, there = torch.ones(1, dtype=torch.float16), torch.zeros(1).int(), torch.tensor([last], dtype=torch.int32)
    ends, out = torch.tensor([0, 1]), torch.zeros(1, d, dtype=torch.float16)
    with checked():  # a row of the table
        module._bags[1, 1](out, far, there, one, ends, out, ends, d, d, SPLIT=0, **block)
    torch.testing.assert_close(out, far[last:])
    dot = torch.zeros(1, dtype=torch.float16)
    for left, i, right, j in ((far, there, near, zero), (near, zero, far, there)):
        with checked():
            module._dots[(1,)](dot, left, i, right, j, 1, d, d, **block)
        torch.testing.assert_close(dot, (near * far[last]).float().sum(1).half())
    ends = torch.zeros(last + 2, dtype=torch.int64)
    ends[last + 1] = 1
    with checked(program=(last, 0, 0)):  # a row of the result
        module._bags[1, 1](far, near, zero, one, ends, near, ends, d, d, SPLIT=0, **block)
    torch.testing.assert_close(far[last], near[0])
    edges, owners = torch.tensor([0, last + 1]), torch.zeros(last + 1, dtype=torch.int8)
    begin = -last - 1  # so that the last piece begins at entry 0
    with checked(program=(last, 0, 0)):
        module._pieces[1, 1](
            far, 1 - near, zero, one, torch.tensor([begin, 1]), edges, owners, 1, d, d, SPLIT=1, **block
        )
    torch.testing.assert_close(far[last], 1 - near[0])
    far[last], out[:] = near[0], 0
    with checked():
        module._bags[1, 1](
            out, near, zero, one, torch.tensor([0, 0]), far, torch.tensor([last, last + 1]), d, d, SPLIT=1, **block
        )
    torch.testing.assert_close(out, near)


@interpreted
def test_rows_past_2_to_the_31_elements():
    assert_far_rows_are_reached(kernels)


TYPES = dict(
    idx="*i64", offsets="*i64", edges="*i64", owners="*i64", indices="*i64", left_rows="*i64", right_rows="*i64"
)
TYPES |= dict(n_bags="i32", D="i32", stride="i32", m="i32", pieces="*fp32")
ATOMIC = r"\b(atom|red)\."
TABLES = ("out", "table", "weights", "left", "right")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_compiles_without_a_gpu_and_without_atomics(dtype, capability):
    assert compiler_version() == triton.__version__
    for name, split in (("_pieces", [128]), ("_bags", [0, 128]), ("_dots", [None])):
        arguments = getattr(kernels, name).arg_names
        types = {a: t for a, t in (TYPES | dict.fromkeys(TABLES, f"*{dtype}")).items() if a in arguments}
        for size in split:
            constants = dict(TILE=kernels.TILE, BLOCK=kernels.COLUMNS) | ({} if size is None else dict(SPLIT=size))
            ptx = compile_for(kernels.__name__, name, types, constants, capability)
            assert f".target sm_{capability}" in ptx and not re.search(ATOMIC, ptx)


@pytest.mark.parametrize("name", ["_pieces", "_bags", "_dots"])
def test_compiles_for_widths_and_counts_of_one(name):
    """A launch makes constants of arguments that are 1; the smallest blocks, and 32-bit indices."""
    arguments = getattr(kernels, name).arg_names
    ones = {a: 1 for a in ("n_bags", "D", "stride", "m", "TILE", "BLOCK") if a in arguments}
    types = {a: t.replace("i64", "i32") for a, t in TYPES.items() if a in arguments and a not in ones}
    types |= {a: "*bf16" for a in TABLES if a in arguments}
    assert compile_for(kernels.__name__, name, types, ones | (dict(SPLIT=4) if "SPLIT" in arguments else {}), 90)
