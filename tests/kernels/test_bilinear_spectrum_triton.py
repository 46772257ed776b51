"""The Gram matrices of `bilinear_spectrum` in Triton, and the spectra, watched by the guard; and planted faults."""

import contextlib
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import bilinear_spectrum, use_backend
from midlens_kernels.bilinear_spectrum import cpu, gram_spectrum
from torch import Tensor

pytest.importorskip("triton")

import triton
from midlens_kernels.bilinear_spectrum import _triton as kernels

from tests.kernels.compile_only import compile_for, compiler_version
from tests.kernels.guard import checked
from tests.kernels.precision import assert_as_precise
from tests.kernels.test_bilinear_spectrum import factors, planted
from tests.kernels.watch import Allocated, under

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = dict(COLUMNS=16, ROWS=16, LEAST=16)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the guard watches the interpreter")

# heads, d, e: one of one, d < e, d < 2e, more than a tile of columns, more than a piece of rows, both, no heads
SHAPES = [(1, 1, 1), (2, 2, 5), (1, 7, 4), (2, 9, 3), (1, 20, 17), (3, 50, 3), (1, 18, 35), (0, 9, 2)]


def guarded(seed: int | None = None):
    return checked(order_seed=seed) if INTERPRETED else contextlib.nullcontext()


@contextlib.contextmanager
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(INTERPRETED)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(kernels, name, value)


def on_device(*shape: int, dtype=torch.float32, seed: int = 0) -> list[Tensor]:
    return [t.to(DEVICE) for t in factors(*shape, seed=seed, dtype=dtype)]


def assert_grams(module: ModuleType, left: Tensor, right: Tensor, seed: int | None = None) -> Tensor:
    """As precise as PyTorch's product in float64, against one in 80 bits; symmetric to the last bit."""
    with poisoned(), guarded(seed):
        ours = module.grams(left, right).cpu()
    both = torch.cat([left, right], -1).double().cpu()
    long = both.numpy().astype(np.longdouble)
    truth = torch.from_numpy((long.swapaxes(-1, -2)[..., :, :, None] * long[..., None, :, :]).sum(-2).astype(float))
    assert_as_precise("gram", ours, both.mT @ both, truth)
    assert torch.equal(ours, ours.mT)
    return ours


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_matrices(shape, small_blocks):
    assert_grams(kernels, *on_device(*shape, seed=sum(shape)), seed=1)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_gram_matrices_of_narrow_numbers(dtype, small_blocks):
    assert_grams(kernels, *on_device(2, 40, 3, dtype=dtype), seed=1)


@settings(max_examples=10, deadline=None)
@given(
    heads=st.integers(0, 3),
    d=st.integers(1, 60),
    e=st.integers(1, 17),
    programs=st.sampled_from([1, 8, 512]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_any_shape(heads, d, e, programs, dtype, seed):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SMALL | {"PROGRAMS": programs}).items():
            patch.setattr(kernels, name, value)
        assert_grams(kernels, *on_device(heads, d, e, dtype=dtype, seed=seed), seed)


def test_blocks_as_they_are(monkeypatch):
    """More than one tile of columns, and several pieces of rows (shorter ones)."""
    monkeypatch.setattr(kernels, "LEAST", kernels.ROWS)
    assert_grams(kernels, *on_device(1, 2 * kernels.ROWS + 5, kernels.COLUMNS + 3), seed=2)


def test_the_order_of_programs_changes_no_bit(small_blocks):
    left, right = on_device(2, 40, 3)
    results = []
    for seed in (None, 0, 1):
        with guarded(seed):
            results.append(kernels.grams(left, right))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    "shape,dtype",
    [
        *((shape, torch.float32) for shape in [(1, 1), (2, 5), (7, 4), (6, 3), (2, 0, 9, 2), (40, 17)]),
        *(((2, 2, 23, 3), dtype) for dtype in DTYPES),
    ],
    ids=str,
)
def test_spectra_match_the_definition(shape, dtype, small_blocks, monkeypatch):
    """Random factors: well conditioned, so that the Gram matrix costs nothing. One head at a time, and all at once."""
    left, right = on_device(*shape, dtype=dtype, seed=3)
    with use_backend("reference"):
        truth = bilinear_spectrum(left, right)
    for piece in (1, 2**24):
        monkeypatch.setattr(cpu, "PIECE", piece)
        with use_backend("triton"), guarded(4):
            ours = bilinear_spectrum(left, right)
        for a, b in zip(ours, truth, strict=True):
            assert a.dtype == torch.float64 and a.shape == b.shape
            largest = b.abs().max().item() if b.numel() else 0.0
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, largest))


