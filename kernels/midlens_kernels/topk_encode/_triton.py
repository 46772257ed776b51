"""Triton implementation of `topk_encode`: the product in tiles, groups above their token's bar kept, no n x f matrix.

The k highest entries of a token lie in the k groups of features with the highest maxima (`midlens_kernels._groups`).

    first pass    per (tile of tokens, split of the features): a tile of x W_enc + b_enc at a time. Groups of 8 whose
                  maximum is above the token's bar are appended to the token's list, all 8 values. When a list cannot
                  take a tile, its k best groups stay, and the k-th maximum becomes the bar.
    second pass   per token: the k best groups of the lists of all splits, and of their 8 k entries the k highest.

A split's list never loses one of its k best groups, so the result is exact, and the same in every run. Lists take 40
bytes times tokens of a launch x splits x capacity (`Tiles`): at the shapes it is meant for (f 131,072, k 64, 132
multiprocessors) 4,096 x 4 x 256, 160 MiB, however many tokens there are. Not yet measured on a GPU.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from midlens_kernels._triton_entries import entries
from midlens_kernels._triton_keys import highest, key_of, number_of
from midlens_kernels.topk_encode import LIMIT

GROUP = tl.constexpr(8)
LISTED = 4 + 4 + 4 * 8  # bytes of a group in a list: its maximum, its first feature, its values
LISTS = 2**29  # bytes of all lists of a launch, at most
TOKENS = 4096  # of a launch, at most: with d 4096 in 16 bits x stays in the second-level cache while W_enc passes by


class Tiles(NamedTuple):
    """Sizes of one launch; all but `splits` are powers of two."""

    rows: int  # tokens of a program, at least 16
    features: int  # of one tile of the product, at least 16
    depth: int  # of one step of the product, at least 16
    splits: int  # of the features
    capacity: int  # groups that a token's list in one split can take: at least k + features / 8
    shrunk: int  # tokens whose lists are shortened together
    warps: int
    stages: int


def tiles_for(n: int, f: int, k: int, dtype: torch.dtype, processors: int, *, wide: bool = True) -> Tiles:
    """One program per multiprocessor: an accumulator of 128 x 256 fills half its registers, so no second one fits.

    `wide` is for compute capability 9 and more: for 8.0 Triton 3.6 keeps such an accumulator out of the registers.
    """
    rows, features, depth, warps, stages = (128, 256, 64, 8, 3) if dtype.itemsize == 2 else (64, 64, 32, 4, 2)
    features = features if wide else min(features, 128)
    rows = min(rows, max(16, triton.next_power_of_2(n)))
    capacity = triton.next_power_of_2(k + 3 * features // 8)
    tiles = triton.cdiv(n, rows)
    most = min(
        2**13 // capacity, LISTS // (LISTED * capacity * rows * tiles)
    )  # the second pass reads 2^13 maxima at once
    splits = max(1, min(processors // tiles, triton.cdiv(f, features), most))
    return Tiles(rows, features, depth, splits, capacity, min(rows, max(1, 2**11 // capacity)), warps, stages)


@triton.jit
@no_type_check
def _maxima(tile):
    """The maximum of each group along the last axis (8 entries); NaN wins."""
    ROWS: tl.constexpr = tile.shape[0]
    GROUPS: tl.constexpr = tile.shape[1]
    one, two = tl.split(tl.reshape(tile, [ROWS, GROUPS, 4, 2]))
    tile = tl.maximum(one, two, propagate_nan=tl.PropagateNan.ALL)
    one, two = tl.split(tl.reshape(tile, [ROWS, GROUPS, 2, 2]))
    one, two = tl.split(tl.maximum(one, two, propagate_nan=tl.PropagateNan.ALL))
    return tl.maximum(one, two, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _shorten(
    maxima, firsts, values, counts, bars, first, n, n_splits, k,
    ROWS: tl.constexpr, CAPACITY: tl.constexpr, SHRUNK: tl.constexpr,
):  # fmt: skip
    """Leave the k best groups in the list of each token of the program, in their order; the k-th maximum is the bar."""
    slot = tl.arange(0, CAPACITY)
    member = tl.arange(0, GROUP)
    for start in range(0, ROWS, SHRUNK):
        row = first + start + tl.arange(0, SHRUNK)
        cell = row.to(tl.int64) * n_splits + tl.program_id(1)
        count = tl.load(counts + cell, mask=row < n, other=0)
        live = slot[None, :] < count[:, None]
        at = cell[:, None] * CAPACITY + slot[None, :]
        maximum = tl.load(maxima + at, mask=live, other=0.0)
        feature = tl.load(firsts + at, mask=live, other=0)
        chosen, bar = highest(tl.where(live, key_of(maximum), -2147483648), k)
        to = cell[:, None] * CAPACITY + tl.cumsum(chosen, axis=1) - 1
        chosen = chosen > 0
        value = tl.load(values + at[:, :, None] * GROUP + member[None, None, :], mask=chosen[:, :, None], other=0.0)
        tl.debug_barrier()  # every group is read before any moves
        tl.store(maxima + to, maximum, mask=chosen)
        tl.store(firsts + to, feature, mask=chosen)
        tl.store(values + to[:, :, None] * GROUP + member[None, None, :], value, mask=chosen[:, :, None])
        tl.store(counts + cell, tl.minimum(count, k), mask=row < n)
        tl.store(bars + cell, number_of(bar), mask=row < n)


@triton.jit
@no_type_check
def _candidates(
    x, W, b, weight, maxima, firsts, values, counts, bars,
    n, f, d, k, per_split, n_splits, x_row, x_column, W_row, W_column,
    RANKED: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr,
    CAPACITY: tl.constexpr, SHRUNK: tl.constexpr,
):  # fmt: skip
    """First pass. Features past the last have the value -inf; they enter lists at most beside others or early."""
    # members of a group are APART features apart: 8 apart all are in one thread's part of the accumulator
    APART: tl.constexpr = 8 if FEATURES >= 64 else FEATURES // 8
    GROUPS: tl.constexpr = FEATURES // 8
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    step = tl.arange(0, DEPTH)
    group = tl.arange(0, GROUPS)
    member = tl.arange(0, GROUP)
    cell = row.to(tl.int64) * n_splits + tl.program_id(1)
    own = (first.to(tl.int64) * n_splits + tl.program_id(1)) * CAPACITY  # the list of the program's first token
    below = tl.arange(0, ROWS) * (n_splits * CAPACITY)  # the lists of the others, seen from there: 32 bits suffice
    count = tl.zeros([ROWS], dtype=tl.int32)
    bar = tl.full([ROWS], float("nan"), dtype=tl.float32)
    x_at = x + row.to(tl.int64)[:, None] * x_row + step.to(tl.int64)[None, :] * x_column
    begin = tl.program_id(1) * per_split
    for left in range(begin, tl.minimum(begin + per_split, f), FEATURES):
        feature = left + tl.arange(0, FEATURES)
        W_at = W + step.to(tl.int64)[:, None] * W_row + feature.to(tl.int64)[None, :] * W_column
        tile = tl.zeros([ROWS, FEATURES], dtype=tl.float32)
        for at in range(0, d, DEPTH):
            deep = step < d - at
            x_tile = tl.load(x_at + at * x_column, mask=(row < n)[:, None] & deep[None, :], other=0.0)
            W_tile = tl.load(W_at + at * W_row, mask=deep[:, None] & (feature < f)[None, :], other=0.0)
            if WIDEN:
                x_tile, W_tile = x_tile.to(tl.float32), W_tile.to(tl.float32)
            tile = tl.dot(x_tile, W_tile, tile, input_precision="ieee")
        tile += tl.load(b + feature, mask=feature < f, other=-float("inf")).to(tl.float32)[None, :]
        score = tile
        if RANKED:
            score = tile * tl.load(weight + feature, mask=feature < f, other=1.0).to(tl.float32)[None, :]
        score = tl.permute(tl.reshape(score, [ROWS, GROUPS // APART, 8, APART]), [0, 1, 3, 2])
        maximum = _maxima(tl.reshape(score, [ROWS, GROUPS, 8]))
        leader = left + group // APART * (8 * APART) + group % APART
        inside = (row < n)[:, None] & (leader < f)[None, :]
        # "not at most" lets NaN pass, and everything where there is no bar yet (NaN)
        passing = (~(maximum <= bar[:, None]) & inside).to(tl.int32)
        added = tl.sum(passing, axis=1)
        if tl.max(count + added, axis=0) > CAPACITY:
            tl.store(counts + cell, count, mask=row < n)
            tl.debug_barrier()
            _shorten(maxima, firsts, values, counts, bars, first, n, n_splits, k, ROWS, CAPACITY, SHRUNK)
            tl.debug_barrier()
            count = tl.load(counts + cell, mask=row < n, other=0)
            bar = tl.load(bars + cell, mask=row < n, other=0.0)
            passing = (~(maximum <= bar[:, None]) & inside).to(tl.int32)
            added = tl.sum(passing, axis=1)
        to = (below + count - 1)[:, None] + tl.cumsum(passing, axis=1)
        passing = passing > 0
        tl.store(maxima + own + to, maximum, mask=passing)
        tl.store(firsts + own + to, tl.broadcast_to(leader[None, :], to.shape), mask=passing)
        value = tl.permute(tl.reshape(tile, [ROWS, GROUPS // APART, 8, APART]), [0, 1, 3, 2])
        value = tl.reshape(value, [ROWS, GROUPS, 8])
        tl.store(
            values + own * GROUP + (to * GROUP)[:, :, None] + member[None, None, :], value, mask=passing[:, :, None]
        )
        count += added
    tl.store(counts + cell, count, mask=row < n)


@triton.jit
@no_type_check
def _merge(
    maxima, firsts, values, counts, weight, places, out, idx, f, k, n_splits,
    RANKED: tl.constexpr, SPLITS: tl.constexpr, CAPACITY: tl.constexpr, APART: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Second pass: the k best groups of a token's lists, by way of their `places`, then their k highest entries."""
    token = tl.program_id(0).to(tl.int64)
    own = token * n_splits * CAPACITY
    place = tl.arange(0, SPLITS * CAPACITY)
    split = place // CAPACITY
    count = tl.load(counts + token * n_splits + split, mask=split < n_splits, other=0)
    live = place % CAPACITY < count
    maximum = tl.load(maxima + own + place, mask=live, other=0.0)
    chosen, _ = highest(tl.where(live, key_of(maximum), -2147483648)[None, :], k)
    chosen = tl.reshape(chosen, [SPLITS * CAPACITY])
    tl.store(places + token * k + tl.cumsum(chosen, axis=0) - 1, place, mask=chosen > 0)
    best = tl.minimum(tl.sum(chosen, axis=0), k)
    tl.debug_barrier()
    slot = tl.arange(0, K)
    place = tl.load(places + token * k + slot, mask=slot < best, other=0)
    feature = tl.load(firsts + own + place, mask=slot < best, other=f)
    feature = feature[:, None] + tl.arange(0, GROUP)[None, :] * APART
    live = feature < f
    value = tl.load(values + (own + place)[:, None] * GROUP + tl.arange(0, GROUP)[None, :], mask=live, other=0.0)
    score = value
    if RANKED:
        score = value * tl.load(weight + feature, mask=live, other=0.0).to(tl.float32)
    key = tl.reshape(tl.where(live, key_of(score), -2147483648), [1, K * GROUP])
    chosen, _ = highest(key, k)
    chosen = tl.reshape(chosen, [K * GROUP])
    to = token * k + tl.cumsum(chosen, axis=0) - 1
    tl.store(out + to, tl.reshape(value, [K * GROUP]).to(out.dtype.element_ty), mask=chosen > 0)
    tl.store(idx + to, tl.reshape(feature, [K * GROUP]).to(tl.int64), mask=chosen > 0)


