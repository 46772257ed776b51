"""`topk_decode` in Triton: weighted bags of rows for the values and for dL/dW_dec, dot products for dL/dacts.

    out[i] = sum over entries j of bag i:  weights[j] * table[indices[j]]

Forward the bags are tokens and the table is W_dec; in the gradient of W_dec the bags are features, their entries listed
by the reverse index, and the table is dL/dy. A program owns one block of columns of one bag, so nothing is added by
atomics and the order of additions is fixed. A bag of more than `SPLIT` entries would keep its programs busy while the
others idle: what exceeds the first `SPLIT` is summed in pieces by programs of their own, into float32 rows that the
bag's program then adds. There are at most m // SPLIT pieces, whatever the codes, so that no grid depends on the data.

Every load is widened to float32 at once (Triton's interpreter computes nonsense in bfloat16) and every row offset to 64
bits. Indices are trusted: what is not in [0, f) reads elsewhere.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from midlens_kernels._bags import reverse_index, rows_of

SPLIT = 128  # entries of a bag that one program adds up: the pieces take m / 128 rows of d float32 numbers at most
COLUMNS = 512  # of a block
TILE = 8  # entries that a program reads at a time


@triton.jit
@no_type_check
def _added(table, indices, weights, begin, stop, column, inside, stride, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """One block of columns of the weighted rows from entry `begin` to `stop`, every TILE-th added up."""
    sums = tl.zeros([TILE, BLOCK], dtype=tl.float32)
    for start in range(begin, stop, TILE):
        entry = (start + tl.arange(0, TILE)).to(tl.int64)
        there = entry < stop
        row = tl.load(indices + entry, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=there, other=0.0).to(tl.float32)
        place = row[:, None] * stride + column[None, :]
        value = tl.load(table + place, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        sums += weight[:, None] * value
    return sums


@triton.jit
@no_type_check
def _pieces(
    pieces,
    table,
    indices,
    weights,
    offsets,
    edges,
    owners,
    n_bags,
    D,
    stride,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Piece p of bag i = owners[p] sums SPLIT entries, the first piece those after the bag's first SPLIT."""
    piece = tl.program_id(0).to(tl.int64)
    bag = tl.load(owners + piece).to(tl.int64)
    if bag < n_bags:  # else there are fewer pieces than could be
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < D
        begin = tl.load(offsets + bag).to(tl.int64) + (piece - tl.load(edges + bag) + 1) * SPLIT
        stop = tl.minimum(begin + SPLIT, tl.load(offsets + bag + 1).to(tl.int64))
        sums = _added(table, indices, weights, begin, stop, column, inside, stride, TILE, BLOCK)
        tl.store(pieces + piece * D + column, tl.sum(sums, axis=0), mask=inside)


