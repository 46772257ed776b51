"""Small kernels with a fault that can be switched on."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def doubled(y, x, D, MASKED_LOAD: tl.constexpr, MASKED_STORE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program doubles a block of a row of D numbers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < D, other=0.0) if MASKED_LOAD else tl.load(x + at)
    tl.store(y + at, 2 * value, mask=(at < D) if MASKED_STORE else None)


@triton.jit
@no_type_check
def total(y, x, BLOCK: tl.constexpr, HOW: tl.constexpr):
    """Adds up blocks, one per program, into a single number."""
    part = tl.sum(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)), axis=0)
    if HOW == "atomic":
        tl.atomic_add(y, part)
    elif HOW == "read and write":
        tl.store(y, tl.load(y) + part)
    else:
        tl.store(y, part)


@triton.jit
@no_type_check
def scattered(y, x, where, BLOCK: tl.constexpr):
    """One program writes a block to chosen places."""
    lane = tl.arange(0, BLOCK)
    tl.store(y + tl.load(where + lane), tl.load(x + lane))


@triton.jit
@no_type_check
def compared_and_swapped(y, x):
    tl.atomic_cas(y + tl.program_id(0), tl.load(x), tl.load(x) + 1)


@triton.jit
@no_type_check
def passed_on(y):
    """Every program but the first waits for its left neighbour, which is no order a GPU promises."""
    at = tl.program_id(0)
    before = tl.load(y + at - 1, mask=at > 0, other=0)
    tl.store(y + at, before + 1)


@triton.jit
@no_type_check
def row_copied(y, x, D, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """A program copies its row of D numbers."""
    row = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    at = row * D + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))
