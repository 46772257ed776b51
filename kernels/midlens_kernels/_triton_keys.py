"""Ranking float32 numbers as integers, inside Triton kernels.

Read as an integer, a float32 >= 0 orders as it does as a number; one below zero orders the other way round, so its
lower 31 bits are flipped. The k-th largest of a row is then found bit by bit: 32 counts of "how many are at least
this", no sorting. NaN ranks highest, as in `torch.topk`. -2^31 is the key of no number.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def key_of(score):
    """The order of `score` as an int32; -0 ranks just below 0."""
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score == score, key, 0x7FFFFFFF)


@triton.jit
@no_type_check
def number_of(key):
    """The float32 whose key it is; NaN for the key of no number."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def kth_largest(key, k):
    """The k-th largest key of each row of a matrix; -2^31 where fewer than k are above that."""
    enough = tl.sum((key >= 0).to(tl.int32), axis=1) >= k
    bar = tl.where(enough, 0, -2147483648)
    for i in range(31):
        higher = bar + (1 << (30 - i))
        enough = tl.sum((key >= higher[:, None]).to(tl.int32), axis=1) >= k
        bar = tl.where(enough, higher, bar)
    return bar


@triton.jit
@no_type_check
def highest(key, k):
    """Which k entries of each row rank highest (the first ones of equals), and the k-th largest key.

    Entries with the key of no number are never among them, so a row may have fewer than k.
    """
    bar = kth_largest(key, k)
    above = (key > bar[:, None]).to(tl.int32)
    equal = ((key == bar[:, None]) & (key > -2147483648)).to(tl.int32)
    room = k - tl.sum(above, axis=1)
    chosen = above + tl.where(tl.cumsum(equal, axis=1) <= room[:, None], equal, 0)
    return chosen, bar
