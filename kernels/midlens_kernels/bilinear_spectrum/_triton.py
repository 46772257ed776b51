"""The Gram matrices of [left right] in Triton, `h 2e 2e` in float64; spectra from them by `core_of_gram`.

    gram[h] = sum over rows r of  [left right][h, r]^T [left right][h, r]

Squaring costs half the digits, so the sum must have twice those of its terms: products of float32 numbers are exact in
float64, and are added in float64, by the tensor cores of data-centre GPUs (sm_80, sm_90; other GPUs are slow at it).
Narrower numbers are widened to float32 before the launch, a piece of the heads at a time: Triton 3.6 does not compile
a float64 product whose operands were loaded as 16 bits. Tile (i, j) of a head's matrix, i <= j, is summed by as many
programs as keep a GPU busy, each over rows of its own, into a partial matrix of its own; a second pass adds those in
order and writes the tile and its mirror image. Nothing is added by atomics, no float64 copy of the factors is made, and
how the sum is cut depends on the shape alone: equal input gives equal bits. Row offsets have 64 bits.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from midlens_kernels.bilinear_spectrum.core import BilinearSpectrum, core_of_gram, spectrum_of_core
from midlens_kernels.bilinear_spectrum.cpu import Spectrum

COLUMNS = 64  # of a tile; fewer where e is smaller, but 16 at least
ROWS = 32  # multiplied at a time
PROGRAMS = 512  # the rows are cut until there are about that many
LEAST = 256  # rows that a program adds, where there are as many


@triton.jit
@no_type_check
def _rows(left, right, offset, row, stride_r, stride_c, inside, index, tiles, E, BLOCK: tl.constexpr):
    """Rows `row` of tile `index` of [left right], each of which has `tiles` of them."""
    if index < tiles:
        source, first = left, index * BLOCK
    else:
        source, first = right, (index - tiles) * BLOCK
    column = first + tl.arange(0, BLOCK)
    place = offset + row[:, None] * stride_r + column[None, :].to(tl.int64) * stride_c
    return tl.load(source + place, mask=inside[:, None] & (column < E)[None, :], other=0.0).to(tl.float64)


@triton.jit
@no_type_check
def _places(head, i, j, tiles, E, BLOCK: tl.constexpr):
    """Where tile (i, j) of a head's 2e x 2e matrix lies: rows, columns, and which of them exist."""
    row = (i % tiles) * BLOCK + tl.arange(0, BLOCK)
    column = (j % tiles) * BLOCK + tl.arange(0, BLOCK)
    there = (row < E)[:, None] & (column < E)[None, :]
    return head * 4 * E * E, (i // tiles) * E + row, (j // tiles) * E + column, there


@triton.jit
@no_type_check
def _partial_grams(
    partial,
    left,
    right,
    size,
    D,
    E,
    tiles,
    rows,
    stride_h,
    stride_r,
    stride_c,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """partial[piece, head]: tile (i, j) of the Gram matrix of `rows` rows; `size` numbers make a piece."""
    pair = tl.program_id(0) % (4 * tiles * tiles)
    head = (tl.program_id(0) // (4 * tiles * tiles)).to(tl.int64)
    i, j = pair // (2 * tiles), pair % (2 * tiles)
    if i <= j:
        piece = tl.program_id(1)
        begin = piece * rows
        stop = tl.minimum(begin + rows, D)
        sums = tl.zeros([BLOCK, BLOCK], dtype=tl.float64)
        for start in range(begin, stop, ROWS):
            row = start + tl.arange(0, ROWS)
            inside = row < stop
            row = row.to(tl.int64)
            a = _rows(left, right, head * stride_h, row, stride_r, stride_c, inside, i, tiles, E, BLOCK)
            b = _rows(left, right, head * stride_h, row, stride_r, stride_c, inside, j, tiles, E, BLOCK)
            sums = tl.dot(tl.trans(a), b, sums, out_dtype=tl.float64)
        first, row, column, there = _places(head, i, j, tiles, E, BLOCK)
        place = piece.to(tl.int64) * size + first + row[:, None] * 2 * E + column[None, :]
        tl.store(partial + place, sums, mask=there)


@triton.jit
@no_type_check
def _summed_grams(gram, partial, size, E, tiles, pieces, BLOCK: tl.constexpr):
    """Tile (i, j) of gram[head], the sum of the pieces in order, and its mirror image."""
    pair = tl.program_id(0) % (4 * tiles * tiles)
    head = (tl.program_id(0) // (4 * tiles * tiles)).to(tl.int64)
    i, j = pair // (2 * tiles), pair % (2 * tiles)
    if i <= j:
        first, row, column, there = _places(head, i, j, tiles, E, BLOCK)
        sums = tl.zeros([BLOCK, BLOCK], dtype=tl.float64)
        place = first + row[:, None] * 2 * E + column[None, :]
        source = partial + place
        for _ in range(pieces):
            sums += tl.load(source, mask=there, other=0.0)
            source += size
        tl.store(gram + place, sums, mask=there)
        if i < j:
            mirrored = first + column[:, None] * 2 * E + row[None, :]
            tl.store(gram + mirrored, tl.trans(sums), mask=tl.trans(there))


def grams(left: Float[Tensor, "h d e"], right: Float[Tensor, "h d e"]) -> Float[Tensor, "h two_e two_e"]:
    """[left right]^T [left right] of each head, float64."""
    heads, d, e = left.shape
    gram = torch.empty(heads, 2 * e, 2 * e, dtype=torch.float64, device=left.device)
    if not heads:
        return gram
    left, right = left.float(), right.float()
    if left.stride() != right.stride():
        left, right = left.contiguous(), right.contiguous()
    block = max(16, min(COLUMNS, triton.next_power_of_2(e)))
    tiles = triton.cdiv(e, block)
    programs = heads * 4 * tiles * tiles
    wanted = max(
        1, min(triton.cdiv(2 * PROGRAMS, programs), d // LEAST)
    )  # near half the programs lie below the diagonal
    rows = triton.cdiv(triton.cdiv(d, wanted), ROWS) * ROWS
    pieces = triton.cdiv(d, rows)
    partial = torch.empty(pieces, *gram.shape, dtype=torch.float64, device=left.device)
    _partial_grams[(programs, pieces)](
        partial, left, right, gram.numel(), d, e, tiles, rows, *left.stride(), BLOCK=block, ROWS=ROWS
    )
    _summed_grams[(programs,)](gram, partial, gram.numel(), e, tiles, pieces, BLOCK=block)
    return gram


def by_gram(left: Float[Tensor, "h d e"], right: Float[Tensor, "h d e"]) -> BilinearSpectrum:
    """Spectra of flat heads by way of their Gram matrices."""
    d, e = left.shape[-2:]
    return spectrum_of_core(*core_of_gram(grams(left, right), min(d, 2 * e)))


def bilinear_spectrum_triton(left: Float[Tensor, "*h d e"], right: Float[Tensor, "*h d e"]) -> BilinearSpectrum:
    """Spectra by way of Gram matrices; gradients by QR, as those of the production path."""
    return BilinearSpectrum(*Spectrum.apply(left, right, by_gram))