@triton.jit
@no_type_check
def _bags(
    out,
    table,
    indices,
    weights,
    offsets,
    pieces,
    edges,
    D,
    stride,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (i, c) writes columns c BLOCK, ... of bag i; SPLIT 0: there are no pieces."""
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    begin = tl.load(offsets + bag).to(tl.int64)
    stop = tl.load(offsets + bag + 1).to(tl.int64)
    if SPLIT > 0:
        stop = tl.minimum(stop, begin + SPLIT)
    sums = _added(table, indices, weights, begin, stop, column, inside, stride, TILE, BLOCK)
    if SPLIT > 0:
        last = tl.load(edges + bag + 1)
        for start in range(tl.load(edges + bag), last, TILE):
            piece = (start + tl.arange(0, TILE)).to(tl.int64)
            mask = (piece < last)[:, None] & inside[None, :]
            sums += tl.load(pieces + piece[:, None] * D + column[None, :], mask=mask, other=0.0)
    tl.store(out + bag * D + column, tl.sum(sums, axis=0).to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _dots(out, left, left_rows, right, right_rows, m, D, stride, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """out[j] = <left[left_rows[j]], right[right_rows[j]]>; rows of `left` lie `stride` apart, rows of `right` D."""
    entry = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = entry < m
    from_left = tl.load(left_rows + entry, mask=there, other=0).to(tl.int64)[:, None] * stride
    from_right = tl.load(right_rows + entry, mask=there, other=0).to(tl.int64)[:, None] * D
    sums = tl.zeros([TILE, BLOCK], dtype=tl.float32)
    for start in range(0, D, BLOCK):
        column = (start + tl.arange(0, BLOCK))[None, :]
        mask = there[:, None] & (column < D)
        a = tl.load(left + from_left + column, mask=mask, other=0.0).to(tl.float32)
        sums += a * tl.load(right + from_right + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + entry, tl.sum(sums, axis=1).to(out.dtype.element_ty), mask=there)


def _block(d: int) -> int:
    return min(COLUMNS, triton.next_power_of_2(d))


def _tile(m: int, bags: int) -> int:
    """As many entries at a time as an average bag has: features have one or two, where tokens have k."""
    return min(TILE, triton.next_power_of_2(max(1, m // max(1, bags))))


def weighted_bags(
    table: Float[Tensor, "r d"],
    indices: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
    *,
    longest: int | None = None,
) -> Float[Tensor, "n d"]:
    """Bag i sums `weights[j] * table[indices[j]]` for j from `offsets[i]` to `offsets[i + 1]`; empty bags are zero.

    `longest` is what is known of the largest bag; at most `SPLIT` entries need no pieces.
    """
    table = table if table.stride(1) == 1 else table.contiguous()
    indices, weights, offsets = indices.contiguous(), weights.contiguous(), offsets.contiguous()
    bags, d, m = len(offsets) - 1, table.shape[1], len(indices)
    out = table.new_empty(bags, d)
    if not out.numel():
        return out
    block, tile, stride = _block(d), _tile(m, bags), table.stride(0)
    split, pieces, edges = 0, out, offsets
    with torch.cuda.device_of(table):  # Triton launches on the current device, whatever the tensors are on
        if count := m // SPLIT if longest is None or longest > SPLIT else 0:
            split, pieces = SPLIT, table.new_empty(count, d, dtype=torch.float32)
            edges = functional.pad(((offsets.diff().long() - 1).clamp_(0) // SPLIT).cumsum(0), (1, 0))
            owners = torch.searchsorted(edges, torch.arange(count, device=edges.device), right=True) - 1
            places = offsets, edges, owners, bags, d, stride
            grid = count, triton.cdiv(d, block)
            _pieces[grid](pieces, table, indices, weights, *places, SPLIT=split, TILE=TILE, BLOCK=block)
        grid = bags, triton.cdiv(d, block)
        places = offsets, pieces, edges, d, stride
        _bags[grid](out, table, indices, weights, *places, SPLIT=split, TILE=tile, BLOCK=block)
    return out


def feature_rows_gradient(
    tokens: Float[Tensor, "n d"],
    rows: Int[Tensor, " m"],
    idx: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    n_features: int,
) -> Float[Tensor, "f d"]:
    """Row i sums `weights[j] * tokens[rows[j]]` over the entries j of feature i; an absent feature's row is zero."""
    entries, offsets = reverse_index(idx, n_features)
    return weighted_bags(tokens, rows[entries], weights[entries], offsets)


def entry_dots(
    table: Float[Tensor, "f d"], idx: Int[Tensor, " m"], tokens: Float[Tensor, "n d"], rows: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """`<table[idx[j]], tokens[rows[j]]>` for every entry."""
    table, tokens = table if table.stride(1) == 1 else table.contiguous(), tokens.contiguous()
    m, d = len(idx), table.shape[1]
    out = table.new_empty(m)
    if m:
        rows_of_both = table, idx.contiguous(), tokens, rows.contiguous()
        with torch.cuda.device_of(table):
            _dots[(triton.cdiv(m, TILE),)](
                out, *rows_of_both, m, d, table.stride(0), TILE=TILE, BLOCK=_block(max(1, d))
            )
    return out


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, idx: Tensor, offsets: Tensor, W_dec: Tensor, longest: int | None) -> Tensor:
        ctx.save_for_backward(acts, idx, offsets, W_dec)
        return weighted_bags(W_dec, idx, acts, offsets, longest=longest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (g_y,) = gradients
        acts, idx, offsets, W_dec = ctx.saved_tensors
        rows = rows_of(offsets, len(idx))
        g_acts = g_W = None
        if ctx.needs_input_grad[0]:
            g_acts = entry_dots(W_dec, idx, g_y, rows)
        if ctx.needs_input_grad[3]:
            g_W = feature_rows_gradient(g_y, rows, idx, acts, len(W_dec))
        return g_acts, None, None, g_W, None


def topk_decode_triton(
    acts: Float[Tensor, " m"],
    idx: Int[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
    W_dec: Float[Tensor, "f d"],
    *,
    longest: int | None = None,
) -> Float[Tensor, "n d"]:
    """Decode flat codes; `longest`: no token has more entries than that."""
    return _Decode.apply(acts, idx, offsets, W_dec, longest)
