"""The Triton kernels of `threshold_select` in the interpreter, under the guard, and compiled."""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midlens_kernels import threshold_select, topk_decode, use_backend
from midlens_kernels.threshold_select.reference import threshold_select_reference
from torch import Tensor

from tests.kernels.precision import assert_as_precise, assert_rightly_chosen
from tests.kernels.watch import NeverWaits, under

pytest.importorskip("triton")
from midlens_kernels.threshold_select import _triton as kernel

from tests.kernels import compile_only
from tests.kernels.guard import checked

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="checked in the interpreter only")
NAMES = ("code", "d x", "d W_enc", "d b_enc")
SMALL = {"GROUP": 4, "GROUPS": 8, "FLAT": 32, "CHUNK": 60, "PROGRAMS": 1}
# n, f, d, count: one of one, all of them, a bound from groups and none, several chunks, groups that end early
SHAPES = [(1, 1, 1, 1), (3, 8, 4, 24), (3, 7, 4, 1), (4, 30, 33, 20), (3, 30, 3, 70)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for name, size in SMALL.items():
        monkeypatch.setattr(kernel, name, size)


def guarded(**options):
    return checked(**options) if INTERPRETED else contextlib.nullcontext()


def inputs(n: int, f: int, d: int, *, bias: float = 0.0, dtype=torch.float32, seed: int = 0):
    """x, W_enc, b_enc, what the loss does with each entry; and a ranking weight and which tokens count."""
    g = torch.Generator().manual_seed(seed)
    x, W, b, loss = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (f, d), (f,), (n, f)))
    weight = torch.rand(f, generator=g, dtype=torch.float64) * 3 + 0.1
    kept = (torch.rand(n, generator=g) > 0.3).double()
    tensors = [t.to(dtype).to(DEVICE) for t in (x, W, b + bias, loss, weight, kept)]
    return tensors[:4], {"weight": tensors[4], "kept": tensors[5]}


def ours(x: Tensor, W: Tensor, b: Tensor, count: int, **options) -> tuple[Tensor, Tensor, Tensor]:
    with use_backend("triton"):
        return threshold_select(x, W.T, b, count, **options)


def reference(x: Tensor, W: Tensor, b: Tensor, count: int, **options) -> tuple[Tensor, Tensor, Tensor]:
    return threshold_select_reference(x, W.T, b, count, **options)


def dense(acts: Tensor, idx: Tensor, offsets: Tensor, f: int) -> Tensor:
    n = len(offsets) - 1
    rows = torch.repeat_interleave(torch.arange(n, device=DEVICE), offsets.diff(), output_size=len(idx))
    return acts.new_zeros(n, f).index_put((rows, idx), acts, accumulate=True)


def graded(fn, x: Tensor, W: Tensor, b: Tensor, loss: Tensor, count: int, **options) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (x, W, b)]
    code = dense(*fn(*leaves, count, **options), len(b))
    return (code, *torch.autograd.grad((code * loss.to(code.dtype)).sum(), leaves))


def places(idx: Tensor, offsets: Tensor, f: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=DEVICE), offsets.diff()) * f + idx


@pytest.mark.parametrize(
    "n,f,d,count,bias", [*((*shape, 0.0) for shape in SHAPES), (4, 30, 5, 70, -2.5), (3, 14, 4, 9, -1e3)]
)
def test_matches_the_reference(n, f, d, count, bias):
    """Last two: fewer than `count` positive, none."""
    case, options = inputs(n, f, d, bias=bias, seed=n + count)
    options = {} if bias == -2.5 else options
    wide = {name: t.double() for name, t in options.items()}
    found, plain = (graded(fn, *case, count, **options) for fn in (ours, reference))
    truth = graded(reference, *(t.double() for t in case), count, **wide)
    for name, a, p, t in zip(NAMES, found, plain, truth, strict=True):
        assert_as_precise(name, a, p, t)