def test_what_is_degenerate_is_right_to_the_root_of_epsilon(small_blocks):
    left, right = (t[0] for t in on_device(1, 50, 4))
    for a, b in (
        (left, left),
        (left, -left),
        (left, left.flip(-1)),
        (left, right * 0),
        (left[:, :1].expand(50, 4), right),
    ):
        with use_backend("triton"):
            ours = bilinear_spectrum(a, b)
        scale = (a.norm() * b.norm()).item()
        for found, truth in zip(ours, bilinear_spectrum(a, b), strict=True):
            torch.testing.assert_close(found, truth, rtol=0, atol=3e-8 * scale)


def test_small_values_are_lost_as_the_readme_says(small_blocks):
    """A routing value of 1e-5 beside 3 is found; one of 1e-10 is unknown to float32 factors too."""
    for mu, found in ((1e-5, True), (1e-10, False)):
        left, right, largest = planted(mu)
        left, right = (t.float().to(DEVICE) for t in (left, right))
        exact = bilinear_spectrum(left, right).routing[0]
        with use_backend("triton"):
            ours = bilinear_spectrum(left, right).routing[0]
        assert abs(ours - exact) < 1e-7 * largest
        assert (abs(ours - mu) < 0.05 * mu) == found


def test_sums_are_added_in_float64(small_blocks):
    """The converse: the same Gram matrix added in float32 loses a routing value of 1e-4 beside 3."""
    left, right, _ = planted(1e-4)
    left, right = left.float(), right.float()
    with use_backend("triton"):
        ours = bilinear_spectrum(left.to(DEVICE), right.to(DEVICE)).routing[0].cpu()
    both = torch.cat([left, right], -1)
    short = gram_spectrum((both.mT @ both).double()).routing[0]
    assert abs(ours - 1e-4) < 1e-7 < 1e-4 < abs(short - 1e-4)


def test_gradients_are_those_of_the_definition(small_blocks):
    for shape, dtype in (((2, 17, 3), torch.float32), ((5, 3), torch.float32), ((9, 2), torch.bfloat16)):
        left, right = on_device(*shape, dtype=dtype, seed=5)
        found = []
        for backend in ("reference", "triton"):
            given = [t.detach().requires_grad_() for t in (left, right)]
            with use_backend(backend):
                routing, filtering = bilinear_spectrum(*given)
            loss = (routing.exp() - filtering.sin().sum(-1, keepdim=True)).sum()
            found.append(torch.autograd.grad(loss, given, create_graph=backend == "triton"))
        for plain, ours in zip(*found, strict=True):
            allowed = 2 * torch.finfo(dtype).eps * plain.abs().max().item()
            torch.testing.assert_close(ours, plain, rtol=0, atol=allowed)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            ours.sum().backward()


def scattered(left: Tensor, right: Tensor) -> list[Tensor]:
    """Neither contiguous: columns lie apart and rows together, NaN between; the two with different strides."""
    nans = torch.full_like(left, torch.nan)
    apart = torch.stack([left.mT, nans.mT], -1)[..., 0].mT
    return [apart, torch.cat([right, nans], -1)[..., : right.shape[-1]]]


def test_tensors_that_are_not_contiguous(small_blocks):
    left, right = scattered(*on_device(2, 33, 5, seed=6))
    assert not left.is_contiguous() and left.stride() != right.stride()
    assert_grams(kernels, left, right, seed=3)
    assert_grams(kernels, left, left.flip(0).mT.contiguous().mT, seed=3)
    assert_grams(kernels, left[:1].expand(2, 33, 5), left, seed=3)
    with use_backend("triton"):
        ours = bilinear_spectrum(left, right)
    for a, b in zip(ours, bilinear_spectrum(left, right), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_neither_a_copy_nor_a_float64_of_the_factors():
    """Equal strides, whatever they are, are read in place; what is made are Gram matrices, whole and in pieces."""
    left, right = (t.mT for t in on_device(2, 2, 600))
    watch = Allocated()
    under(watch, lambda: kernels.grams(left, right))
    pieces = 600 // kernels.LEAST
    assert watch.above(0) and not watch.above(pieces * 2 * 4 * 4), watch.made
    assert pieces * 2 * 4 * 4 < left.numel()


def test_asked_for_it_serves_or_says_why_not_and_auto_leaves_it(monkeypatch):
    left, right = on_device(9, 2)
    calls = []
    monkeypatch.setattr(kernels, "by_gram", lambda *t: calls.append(len(t)) or cpu.by_qr(*t))
    bilinear_spectrum(left, right)
    assert not calls
    with use_backend("triton"):
        bilinear_spectrum(left, right)
        assert calls == [2]
        with pytest.raises(RuntimeError, match=r"'triton' was requested, but torch\.float64 is no dtype it takes"):
            bilinear_spectrum(left.double(), right.double())
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="a tensor is on cpu: Triton needs a GPU, or"):
            bilinear_spectrum(left.cpu(), right.cpu())


