"""Triton implementation of `threshold_select`: exact selection by digits of integer keys, a chunk of tokens at a time.

The product is torch's, a chunk of tokens into one buffer; computing it again for every digit would cost more than
reading it (README). Of every chunk, with the `count` best entries of the chunks before it (the list):

    1. the largest key of every group of 64 neighbours: the one pass that reads the whole chunk;
    2. a bound: the count-th largest of the list and of these maxima, which all are entries, to 16 bits, rounded down;
    3. the groups that reach the bound, in their order; no other has an entry among the `count` best;
    4. the exact key T of the count-th largest of the list and of the entries of these groups, 8 bits a pass;
    5. what is above T, and of what equals T the first ones, is counted, and written in order: the new list.

How many groups reach the bound stays on the device: grids are fixed and loop up to it. The list ascends in token and
feature and has min(count, entries so far) entries, whatever the data. Sums are of integers: the result is the same in
every run. Memory: `CHUNK` pre-activations in the dtype of the product, 8 bytes per 64 of them, 40 bytes per entry of
`count`. Not yet measured on a GPU.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._triton_entries import entries
from midlens_kernels._triton_keys import key_of
from midlens_kernels.threshold_select import LIMIT

CHUNK = 2**27  # pre-activations alive at a time: 1,024 tokens of width 131,072, 256 MiB in 16 bits
GROUP = 64  # neighbours with one maximum: 128 bytes in 16 bits, a line of the cache
GROUPS = 32  # that a program looks at together
FLAT = 2048  # keys of a list that a program looks at together
PROGRAMS = 8  # per multiprocessor, where each loops over what the others leave


@triton.jit
@no_type_check
def _rank_among(hists, rank, PASSES: tl.constexpr):
    """The first PASSES digits of the rank-th largest key as a number, and its rank among the keys that share them."""
    digit = tl.arange(0, 256)
    prefix = 0
    for i in tl.static_range(PASSES):
        hist = tl.load(hists + i * 256 + digit)
        reached = (tl.cumsum(hist, axis=0, reverse=True) >= rank).to(tl.int32)
        found = tl.sum(reached, axis=0) - 1
        rank -= tl.sum(tl.where(digit > found, hist, 0), axis=0)
        prefix = prefix * 256 + (found - 128 if i == 0 else found)  # the first digit has the sign
    return prefix, rank


@triton.jit
@no_type_check
def _digits(key, live, prefix, PASS: tl.constexpr):
    """How often each digit PASS occurs among the live keys that start with `prefix`."""
    if PASS == 0:
        digit = (key >> 24) + 128
    else:
        live = live & ((key >> (32 - 8 * PASS)) == prefix)
        digit = (key >> (24 - 8 * PASS)) & 255
    return tl.histogram(tl.where(live, digit, 0), 256, mask=live)


@triton.jit
@no_type_check
def _entries(
    pre, weight, dropped, group, live, f, per_row,
    RANKED: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Keys, values, places in the chunk, and which are entries at all, of the groups `group`, in their order."""
    SIZE: tl.constexpr = group.shape[0] * GROUP
    row = (group // per_row).to(tl.int64)
    column = (group % per_row * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    place = row[:, None] * f + column
    live = live[:, None] & (column < f)
    value = tl.load(pre + place, mask=live, other=0.0).to(tl.float32)
    score = value
    if RANKED:
        score = value * tl.load(weight + column, mask=live, other=0.0).to(tl.float32)
    key = key_of(score)
    if KEPT:
        out = (tl.load(dropped + row[:, None], mask=live, other=0) != 0) & live
        key = tl.where(out, -2139095041, key)  # the key of -inf
        value = tl.where(out, 0.0, value)
    return tl.reshape(key, [SIZE]), tl.reshape(value, [SIZE]), tl.reshape(place, [SIZE]), tl.reshape(live, [SIZE])


@triton.jit
@no_type_check
def _group_keys(
    pre, weight, dropped, keys, n_groups, f, per_row,
    RANKED: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    key, _value, _place, live = _entries(pre, weight, dropped, group, group < n_groups, f, per_row, RANKED, KEPT, GROUP)
    key = tl.reshape(tl.where(live, key, -2147483648), [GROUPS, GROUP])
    tl.store(keys + group, tl.max(key, axis=1), mask=group < n_groups)


@triton.jit
@no_type_check
def _count_digits(keys, n, hists, rank, PASS: tl.constexpr, FLAT: tl.constexpr):
    """Add digit PASS of `keys` to the histogram of this pass."""
    prefix, _rank = _rank_among(hists, rank, PASS)
    total = tl.zeros([256], dtype=tl.int32)
    for start in range(tl.program_id(0) * FLAT, n, tl.num_programs(0) * FLAT):
        at = start + tl.arange(0, FLAT)
        total += _digits(tl.load(keys + at, mask=at < n, other=0), at < n, prefix, PASS)
    tl.atomic_add(hists + PASS * 256 + tl.arange(0, 256), total, mask=total > 0, sem="relaxed")


@triton.jit
@no_type_check
def _count_digits_of_groups(
    pre, weight, dropped, groups, n_chosen, f, per_row, hists, rank,
    PASS: tl.constexpr, RANKED: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The same for the entries of the chosen groups."""
    prefix, _rank = _rank_among(hists, rank, PASS)
    chosen = tl.load(n_chosen)
    total = tl.zeros([256], dtype=tl.int32)
    for start in range(tl.program_id(0) * GROUPS, chosen, tl.num_programs(0) * GROUPS):
        at = start + tl.arange(0, GROUPS)
        group = tl.load(groups + at, mask=at < chosen, other=0)
        key, _value, _place, live = _entries(pre, weight, dropped, group, at < chosen, f, per_row, RANKED, KEPT, GROUP)
        total += _digits(key, live, prefix, PASS)
    tl.atomic_add(hists + PASS * 256 + tl.arange(0, 256), total, mask=total > 0, sem="relaxed")


@triton.jit
@no_type_check
def _reaching(keys, n, hists, rank, BOUNDED: tl.constexpr, FLAT: tl.constexpr):
    """Which keys of the program's block reach the bound; without one all do."""
    at = tl.program_id(0) * FLAT + tl.arange(0, FLAT)
    reaches = at < n
    if BOUNDED:
        prefix, _rank = _rank_among(hists, rank, 2)
        reaches = reaches & (tl.load(keys + at, mask=at < n, other=0) >> 16 >= prefix)
    return at, reaches.to(tl.int32)


@triton.jit
@no_type_check
def _count_groups(keys, n, hists, rank, sizes, BOUNDED: tl.constexpr, FLAT: tl.constexpr):
    _, reaches = _reaching(keys, n, hists, rank, BOUNDED, FLAT)
    tl.store(sizes + tl.program_id(0), tl.sum(reaches, axis=0))


@triton.jit
@no_type_check
def _list_groups(keys, n, hists, rank, ends, groups, BOUNDED: tl.constexpr, FLAT: tl.constexpr):
    """The groups that reach the bound, in their order; `ends`: where the part of each block ends."""
    at, reaches = _reaching(keys, n, hists, rank, BOUNDED, FLAT)
    to = tl.load(ends + tl.program_id(0)) - tl.sum(reaches, axis=0) + tl.cumsum(reaches, axis=0) - 1
    tl.store(groups + to, at, mask=reaches > 0)


@triton.jit
@no_type_check
def _tally(key, live, bar, sizes, block, n_blocks):
    """How many are above the bar, and how many equal it: the two rows of `sizes`."""
    tl.store(sizes + block, tl.sum((live & (key > bar)).to(tl.int32), axis=0))
    tl.store(sizes + n_blocks + block, tl.sum((live & (key == bar)).to(tl.int32), axis=0))


@triton.jit
@no_type_check
def _write(key, value, place, live, bar, room, ends, block, n_blocks, out_keys, out_values, out_places):
    """Write the winners of a block to where they belong; of those that equal the bar the first `room` win."""
    above = (live & (key > bar)).to(tl.int32)
    equal = (live & (key == bar)).to(tl.int32)
    equal_before = tl.load(ends + n_blocks + block) - tl.sum(equal, axis=0)
    before = tl.load(ends + block) - tl.sum(above, axis=0) + tl.minimum(equal_before, room)
    chosen = above + tl.where(equal_before + tl.cumsum(equal, axis=0) <= room, equal, 0)
    to = before + tl.cumsum(chosen, axis=0) - 1
    tl.store(out_keys + to, key, mask=chosen > 0)
    tl.store(out_values + to, value.to(out_values.dtype.element_ty), mask=chosen > 0)
    tl.store(out_places + to, place, mask=chosen > 0)


@triton.jit
@no_type_check
def _winners(
    keys, values, places, n, hists, rank, sizes, n_blocks, out_keys, out_values, out_places,
    WRITE: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """Of the list: count what stays, or write it (`sizes` are then running sums)."""
    bar, room = _rank_among(hists, rank, 4)
    at = tl.program_id(0) * FLAT + tl.arange(0, FLAT)
    key = tl.load(keys + at, mask=at < n, other=0)
    if WRITE:
        value = tl.load(values + at, mask=at < n, other=0.0).to(tl.float32)
        place = tl.load(places + at, mask=at < n, other=0)
        block = tl.program_id(0)
        _write(key, value, place, at < n, bar, room, sizes, block, n_blocks, out_keys, out_values, out_places)
    else:
        _tally(key, at < n, bar, sizes, tl.program_id(0), n_blocks)


@triton.jit
@no_type_check
def _winners_of_groups(
    pre, weight, dropped, groups, n_chosen, f, per_row, first, hists, rank, sizes, first_block, n_blocks,
    out_keys, out_values, out_places,
    WRITE: tl.constexpr, RANKED: tl.constexpr, KEPT: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The same for the entries of the chosen groups; `first` is the place of the chunk's first entry."""
    bar, room = _rank_among(hists, rank, 4)
    chosen = tl.load(n_chosen)
    for start in range(tl.program_id(0) * GROUPS, chosen, tl.num_programs(0) * GROUPS):
        at = start + tl.arange(0, GROUPS)
        group = tl.load(groups + at, mask=at < chosen, other=0)
        key, value, place, live = _entries(pre, weight, dropped, group, at < chosen, f, per_row, RANKED, KEPT, GROUP)
        block = first_block + start // GROUPS
        if WRITE:
            _write(key, value, first + place, live, bar, room, sizes, block, n_blocks, out_keys, out_values, out_places)
        else:
            _tally(key, live, bar, sizes, block, n_blocks)


class _List(NamedTuple):
    """The best entries so far, ascending in place (of the flattened n f)."""

    keys: Tensor
    values: Tensor
    places: Tensor


def _join(
    best: _List, pre: Tensor, first: int, count: int, weight: Tensor | None, dropped: Tensor | None, processors: int
) -> _List:
    """The `count` best of the list and of a chunk of pre-activations, whose first entry has the place `first`."""
    device, (rows, f), n = pre.device, pre.shape, len(best.keys)
    per_row = triton.cdiv(f, GROUP)
    n_groups, rank = rows * per_row, min(count, n + rows * f)
    new = _List(*(t.new_empty(rank) for t in best))
    hists = torch.zeros(6, 256, dtype=torch.int32, device=device)
    keys, groups = (torch.empty(n_groups, dtype=torch.int32, device=device) for _ in range(2))
    flags = {"RANKED": weight is not None, "KEPT": dropped is not None, "GROUP": GROUP, "GROUPS": GROUPS}
    chunk = pre, keys if weight is None else weight, keys if dropped is None else dropped
    _group_keys[(triton.cdiv(n_groups, GROUPS),)](*chunk, keys, n_groups, f, per_row, **flags)

    def programs(blocks: int) -> tuple[int]:
        return (max(1, min(blocks, PROGRAMS * processors)),)

    listed, blocks = triton.cdiv(n, FLAT), triton.cdiv(n_groups, FLAT)
    bounded = n + n_groups >= rank
    for step in range(2 if bounded else 0):
        if n:
            _count_digits[programs(listed)](best.keys, n, hists, rank, PASS=step, FLAT=FLAT)
        _count_digits[programs(blocks)](keys, n_groups, hists, rank, PASS=step, FLAT=FLAT)
    sizes = torch.empty(blocks, dtype=torch.int32, device=device)
    _count_groups[(blocks,)](keys, n_groups, hists, rank, sizes, BOUNDED=bounded, FLAT=FLAT)
    ends = sizes.cumsum(0, dtype=torch.int32)
    _list_groups[(blocks,)](keys, n_groups, hists, rank, ends, groups, BOUNDED=bounded, FLAT=FLAT)

    chosen, hists, blocks = ends[-1:], hists[2:], triton.cdiv(n_groups, GROUPS)
    for step in range(4):
        if n:
            _count_digits[programs(listed)](best.keys, n, hists, rank, PASS=step, FLAT=FLAT)
        _count_digits_of_groups[programs(blocks)](
            *chunk, groups, chosen, f, per_row, hists, rank, PASS=step, **flags
        )  # fmt: skip
    sizes = torch.zeros(2, listed + blocks, dtype=torch.int32, device=device)
    for write in (False, True):
        sizes = sizes.cumsum(1, dtype=torch.int32) if write else sizes
        if n:
            _winners[(listed,)](*best, n, hists, rank, sizes, listed + blocks, *new, WRITE=write, FLAT=FLAT)
        _winners_of_groups[programs(blocks)](
            *chunk, groups, chosen, f, per_row, first, hists, rank, sizes, listed, listed + blocks, *new,
            WRITE=write, **flags,
        )  # fmt: skip
    return new


@torch.no_grad()
def _select(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, count: int, weight: Tensor | None, kept: Tensor | None,
    compute: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The values of the `count` best entries and their places, ascending."""
    f = len(b_enc)
    x, W_enc, b_enc = (t.detach().to(compute or x.dtype) for t in (x, W_enc, b_enc))
    best = _List(*(torch.empty(0, dtype=t, device=x.device) for t in (torch.int32, x.dtype, torch.int64)))
    dropped = None if kept is None else (kept == 0).to(torch.int8)
    weight = None if weight is None else weight.contiguous()
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    rows = max(1, CHUNK // f)
    buffer = x.new_empty(min(rows, len(x)), f)
    for start in range(0, len(x) if count else 0, rows):
        part = x[start : start + rows]
        pre = torch.addmm(b_enc, part, W_enc, out=buffer[: len(part)])
        out = None if dropped is None else dropped[start : start + rows]
        best = _join(best, pre, start * f, count, weight, out, processors)
    return best.values, best.places


def threshold_select_triton(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    count: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    kept: Float[Tensor, " n"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Encode tokens to `count` entries; pre-activations live only for one chunk, and nothing waits for the device."""
    assert count <= LIMIT, "what is beyond the limit is refused before"
    f = len(b_enc)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever the tensors are on
        values, places = _select(x, W_enc, b_enc, count, weight, kept, compute)
    idx = places % f
    offsets = torch.searchsorted(places, torch.arange(len(x) + 1, device=x.device) * f)
    return entries(x, W_enc, b_enc, values.to(x.dtype), idx, offsets).relu(), idx, offsets