@settings(max_examples=2, deadline=None)
@given(n=st.integers(1, 3), f=st.integers(1, 17), d=st.integers(1, 5), data=st.data())
def test_any_shape_under_the_guard(n, f, d, data):
    count = data.draw(st.integers(0, n * f))
    case, options = inputs(n, f, d, seed=n + f)
    options |= {"kept": data.draw(st.sampled_from([options["kept"], None, torch.ones_like(options["kept"])]))}
    with guarded(order_seed=n), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", data.draw(st.sampled_from([17, 2**27])))
        acts, idx, offsets = ours(*case[:3], count, **options)
    assert acts.shape == idx.shape == (count,) and offsets.shape == (n + 1,)
    assert offsets[0] == 0 and offsets[-1] == count and (offsets.diff() >= 0).all() and (acts >= 0).all()
    assert (places(idx, offsets, f).diff() > 0).all()  # grouped by token, ascending in feature, no entry twice
    truth = dense(*reference(*case[:3], count, **options), f)
    torch.testing.assert_close(dense(acts, idx, offsets, f), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dtype,compute",
    [(torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_precision(dtype, compute):
    """The choice must be as good as the product's precision allows; values and gradients right for the choice."""
    (x, W, b, loss), _ = inputs(4, 18, 16, dtype=dtype)
    acts, idx, offsets = ours(x, W, b, 20, compute=compute)
    assert acts.dtype == dtype
    low = torch.addmm(b.to(compute or dtype), x.to(compute or dtype), W.T.to(compute or dtype)).to(dtype)
    exact = (x.double() @ W.T.double() + b.double()).flatten()
    at = places(idx, offsets, 18)
    assert_rightly_chosen(at, low.flatten(), exact)
    assert torch.equal(acts, low.flatten()[at].relu())  # bit for bit what torch's own product holds
    ranked = low.flatten().sort(descending=True).values
    assert torch.equal(low.flatten()[at].sort(descending=True).values, ranked[:20])

    def chosen(x, W, b, count, **_):
        pre = (x @ W.T + b).flatten()[at].relu() * (acts > 0)
        return pre, idx, offsets

    found, plain = (graded(fn, x, W, b, loss, 20, compute=compute) for fn in (ours, chosen))
    truth = graded(chosen, *(t.double() for t in (x, W, b, loss)), 20)
    for name, a, p, t in zip(NAMES[1:], found[1:], plain[1:], truth[1:], strict=True):
        assert_as_precise(name, a, p, t)


@pytest.mark.parametrize("count,chunk", [(1, 60), (37, 1), (37, 2**27), (4 * 24, 60)])
def test_ties_are_cut_at_exactly_count_the_first_ones_win(count, chunk, monkeypatch):
    """Pre-activations that are small integers: most tie. Of equals the first by token, then feature."""
    monkeypatch.setattr(kernel, "CHUNK", chunk)
    g = torch.Generator().manual_seed(0)
    x, W = (torch.randint(-1, 3, shape, generator=g).float().to(DEVICE) for shape in ((4, 2), (24, 2)))
    acts, idx, offsets = ours(x, W, torch.zeros(24, device=DEVICE), count)
    flat = (x @ W.T).flatten()
    first = flat.sort(descending=True, stable=True).indices[:count].sort().values
    at = places(idx, offsets, 24)
    assert torch.equal(at, first) and torch.equal(flat[at].relu(), acts)


def test_extremes():
    """All equal and negative: exactly count entries of value 0. -inf last, NaN first, as `topk` ranks them."""
    x, W = torch.ones(3, 1, device=DEVICE), torch.zeros(10, 1, device=DEVICE)
    acts, idx, offsets = ours(x, W, torch.full((10,), -2.0, device=DEVICE), 12)
    assert not acts.any() and offsets.tolist() == [0, 10, 12, 12] and idx.tolist() == [*range(10), 0, 1]
    b = torch.arange(10.0, device=DEVICE)
    b[torch.tensor([3, 5, 7], device=DEVICE)] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)
    acts, idx, offsets = ours(x, W, b, 6)
    assert idx.tolist() == [3, 5] * 3 and acts[::2].isnan().all() and acts[1::2].isposinf().all()
    assert 7 not in ours(x, W, b, 27)[1].tolist()


@pytest.mark.parametrize("count,chunk", [(10, 1), (50, 2**27)])
def test_tokens_that_do_not_count_only_fill_up(count, chunk, monkeypatch):
    """Two of four tokens count: 40 entries. Theirs come first, negative ones too; the rest is 0 and sends nothing."""
    monkeypatch.setattr(kernel, "CHUNK", chunk)
    (x, W, b, loss), _ = inputs(4, 20, 5)
    kept = torch.tensor([0.0, 1.0, 0.0, 1.0], device=DEVICE)
    x = x * 100 ** (1 - kept)[:, None]
    acts, idx, offsets = ours(x, W, b, count, kept=kept)
    assert offsets.diff()[kept == 1].sum() == min(count, 40) and len(acts) == count
    code = dense(acts, idx, offsets, 20)
    assert not code[kept == 0].any() and code[kept == 1].any()
    g_x = graded(ours, x, W, b, loss, count, kept=kept)[1]
    assert not g_x[kept == 0].any() and g_x[kept == 1].any()


def test_no_tokens_count_none_one_token_takes_all():
    (x, W, b, _), _ = inputs(5, 16, 3)
    acts, idx, offsets = ours(x, W, b, 7, kept=torch.zeros(5, device=DEVICE))
    assert not acts.any() and len(idx) == 7 and offsets[-1] == 7
    acts, idx, offsets = ours(x[:0].requires_grad_(), W, b, 0)
    assert acts.shape == idx.shape == (0,) and offsets.tolist() == [0]
    acts.sum().backward()
    assert ours(x, W, b, 0)[2].tolist() == [0] * 6
    x[2] *= 1e4
    acts, idx, offsets = ours(x, W, torch.zeros_like(b), 6)
    assert offsets.diff().tolist() == [0, 0, 6, 0, 0]
    W_dec = torch.randn(16, 3, device=DEVICE)
    with use_backend("triton"):
        y = topk_decode(acts, idx, W_dec, offsets=offsets)
    torch.testing.assert_close(y, dense(acts, idx, offsets, 16) @ W_dec)


def test_strided_tensors_and_a_wide_weight():
    case, options = inputs(4, 18, 4)
    truth = graded(reference, *case, 20, **options)
    twice = [torch.stack([t, t], -1)[..., 0] for t in case]
    options = {name: torch.stack([t, t], -1)[..., 0].double() for name, t in options.items()}
    assert not any(t.is_contiguous() for t in twice)
    for a, t in zip(graded(ours, *twice, 20, **options), truth, strict=True):
        torch.testing.assert_close(a, t, rtol=1e-4, atol=1e-4)


@interpreted
def test_nothing_waits_for_the_device(monkeypatch):
    """No operation of torch reads from the device or has a shape that depends on the data."""
    launches = [name for name in dir(kernel) if isinstance(getattr(kernel, name), type(kernel._winners))]
    made = []
    for name in launches:
        quiet = type("Quiet", (), {"__getitem__": lambda self, grid: lambda *a, **o: made.append(grid)})()
        monkeypatch.setattr(kernel, name, quiet)
    (x, W, b, _), options = inputs(5, 30, 3)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    acts, idx, offsets = under(NeverWaits(), lambda: kernel.threshold_select_triton(x, W.T, b, 20, **options))
    assert len(made) > 20 and acts.shape == idx.shape == (20,) and offsets.shape == (6,)


@interpreted
def test_entries_past_two_to_the_31():
    """The last row of a chunk of 2^31 pre-activations and more: its keys, of a handful of touched pages."""
    rows, f = 2**11 + 1, 2**20
    pre = torch.empty(rows, f, dtype=torch.float16)
    pre[-1, -8:] = torch.arange(8).half()
    per_row = f // 4
    keys = torch.empty(rows * per_row, dtype=torch.int32)
    with checked(program=(rows * per_row // 4 - 1, 0, 0)):
        kernel._group_keys[(1,)](
            pre, keys, keys, keys, rows * per_row, f, per_row, RANKED=False, KEPT=False, GROUP=4, GROUPS=4
        )
    assert keys[-2:].view(torch.float32).tolist() == [3.0, 7.0]


ANY = ("AssertionError", "OutOfBounds", "Race")
FAULTS = {
    "columns past f": (("& (column < f)", "& (column < f + 1)"), ANY),
    "the last block": (
        ("mask=at < n, other=0), at < n, prefix", "mask=at < n + 1, other=0), at < n, prefix"),
        ANY[1:2],
    ),
    "digits not added": (('sem="relaxed"', 'sem="relaxed") if start < 0 else (0'), (*ANY, "size of tensor")),
    "rank of the second digit": (("rank -= tl.sum", "rank -= 0 * tl.sum"), ANY),
    "bound rounded up": ((">> 16 >= prefix)", ">> 16 > prefix)"), ANY),
    "ties all kept": (("<= room, equal, 0)", "<= room + 1, equal, 0)"), ANY),
    # A place stays unwritten, and what memory holds there decides which of these it is.
    "ties before": (("+ tl.minimum(equal_before, room)", ""), (*ANY, "size of tensor")),
    "digits stored": (("tl.atomic_add(", "_store("), ("Race",)),
    "weight unread": (("score = value * tl.load", "score = value + 0 * tl.load"), ("AssertionError",)),
    "kept unread": (("key = tl.where(out, -2139095041, key)", "key = key"), ("AssertionError",)),
}


@interpreted
@pytest.mark.parametrize("fault,caught", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_caught(fault, caught, tmp_path, monkeypatch):
    source = Path(kernel.__file__).read_text()
    assert fault[0] in source
    store = "\n\n@triton.jit\n@no_type_check\ndef _store(at, what, mask, sem):\n    tl.store(at, what, mask=mask)\n\n\n"
    path = tmp_path / "planted.py"
    path.write_text(source.replace(*fault).replace("\n\nclass _List", store + "class _List"))
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None and spec.loader is not None
    planted = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted", planted)
    spec.loader.exec_module(planted)
    for name, size in SMALL.items():
        monkeypatch.setattr(planted, name, size)
    g = torch.Generator().manual_seed(0)
    x, W = (torch.randint(-1, 2, shape, generator=g).float() for shape in ((5, 3), (30, 3)))
    count = 1 if "prefix)" in fault[0] else 13  # a single one is among the groups that reach the bound exactly
    weight, kept = torch.randint(1, 3, (30,), generator=g).float(), torch.tensor([1.0, 0, 1, 1, 1])
    scores = (x @ W.T * weight).masked_fill(kept[:, None] == 0, -torch.inf).flatten()
    scores_bar = scores.sort(descending=True).values[12]
    assert (scores == scores_bar).sum() > (scores >= scores_bar).sum() - 13 > 0  # ties at the edge
    with pytest.raises(Exception) as found, checked(order_seed=1):  # the interpreter wraps what the guard raises
        _, idx, offsets = planted.threshold_select_triton(x, W.T, torch.zeros(30), count, weight=weight, kept=kept)
        at = places(idx, offsets, 30)
        assert torch.equal(at, scores.sort(descending=True, stable=True).indices[:count].sort().values)
    assert any(kind in repr(found.value) for kind in caught), repr(found.value)


CHUNK_TYPES = {"weight": "*fp32", "dropped": "*i8", "f": "i32", "per_row": "i32"}
RANKING = {"hists": "*i32", "rank": "i32"}
NEW = {"out_keys": "*i32", "out_places": "*i64"}
WINNERS = {**RANKING, "sizes": "*i32", "n_blocks": "i32", **NEW}
LISTED = {"keys": "*i32", "n": "i32", **RANKING}
CHOSEN = {**CHUNK_TYPES, "groups": "*i32", "n_chosen": "*i32"}
KERNELS = {
    "_group_keys": ({**CHUNK_TYPES, "keys": "*i32", "n_groups": "i32"}, {}),
    "_count_digits": (LISTED, {"PASS": 1}),
    "_count_digits_of_groups": ({**CHOSEN, **RANKING}, {"PASS": 3}),
    "_list_groups": ({**LISTED, "ends": "*i32", "groups": "*i32"}, {"BOUNDED": True}),
    "_winners": ({**LISTED, **WINNERS, "places": "*i64"}, {"WRITE": True}),
    "_winners_of_groups": ({**CHOSEN, **WINNERS, "first": "i64", "first_block": "i32"}, {"WRITE": True}),
}


def compiled(name: str, capability: int, pointer: str) -> str:
    types, constants = KERNELS[name]
    names = getattr(kernel, name).arg_names
    types = types | {other: pointer for other in ("pre", "values", "out_values") if other in names}
    sizes = {"GROUP": 64, "GROUPS": 32, "FLAT": 2048, "RANKED": True, "KEPT": True}
    constants = constants | {other: size for other, size in sizes.items() if other in names}
    return compile_only.compile_for(kernel.__name__, name, types, constants, capability)


@pytest.mark.parametrize("name,capability", list(zip(KERNELS, (90, 80, 90, 80, 90, 80), strict=True)))
def test_compiles_at_full_size(name, capability):
    assert ".visible .entry" in compiled(name, capability, "*bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("capability,pointer", [(80, "*fp32"), (90, "*fp32"), (80, "*bf16"), (90, "*bf16")])
def test_compiles_in_all_ways(name, capability, pointer):
    assert ".visible .entry" in compiled(name, capability, pointer)