FAR = 2**30 + 1024


def assert_far_places_are_reached(module: ModuleType) -> None:
    """Numbers FAR apart, the third past 2^31 elements, in float16; pages that nobody touches cost nothing."""
    blocks = dict(BLOCK=16, ROWS=16)
    far = torch.empty(2 * FAR + 1024, dtype=torch.float16)
    far[0], far[FAR], far[2 * FAR] = 1, 2, 4
    # three rows of one column, one row of three columns, and the third of three heads of one number
    for (d, e), strides, program, expected in (
        ((3, 1), (0, FAR, 1), (0, 0, 0), 21.0),
        ((1, 3), (0, 1, FAR), (0, 0, 0), 16.0),
        ((1, 1), (FAR, 1, 1), (8, 0, 0), 16.0),
    ):
        partial = torch.zeros(12 * e**2, dtype=torch.float64)
        with checked(program=program):
            module._partial_grams[12, 1](partial, far, far, len(partial), d, e, 1, 16, *strides, **blocks)
        assert partial.max() == expected
    total = torch.zeros(4, dtype=torch.float64)
    with checked(program=(0, 0, 0)):  # three pieces that are added
        module._summed_grams[(1,)](total, far, FAR, 1, 1, 3, BLOCK=16)
    assert total[0] == 7
    near = torch.arange(16, dtype=torch.float16)
    matrix = far[2 * FAR :].view(32, 32)
    head = 2 * FAR // 1024
    for program, size in (((4 * head + 1, 0, 0), 0), ((1, 2, 0), FAR)):  # there by its head, and by its piece
        matrix[:] = 0
        with checked(program=program):  # pieces of a row, each row the same
            module._partial_grams[1, 1](far, near, near + 1, size, 3, 16, 1, 1, 0, 0, 1, **blocks)
        assert torch.equal(matrix[:16, 16:], near[:, None] * (near + 1))
    matrix[:] = torch.arange(1024).view(32, 32) % 100
    kept = matrix[:16, 16:].clone()
    with checked(program=(4 * head + 1, 0, 0)):  # a sum that is read there, and written, and mirrored
        module._summed_grams[(1,)](far, far, FAR, 16, 1, 1, BLOCK=16)
    assert torch.equal(matrix[:16, 16:], kept) and torch.equal(matrix[16:, :16], kept.T)


@interpreted
def test_places_past_2_to_the_31_elements():
    assert_far_places_are_reached(kernels)


TYPES = {
    "partial": "*fp64",
    "gram": "*fp64",
    "left": "*fp32",
    "right": "*fp32",
    "size": "i64",
    "stride_h": "i64",
    **dict.fromkeys(("D", "E", "tiles", "rows", "pieces", "stride_r", "stride_c"), "i32"),
}