def _launch(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, weight: Tensor | None, out: Tensor, idx: Tensor, tiles: Tiles
) -> None:
    """Both passes over the tokens of one launch."""
    (n, d), f = x.shape, len(b_enc)
    maxima = torch.empty(n, tiles.splits, tiles.capacity, device=x.device)
    firsts = torch.empty_like(maxima, dtype=torch.int32)
    values = torch.empty(*maxima.shape, 8, device=x.device)
    counts = torch.empty(n, tiles.splits, dtype=torch.int32, device=x.device)
    bars = torch.empty(n, tiles.splits, device=x.device)
    places = torch.empty(n, k, dtype=torch.int32, device=x.device)
    per_split = triton.cdiv(triton.cdiv(f, tiles.features), tiles.splits) * tiles.features
    ranked = b_enc if weight is None else weight
    _candidates[(triton.cdiv(n, tiles.rows), tiles.splits)](
        x, W_enc, b_enc, ranked, maxima, firsts, values, counts, bars,
        n, f, d, k, per_split, tiles.splits, x.stride(0), x.stride(1), W_enc.stride(0), W_enc.stride(1),
        RANKED=weight is not None, WIDEN=isinstance(_candidates, InterpretedFunction),
        ROWS=tiles.rows, FEATURES=tiles.features, DEPTH=tiles.depth, CAPACITY=tiles.capacity, SHRUNK=tiles.shrunk,
        num_warps=tiles.warps, num_stages=tiles.stages,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    _merge[(n,)](
        maxima, firsts, values, counts, ranked, places, out, idx, f, k, tiles.splits,
        RANKED=weight is not None, SPLITS=triton.next_power_of_2(tiles.splits), CAPACITY=tiles.capacity,
        APART=min(8, tiles.features // 8), K=triton.next_power_of_2(k),
    )  # fmt: skip


@torch.no_grad()
def _select(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, weight: Tensor | None, compute: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The k highest of each token, a launch after the other."""
    values = x.new_empty(len(x), k)
    idx = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    x, W_enc, b_enc = (t.detach().to(compute or x.dtype) for t in (x, W_enc, b_enc))
    b_enc, weight = b_enc.contiguous(), None if weight is None else weight.contiguous()
    device = torch.cuda.get_device_properties(x.device) if x.is_cuda else None
    processors, wide = (device.multi_processor_count, device.major >= 9) if device else (132, True)
    tokens = _tokens(k, x.dtype)
    for start in range(0, len(x), tokens):
        part, out, places = (t[start : start + tokens] for t in (x, values, idx))
        tiles = tiles_for(len(part), len(b_enc), k, x.dtype, processors, wide=wide)
        _launch(part, W_enc, b_enc, k, weight, out, places, tiles)
    return values, idx


def _tokens(k: int, dtype: torch.dtype) -> int:
    """Tokens of a launch: what `LISTS` has room for without splits, in whole tiles."""
    tiles = tiles_for(TOKENS, 1, k, dtype, 1)
    room = LISTS // (LISTED * tiles.capacity)
    return max(tiles.rows, min(TOKENS, room // tiles.rows * tiles.rows))


def topk_encode_triton(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    k: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Encode tokens; of the pre-activations only groups above their token's bar leave the registers."""
    assert k <= LIMIT, "what is beyond the limit is refused before"
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever the tensors are on
        values, idx = _select(x, W_enc, b_enc, k, weight, compute)
    offsets = torch.arange(len(x) + 1, device=x.device) * k
    pre = entries(x, W_enc, b_enc, values.view(-1), idx.view(-1), offsets, longest=k)
    return pre.view_as(values).relu(), idx
