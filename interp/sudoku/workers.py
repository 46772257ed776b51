"""Kernels over many items: cut into jobs, done by threads, put together in order.

Compiled kernels let go of the interpreter's lock, so threads run side by side; plain Python ones take turns, and then
more workers give the same result no sooner.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from interp.errors import InputError

Result = TypeVar("Result")
JOB = 256  # items: about 0.1 s of work, and half a megabyte of tokens


def spread(job: Callable[[int, int], Result], count: int, workers: int) -> Iterator[Result]:
    """`job(start, stop)` over 0..count in order, at most `workers` at a time."""
    if workers < 1:
        raise InputError(f"workers is {workers}; it must be 1 or more")
    bounds = [(start, min(start + JOB, count)) for start in range(0, count, JOB)]
    if workers == 1:
        yield from (job(*bound) for bound in bounds)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda bound: job(*bound), bounds)


def check_seed(seed: int, first: int) -> None:
    """Seeds and item numbers are what the kernels' generator takes: 0 to 2**63 - 1."""
    for name, value in (("seed", seed), ("first", first)):
        if not 0 <= value < 2**63:
            raise InputError(f"{name} is {value}; it must be 0 or more, and less than 2**63")