def compiled(name: str, capability: int, block: int, ones: tuple[str, ...] = ()) -> str:
    """The PTX, with the arguments `ones` the constants that a launch makes of a 1."""
    arguments = getattr(kernels, name).arg_names
    constants = {
        a: v for a, v in dict(BLOCK=block, ROWS=kernels.ROWS, **dict.fromkeys(ones, 1)).items() if a in arguments
    }
    types = {a: t for a, t in TYPES.items() if a in arguments and a not in constants}
    return compile_for(kernels.__name__, name, types, constants, capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("block", [16, 64])
def test_compiles_without_a_gpu_to_float64_tensor_cores_and_no_atomics(block, capability):
    assert compiler_version() == triton.__version__
    for name in ("_partial_grams", "_summed_grams"):
        ptx = compiled(name, capability, block)
        assert f".target sm_{capability}" in ptx and not re.search(r"\b(atom|red)\.", ptx)
        assert (re.search(r"mma\.sync\S*\.f64\.f64\.f64\.f64", ptx) is not None) == (name == "_partial_grams")


@pytest.mark.parametrize("name", ["_partial_grams", "_summed_grams"])
def test_compiles_for_sizes_of_one(name):
    ones = ("D", "E", "tiles", "pieces", "stride_h", "stride_r", "stride_c")
    assert compiled(name, 90, 16, ones)


HEAD = "(4 * tiles * tiles)).to(tl.int64)\n"
PAIR = "    i, j = pair // (2 * tiles), pair % (2 * tiles)\n    if i <= j:\n        "
FAULTS = {
    "no mask on rows": ("mask=inside[:, None] & (column", "mask=(inside | True)[:, None] & (column"),
    "no mask on columns read": ("(column < E)[None, :], other=0.0)", "(column < E + 1)[None, :], other=0.0)"),
    "no mask on tiles written": ("sums, mask=there)\n\n", "sums)\n\n"),
    "no mask on sums written": ("tl.store(gram + place, sums, mask=there)", "tl.store(gram + place, sums)"),
    "no mask on mirrored sums": ("tl.trans(sums), mask=tl.trans(there))", "tl.trans(sums))"),
    "a mirror image that is none": (
        "first + column[:, None] * 2 * E + row[None, :]",
        "first + column[:, None] * 2 * E + row[None, :] + 1",
    ),
    "not mirrored": ("if i < j:", "if i > j:"),
    "half the rows of a piece": ("range(begin, stop, ROWS)", "range(begin, stop, 2 * ROWS)"),
    "pieces that overlap": ("stop = tl.minimum(begin + rows, D)", "stop = tl.minimum(begin + rows + 1, D)"),
    "pieces that all begin at once": ("begin = piece * rows", "begin = 0 * rows"),
    "pieces on top of each other": ("piece.to(tl.int64) * size + first", "first"),
    "a piece left out": ("for _ in range(pieces)", "for _ in range(1, pieces)"),
    "one piece again and again": ("source += size", "source += 0"),
    "left for right": ("source, first = right,", "source, first = left,"),
    "only the first tile": ("(index - tiles) * BLOCK", "(index - index) * BLOCK"),
    "strides of the other": ("if left.stride() != right.stride():", "if False:"),
    "float32 sums": ("sums, out_dtype=tl.float64)", "sums).to(tl.float32).to(tl.float64)"),
    "float32 partial sums": (
        "torch.empty(pieces, *gram.shape, dtype=torch.float64",
        "torch.empty(pieces, *gram.shape, dtype=torch.float32",
    ),
    "heads of 32 bits": (
        HEAD + f"{PAIR}piece",
        HEAD.replace(".to(tl.int64)", "") + f"{PAIR}piece",
    ),
    "heads of 32 bits in sums": (
        HEAD + f"{PAIR}first",
        HEAD.replace(".to(tl.int64)", "") + f"{PAIR}first",
    ),
    "rows of 32 bits": ("            row = row.to(tl.int64)\n", ""),
    "columns of 32 bits": ("column[None, :].to(tl.int64)", "column[None, :]"),
    "pieces of 32 bits": ("piece.to(tl.int64) * size", "piece * size"),
}


def altered(folder: Path, old: str, new: str) -> ModuleType:
    """The kernels' module with one place changed, and small blocks."""
    source = Path(kernels.__file__).read_text()
    assert source.count(old) == 1, f"{source.count(old)} places to change"
    file = folder / "altered.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("altered", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(SMALL)
    return module


def assert_sound(module: ModuleType) -> None:
    assert_grams(module, *scattered(*on_device(2, 33, 3, seed=7)), seed=1)
    assert_grams(module, *on_device(1, 33, 17, seed=8), seed=1)
    assert_far_places_are_reached(module)


@interpreted
def test_the_checks_pass_without_a_fault(tmp_path):
    assert_sound(altered(tmp_path, "COLUMNS = 64", "COLUMNS = 64"))


@interpreted
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, tmp_path):
    module = altered(tmp_path, *FAULTS[fault])
    with pytest.raises((AssertionError, triton.runtime.errors.InterpreterError, ValueError)):
        assert_sound(module)
