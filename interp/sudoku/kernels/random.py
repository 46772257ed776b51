"""Random numbers in integer arithmetic: the same in numba and in Python.

    state = hash of (seed, stream, item)      item i is a function of (seed, i), whoever computes it and in what order

xoshiro128** (Blackman and Vigna 2021); the states come from the finaliser of MurmurHash3 (Appleby). Products of 32-bit
words wrap in numba's 64 bits, and only their low 32 bits are kept, so nothing differs from Python's long integers.
"""

from typing import no_type_check

WORD = 0xFFFFFFFF


@no_type_check
def mix(x):
    """A bijection of 32-bit words that scatters them."""
    x = (x ^ x >> 16) * 0x85EBCA6B & WORD
    x = (x ^ x >> 13) * 0xC2B2AE35 & WORD
    return x ^ x >> 16


@no_type_check
def begin(state, seed, stream, item):
    """The generator of one item: four words, each a bijection of the item's low word, so no two items share a state."""
    for k in range(4):
        word = mix(0x9E3779B9 * (k + 1) & WORD)
        word = mix(word ^ seed & WORD)
        word = mix(word ^ seed >> 32)
        word = mix(word ^ stream)
        word = mix(word ^ item >> 32)
        state[k] = mix(word ^ item & WORD)


@no_type_check
def below(state, n):
    """A random integer of 0..n-1; n is small, so the bias of at most n / 2**32 does not matter."""
    a, b, c, d = int(state[0]), int(state[1]), int(state[2]), int(state[3])
    x = b * 5 & WORD
    x = (x << 7 | x >> 25) & WORD
    x = x * 9 & WORD
    c, d = c ^ a, d ^ b
    state[1], state[0] = b ^ c, a ^ d
    state[2] = c ^ b << 9 & WORD
    state[3] = (d << 11 | d >> 21) & WORD
    return x * n >> 32


@no_type_check
def shuffle(state, items, count):
    """Permute the first `count` items (Fisher and Yates)."""
    for last in range(count - 1, 0, -1):
        other = below(state, last + 1)
        items[last], items[other] = items[other], items[last]
